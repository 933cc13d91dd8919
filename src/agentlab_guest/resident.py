"""The guest program of a VM: waits for its host at the control link, and carries out what that orders."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator

from agentlab_guest import __version__, disks, identity, kernel, mux
from agentlab_guest import orders as say
from agentlab_guest.console import CONSOLE_BYTES_MAX, CONSOLE_FILE, kernel_remarks, tail
from agentlab_guest.home import find
from agentlab_guest.port import Port, is_port
from agentlab_guest.programs import Programs
from agentlab_guest.reactor import Reactor
from agentlab_guest.relays import Relays
from agentlab_guest.spawn import capture
from agentlab_guest.strict import Malformed
from agentlab_guest.wire import Wire

OOM_SCORE_ADJ = -900
SEND_BYTES_MAX = 2 << 20  # of a socket: the fewer changes between the programs of a relay, the faster it is
POWER_OFF_DELAY_S = 0.05  # for the answer to get out
RUN_DIR = identity.RUN_DIR
_POWER_OFF = signal.SIGRTMIN + 4  # what systemd takes for `systemctl poweroff`
Work = Generator["list[str] | float", "tuple[int, str]", str]


class Resident:
    """One machine's guest program; `run` never returns."""

    def __init__(self, port: Port, reactor: Reactor, run_dir: str, *, machine: bool) -> None:
        self._reactor, self.machine = reactor, machine
        self._wire = Wire(port, reactor, self._happened, self._dropped)
        self._console = CONSOLE_FILE if machine else f"{run_dir}/console/log"
        self._programs = Programs(self._wire, self._console, machine=machine)
        self._relays = Relays(self._wire, f"{run_dir}/guest.sock")
        self._frozen = disks.Frozen(self._reactor)
        self._name, self._prepared = "", False
        self._connection = 0  # a number of each: answers go only to who asked

    def run(self) -> None:
        """Until the machine ends."""
        while True:
            self._reactor.turn()
            self._wire.port.flush()

    # The connection

    def _happened(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == mux.RESET:
            self._wire.order(0, self._hello())
            self._relays.begin()
        elif kind == mux.MESSAGE:
            self._message(channel, payload)
        elif not self._programs.happened(kind, channel, payload):
            if channel % 2:
                self._relays.happened(kind, channel, payload)
            elif kind == mux.CLOSE:
                self._wire.close(channel)

    def _dropped(self) -> None:
        self._connection += 1
        self._frozen.thaw_all()
        self._programs.drop()
        self._relays.drop()

    def _hello(self) -> say.Hello:
        with open(identity.BOOT_ID, encoding="ascii") as file:
            boot_id = file.read().strip()
        return say.Hello(
            version=__version__,
            name=self._name,
            prepared=self._prepared,
            boot_id=boot_id,
            kernel=os.uname().release,
            machine=self.machine,
        )

    def _message(self, channel: int, payload: bytes) -> None:
        try:
            order = say.parse(payload, say.HOST_ORDERS)
        except Malformed as error:
            self._fail(channel, "refused", f"the order cannot be understood: {error}")
            return
        if isinstance(order, say.Execute):
            self._programs.execute(channel, order)
        elif isinstance(order, say.Signal | say.Resize):
            self._programs.message(channel, order)
        else:
            self._carry_out(channel, order)

    # Orders

    def _carry_out(self, channel: int, order: say.Order) -> None:
        try:
            if isinstance(order, say.Identify):
                self._identify(channel, order)
            elif isinstance(order, say.Mount):
                self._continue((self._connection, channel), disks.mount(order), None)
            else:
                self._answer(channel, self._simple(order))
        except identity.StepFailed as error:
            self._fail(channel, "failed", str(error))
        except disks.DiskFailed as error:
            self._fail(channel, "refused", str(error))
        except OSError as error:
            self._fail(channel, "failed", f"{order.IS}: {error}")

    def _simple(self, order: say.Order) -> str:
        match order:
            case say.SetClock():
                if self.machine:
                    identity.set_clock(order.clock_ns)
            case say.Freeze():
                return self._frozen.freeze(order.path, order.limit_s)
            case say.Thaw():
                return self._frozen.thaw(order.path)
            case say.Unmount():
                return disks.unmount(order.path)
            case say.Grow() if self.machine:
                return str(kernel.grow("/"))
            case say.Prepare():
                self._prepare()
            case say.Shutdown():
                self._reactor.after(POWER_OFF_DELAY_S, self._power_off)
            case say.Tail():
                return self._tail(min(order.length_max, say.TAIL_LENGTH_MAX))
        return ""

    def _identify(self, channel: int, order: say.Identify) -> None:
        took = identity.become(order, machine=self.machine)
        self._name = order.name
        self._wire.order(channel, say.Answer(ms=took, text=""))
        self._wire.close(channel)
        if self.machine:
            self._continue((self._connection, 0), identity.new_host_keys(), None)

    def _prepare(self) -> None:
        self._programs.drop()
        os.sync()
        for path, text in (("/proc/sys/vm/drop_caches", "3"), ("/proc/sys/vm/compact_memory", "1")):
            if self.machine:
                _write(path, text)
        self._name, self._prepared = "", True
        gc.collect()
        gc.freeze()  # what is shared with the template stays shared: no collection writes to it

    def _tail(self, length_max: int) -> str:
        remarks = kernel_remarks() if self.machine else ""
        return (tail(self._console, length_max) + remarks)[-length_max:]

    def _power_off(self) -> None:
        if not self.machine:
            raise SystemExit(0)
        os.sync()
        with open("/proc/1/comm", encoding="ascii") as file:
            if file.read().strip() == "systemd":
                os.kill(1, _POWER_OFF)
                return
        kernel.power_off()

    # Work that waits for programs

    def _continue(self, asker: tuple[int, int], work: Work, result: tuple[int, str] | None) -> None:
        """Go on with it until it waits; when it is done, answer on the asker's channel unless that is 0 or no more."""
        channel = asker[1] if asker[0] == self._connection else 0
        try:
            waits_for = next(work) if result is None else work.send(result)
        except StopIteration as done:
            if channel:
                self._answer(channel, done.value)
            return
        except disks.DiskFailed as error:
            self._fail(channel, "refused", str(error))
            return
        except OSError as error:
            self._fail(channel, "failed", str(error))
            return
        if isinstance(waits_for, float):
            self._reactor.after(waits_for, lambda: self._continue(asker, work, (0, "")))
        else:
            capture(self._reactor, waits_for, lambda status, text: self._continue(asker, work, (status, text)))

    def _answer(self, channel: int, text: str) -> None:
        self._wire.order(channel, say.Answer(ms={}, text=text))
        self._wire.close(channel)

    def _fail(self, channel: int, code: str, cause: str) -> None:
        if channel:
            self._wire.order(channel, say.Failed(code=code, cause=cause[: say.CAUSE_LENGTH_MAX]))
            self._wire.close(channel)


def run(device: str, serial: str | None = None, run_dir: str = RUN_DIR, *, stand_in: bool = False) -> None:
    """Be the resident guest program; returns only where it is not a machine of its own, when told to shut down.

    `serial` is the file in which an invitation may stand; see `home.find`, and for what is raised too.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o022)
    kernel.no_new_privileges()
    machine = not stand_in and (serial is not None or is_port(device))
    if machine:
        _settle_in()
    os.makedirs(run_dir, exist_ok=True)
    reactor = Reactor()
    Resident(find(device, serial, run_dir, reactor, machine=machine), reactor, run_dir, machine=machine).run()


def _settle_in() -> None:
    """What the machine needs once: memory of limited size for secrets and for what launched programs write."""
    _mount_tmpfs(RUN_DIR, f"mode=0755,size={identity.SECRETS_BYTES}")
    _mount_tmpfs(os.path.dirname(CONSOLE_FILE), f"mode=0755,size={CONSOLE_BYTES_MAX}")
    _write("/proc/self/oom_score_adj", str(OOM_SCORE_ADJ))
    _write("/proc/sys/net/core/wmem_max", str(SEND_BYTES_MAX))


def _mount_tmpfs(path: str, options: str) -> None:
    os.makedirs(path, exist_ok=True)
    if not os.path.ismount(path):
        kernel.mount("tmpfs", path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
