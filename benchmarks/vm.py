"""Virtual machines through the API, over bare QEMU with the same command line, files and prepared memory.

Ours: a daemon with the default backend qemu; POST /v1/sandboxes and what follows, on one kept Unix socket connection,
with network, policy, every step recorded durably.  The floor: QEMU begun by hand with the command line that the daemon
uses, no cgroup, no bridge, no store; its saved state loaded, let go, its guest program greeted ("guest-ping").
Then the same from the spare, the round trip of an exec, an artifact out of the VM against a program's output read over
the bare control link, the memory of an idle clone, and a fork into three.  Needs root and QEMU.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import percentile, report
from lab import cpu_s_of, need_root, running_daemon, sandbox_gone
from upload import FINAL, at

from agentlab.backends import first_process
from agentlab.backends.interface import Command
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control
from agentlab.backends.qemu import disk, memory_file
from agentlab.backends.qemu.arming import noted_shape
from agentlab.backends.qemu.birth import Blueprint, give_birth
from agentlab.backends.qemu.command import PROGRAM
from agentlab.backends.qemu.prepared import BASE, BLANK, DISK, INITRD, KERNEL, MEMORY, NAME_LENGTH, STATE, Prepared
from agentlab.backends.qemu.process import Confinement
from agentlab.backends.qemu.vm import Vm
from agentlab.base.entropy import SystemEntropy
from agentlab.base.process import which
from agentlab.client.sync import Connection
from agentlab.testing.daemon_process import DaemonProcess

RUNS = 15
SPARE_RUNS = 10
EXECS = 200
FORK_RUNS = 5
MEMORY_RUNS = 5
TOTAL_BYTES = 256 << 20
UPLOADS = 3
SETTLED_S = 2.0  # after which a fresh clone counts as idle
QUIET_S, QUIET_CPU_S, QUIET_S_MAX = 0.4, 0.02, 60.0
UID = 0x7000_0000 + 65000
SHAPE: dict[str, Any] = {"backend": "qemu", "memory_bytes": 512 << 20, "cpus": 1.0}
TRUE = Command(argv=("true",))


@dataclass
class Machine:
    """A bare VM that runs."""

    folder: Path
    vm: Vm
    control: Control


class Bare:
    """QEMU and nothing else, as the daemon began it for `sandbox`."""

    def __init__(self, daemon: DaemonProcess, sandbox: str) -> None:
        home = daemon.directory / "state" / "qemu" / "sandboxes" / sandbox
        origin = json.loads((home / "origin.json").read_bytes())
        shape = noted_shape(home)
        assert shape is not None
        self.shape, self.command_line = shape, origin["command_line"]
        self.prepared = Prepared(daemon.directory / "state" / "qemu" / "prepared" / origin["key"][:NAME_LENGTH])
        self.folder, self.count = daemon.directory / "bare", 0
        self.memory = memory_file.load(self.prepared.file(MEMORY))
        self.loop = asyncio.Runner()

    def begin(self) -> Machine:
        """Disk, process, saved state, let go, greeted."""
        return self.loop.run(self._begun())

    def end(self, machine: Machine) -> None:
        """Kill it."""
        self.loop.run(self._ended(machine))

    def execute(self, machine: Machine) -> None:
        """`true`, to its end."""
        self.loop.run(_executed(machine.control, TRUE))

    def three(self) -> list[Machine]:
        """Three at once, with a command in each."""

        async def one() -> Machine:
            machine = await self._begun()
            await _executed(machine.control, TRUE)
            return machine

        async def all_of_them() -> list[Machine]:
            return list(await asyncio.gather(one(), one(), one()))

        return self.loop.run(all_of_them())

    def received(self, machine: Machine, bytes_count: int) -> float:
        """MiB/s of a program's output."""
        command = Command(argv=("head", "-c", str(bytes_count), "/dev/zero"))
        began = time.perf_counter()
        self.loop.run(_executed(machine.control, command))
        return bytes_count / (1 << 20) / (time.perf_counter() - began)

    async def _begun(self) -> Machine:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir(parents=True)
        disk.copy(self.prepared.file(BLANK), folder / "disk.qcow2", UID)
        title = f"bare-{self.count}"
        plan = Blueprint(
            title=title,
            shape=self.shape,
            room=folder,
            confinement=Confinement(uid=UID),
            command_line=self.command_line,
            kernel=self.prepared.file(KERNEL),
            initrd=self.prepared.file(INITRD),
            disk=folder / "disk.qcow2",
            below=(self.prepared.file(BASE), self.prepared.file(DISK)),
            memory=self.memory,
            tap=f"albare{self.count}" if self.shape.network else None,
            state=self.prepared.file(STATE),
            program=which(PROGRAM) or PROGRAM,
        )
        born = give_birth(plan)
        assert born.state is not None
        vm = Vm(folder, title, born.begun.process, relay=_refuse, entropy=SystemEntropy(), child=born.begun.child)
        monitor = await vm.monitor()
        await monitor.load(born.state)
        await monitor.go()
        return Machine(folder=folder, vm=vm, control=await vm.control())

    async def _ended(self, machine: Machine) -> None:
        await machine.vm.kill()
        await machine.vm.close()
        shutil.rmtree(machine.folder)


async def _executed(control: Control, command: Command) -> None:
    async with control.running(command) as execution:
        await execution.close_input()
        async for _ in execution.output():
            pass
        assert await execution.wait() == 0


async def _refuse(stream: GuestStream) -> None:
    stream.close()


def timed_ms(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return (time.perf_counter() - began) * 1000, found


def first_command(client: Connection) -> str:
    """A sandbox, and a command in it."""
    sandbox: str = client.call("sandboxes.create", **SHAPE)["id"]
    executed(client, sandbox)
    return sandbox


def executed(client: Connection, sandbox: str) -> None:
    done = client.call("sandboxes.execute", sandbox=sandbox, argv=["true"], timeout_s=60)
    assert done["exit_code"] == 0, done


def clones(client: Connection, bare: Bare) -> None:
    ours, floor = [], []
    for number in range(RUNS + 1):
        took_ms, sandbox = timed_ms(lambda: first_command(client))
        sandbox_gone(client, sandbox)
        bare_ms, machine = timed_ms(bare.begin)
        bare.end(machine)
        if number >= 1:
            ours.append(took_ms)
            floor.append(bare_ms)
    show("vm: create to the end of a first exec, restored clone", ours, floor, reach="p50 <= 1500 ms")


def execs(client: Connection, bare: Bare, sandbox: str) -> None:
    machine = bare.begin()
    ours, floor = [], []
    for number in range(EXECS + 20):
        took_ms, _ = timed_ms(lambda: executed(client, sandbox))
        bare_ms, _ = timed_ms(lambda: bare.execute(machine))
        if number >= 20:
            ours.append(took_ms)
            floor.append(bare_ms)
    bare.end(machine)
    show("vm: round trip of one exec, warm", ours, floor, reach="p50 <= 10 ms")


def uploads(client: Connection, bare: Bare, daemon: DaemonProcess) -> None:
    machine = bare.begin()
    bare.received(machine, TOTAL_BYTES // 8)
    rates, floors = [], []
    for _ in range(UPLOADS):
        rates.append(uploaded(client, daemon))
        floors.append(bare.received(machine, TOTAL_BYTES))
    bare.end(machine)
    rate, ceiling = statistics.median(rates), statistics.median(floors)
    report(
        what=f"vm: artifact of {TOTAL_BYTES >> 20} MiB out of it",
        n=UPLOADS,
        mib_per_s=rate,
        ceiling_mib_per_s=ceiling,
        ratio=ceiling / rate,
        reach=">= 100 MiB/s, or the ceiling: a program's output over the bare control link",
    )


def uploaded(client: Connection, daemon: DaemonProcess) -> float:
    """MiB/s, from the first bytes that arrive to the event that the artifact is durable."""
    task = f"head -c {TOTAL_BYTES} /dev/zero | tr '\\\\0' a > big; echo $RANDOM$RANDOM$RANDOM > nonce; cat nonce >> big"
    wanted = {"task": f"{task}\n", "agent": "shell", "artifact_globs": ["big"], "repo": {}, "backend": "qemu"}
    job = client.call("jobs.create", **wanted)["id"]
    partials, began_at, looked_at = daemon.directory / "state" / "blobs" / "partial", 0.0, 0.0
    while True:
        if not began_at and any(each.stat().st_size > 1 << 18 for each in partials.iterdir()):
            began_at = time.time()
        if time.monotonic() - looked_at > 0.1:
            looked_at = time.monotonic()
            row = client.call("jobs.get", job=job)
            if row["state"] in FINAL:
                break
        time.sleep(0.005)
    assert row["state"] == "succeeded", row
    facts = client.call("events.list", limit=500, subject=job)["items"]
    stored_at = next(at(each) for each in facts if each["type"] == "job.artifact" and each["data"]["name"] == "big")
    return TOTAL_BYTES / (1 << 20) / (stored_at - began_at)


def private_mib(pid: int) -> float:
    """What a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def memories(client: Connection, bare: Bare, daemon: DaemonProcess) -> None:
    ours, floor = [], []
    for _ in range(MEMORY_RUNS):
        sandbox = first_command(client)
        machine = bare.begin()
        bare.execute(machine)
        time.sleep(SETTLED_S)
        found = first_process.noted(daemon.directory / "run" / "qemu" / "sandboxes" / sandbox)
        assert found is not None
        ours.append(private_mib(found.pid))
        floor.append(private_mib(machine.vm.process.pid))
        bare.end(machine)
        sandbox_gone(client, sandbox)
    report(
        what="vm: private memory of an idle clone of 512 MiB",
        n=MEMORY_RUNS,
        mib=statistics.median(ours),
        floor_mib=statistics.median(floor),
        ratio=statistics.median(ours) / statistics.median(floor),
        reach="<= 160 MiB",
    )


def forks(daemon: DaemonProcess, client: Connection, bare: Bare, origin: str) -> None:
    def into_three() -> list[str]:
        made = [each["id"] for each in client.call("sandboxes.fork", sandbox=origin, count=3)["items"]]
        with ThreadPoolExecutor(max_workers=3) as threads:
            list(threads.map(lambda sandbox: used_once(daemon, sandbox), made))
        return made

    ours, floor = [], []
    for _ in range(FORK_RUNS):
        took_ms, made = timed_ms(into_three)
        for each in made:
            sandbox_gone(client, each)
        bare_ms, machines = timed_ms(bare.three)
        for machine in machines:
            bare.end(machine)
        ours.append(took_ms)
        floor.append(bare_ms)
    show("vm: fork of a running sandbox into 3, a command in each", ours, floor, reach="p50 <= 5000 ms")


def used_once(daemon: DaemonProcess, sandbox: str) -> None:
    with daemon.client() as client:
        executed(client, sandbox)


def spares() -> None:
    """A daemon of its own, which holds one ready; the floor is that of a clone, and what greeting it alone takes."""
    with running_daemon(backends={"qemu": {"spares": 1}}) as daemon, daemon.client() as client:
        sandbox = first_command(client)
        bare = Bare(daemon, sandbox)
        ours, floor = [], []
        for _ in range(SPARE_RUNS):
            spare_is_quiet(daemon)
            took_ms, other = timed_ms(lambda: first_command(client))
            ours.append(took_ms)
            sandbox_gone(client, other)
            spare_is_quiet(daemon)
            floor.append(let_go_ms(bare))
    show("vm: create to the end of a first exec, from the spare", ours, floor, reach="p50 <= 150 ms")


def let_go_ms(bare: Bare) -> float:
    machine = bare.begin()
    bare.execute(machine)
    took_ms, _ = timed_ms(lambda: bare.loop.run(_let_go(machine)))
    bare.end(machine)
    return took_ms


async def _let_go(machine: Machine) -> None:
    """What no claim of a spare can do without: let it go, and run a command."""
    monitor = await machine.vm.monitor()
    await monitor.halt()
    await monitor.go()
    await _executed(machine.control, TRUE)


def spare_is_quiet(daemon: DaemonProcess) -> None:
    """Wait until one is ready, and held."""
    rooms, end = daemon.directory / "run" / "qemu" / "spares", time.monotonic() + QUIET_S_MAX
    while time.monotonic() < end:
        found = [process for room in rooms.iterdir() if (process := first_process.noted(room)) is not None]
        before = [cpu_s_of(each.pid) for each in found if each.lives()]
        time.sleep(QUIET_S)
        after = [cpu_s_of(each.pid) for each in found if each.lives()]
        if before and len(before) == len(after) and sum(after) - sum(before) < QUIET_CPU_S:
            return
    raise RuntimeError(f"no VM is held ready:\n{daemon.log()[-2000:]}")


def show(what: str, ours: list[float], floor: list[float], reach: str) -> None:
    p50, bare = statistics.median(ours), statistics.median(floor)
    p99 = percentile(ours, 99)
    report(what=what, n=len(ours), p50_ms=p50, p99_ms=p99, ratio=p50 / bare, floor_p50_ms=bare, reach=reach)


def main() -> None:
    need_root()
    if which(PROGRAM) is None:
        sys.stderr.write(f"{sys.argv[0]}: skipped: {PROGRAM} is not installed\n")
        return
    with running_daemon() as daemon, daemon.client() as client:
        sandbox = first_command(client)
        bare = Bare(daemon, sandbox)
        clones(client, bare)
        execs(client, bare, sandbox)
        memories(client, bare, daemon)
        forks(daemon, client, bare, sandbox)
        uploads(client, bare, daemon)
    spares()


if __name__ == "__main__":
    main()
