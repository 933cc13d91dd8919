"""A VM's process that lives: its monitor, its control link, and what is noted when it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from subprocess import Popen

from agentlab.backends.first_process import FirstProcess
from agentlab.backends.interface import BackendError, Gone, Unavailable
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control
from agentlab.backends.qemu import process
from agentlab.backends.qemu.layout import CONTROL, write_note
from agentlab.backends.qemu.monitor import Monitor
from agentlab.backends.qemu.sockets import reachable
from agentlab.backends.termination import all_ended
from agentlab.base.clock import sleep
from agentlab.base.entropy import Entropy
from agentlab.base.process import ended
from agentlab.base.tasks import TaskScope
from agentlab.base.text import one_line

CONSOLE, EXIT = "console", "exit.json"
CONSOLE_BYTES_KEPT = 64 << 10
LINK_S_MAX = 30.0  # for a guest that runs already
QUIT_S_MAX = 5.0
FROZEN_S = 20.0
_AGAIN_S = (0.2, 10.0)
OVER = {
    "shutdown": "",
    "guest-panicked": "the guest's kernel panicked",
    "internal-error": "the processor was brought into a state that cannot go on",
}
_ENDED_BY = {
    "guest-shutdown": "the guest shut down",
    "guest-reset": "the guest restarted, which ends a sandbox",
    "guest-panic": "the guest's kernel panicked",
}
Relay = Callable[[GuestStream], Awaitable[None]]


class Vm:
    """One process.  `close` lets go of it; the VM goes on.

    While it runs, the control link is kept: whoever in the guest connects to the guest link reaches `relay`, whether or
    not anybody here has asked for anything.
    """

    def __init__(
        self,
        room: Path,
        title: str,
        found: FirstProcess,
        *,
        relay: Relay,
        entropy: Entropy,
        child: Popen[bytes] | None = None,
    ) -> None:
        """`child` if we began the process ourselves; it is reaped."""
        self.room, self.title, self.process = room, title, found
        self._entropy = entropy
        self._relay = relay
        self._scope = TaskScope(title)
        self._monitor: Monitor | None = None
        self._control: Control | None = None
        self._meeting, self._linking = asyncio.Lock(), asyncio.Lock()
        self._changed = asyncio.Event()
        self._linked = False
        self.identified: str | None = None  # whom the guest was told to be
        if child is not None:
            self._scope.start(ended(child), "reap")
        self._scope.start(self._attend(), "attend")

    @property
    def lives(self) -> bool:
        """Whether its process does."""
        return self.process.lives()

    async def monitor(self) -> Monitor:
        """QEMU's monitor, connected to if need be.  Raises Gone, Unavailable."""
        async with self._meeting:
            if self._monitor is None:
                if not await process.bears(self.process, self.title):
                    raise Unavailable("the VM's process has not begun", "Try again in a moment.")
                self._monitor = await Monitor.connect(self.room, self._scope, self._changed.set)
                self._changed.set()
            return self._monitor

    async def control(self, within_s: float = LINK_S_MAX) -> Control:
        """The guest's end of things.  Unavailable, with the last of its console, if it does not answer in time."""
        async with self._linking:
            if self._control is None or self._control.closed:
                self._control = None
                with reachable(self.room, CONTROL) as socket:
                    self._control = await self._connected(socket, within_s)
                self.identified = self._control.hello.name or None
            return self._control

    def stay_linked(self) -> None:
        """Keep the control link from now on."""
        if not self._linked:
            self._linked = True
            self._scope.start(self._stay_linked(), "link")

    async def status(self) -> str:
        """QEMU's run state."""
        return await (await self.monitor()).status()

    async def console(self) -> str:
        """The last of what the guest's console showed."""
        with contextlib.suppress(BackendError):
            if text := await (await self.monitor()).console():
                await self._remember(text)
        return console_kept(self.room)

    async def flush(self, within_s: float, paths: Sequence[str] = ("/",), *, hold: bool) -> None:
        """Let the guest write back what it holds, so that nothing is lost when it is switched off.

        `paths` are where its disks are mounted.  With `hold` they stay still after that, for a while.
        Failing that, what it has not written back is lost, as on a machine whose power fails.
        """
        try:
            async with asyncio.timeout(within_s):
                control = await self.control(within_s)
                for path in paths:
                    await control.freeze(FROZEN_S, path)
                    if not hold:
                        await control.thaw(path)
        except (BackendError, TimeoutError):
            return

    async def wind_down(self, grace_s: float, flush_s: float, paths: Sequence[str]) -> None:
        """Let a running guest end: asked, waited for, and at the latest made to write back what it holds."""
        await self.flush(flush_s, paths, hold=False)
        if grace_s > 0:
            with contextlib.suppress(BackendError, TimeoutError):
                async with asyncio.timeout(grace_s):
                    await (await self.control(grace_s)).shutdown()
                    await self.over(grace_s)
        if self.lives:
            await self.flush(flush_s, paths, hold=True)

    async def over(self, within_s: float) -> bool:
        """Wait until the guest has ended by itself; False if it has not within this time."""
        return await all_ended([self.process.pid], within_s)

    async def end(self) -> None:
        """End the process, whatever the guest does.  Raises NotOurs, Unavailable."""
        if self.lives and self._monitor is not None:
            await self._monitor.quit()  # it writes back what it has of its disks' tables
            await all_ended([self.process.pid], QUIT_S_MAX)
        await process.end(self.process, self.title)

    async def kill(self) -> None:
        """End the process at once; its disk is not needed any more.  Raises NotOurs, Unavailable."""
        await process.end(self.process, self.title)

    async def close(self) -> None:
        """Let go of it."""
        await self._scope.close()
        if self._control is not None:
            await self._control.close()
        if self._monitor is not None:
            await self._monitor.close()
        self._control = self._monitor = None

    async def _connected(self, socket: Path, within_s: float) -> Control:
        async with TaskScope("connect") as scope:
            connecting = scope.start(self._attempt(socket, within_s), "connect")
            ending = scope.start(all_ended([self.process.pid], within_s + 1), "end")
            await asyncio.wait([connecting, ending], return_when=asyncio.FIRST_COMPLETED)
            found = connecting.result() if connecting.done() else None
        if isinstance(found, Control):
            return found
        if found is None:
            raise Gone(f"the VM ended before its guest program answered.  {await self._last_seen()}")
        raise Unavailable(
            f"{found.cause}.  {await self._last_seen()}",
            "See the console's tail in the cause.  If the machine is overloaded, try again; else rebuild the template.",
        ) from found

    async def _attempt(self, socket: Path, within_s: float) -> Control | BackendError:
        token = bytes.fromhex(self._entropy.token(32))
        try:
            return await Control.connect(socket, token=token, scope=self._scope, relay=self._relay, timeout_s=within_s)
        except BackendError as error:
            return error

    async def _last_seen(self) -> str:
        text = (await self.console()).rstrip()
        if not text:
            return f"Its console shows nothing.  {process.complaint(self.room)}".strip()
        last = text.splitlines()[-1]
        return f"Last seen on its console: {one_line(last, 200)}\nIts console's tail:\n{text[-2000:]}"

    async def _attend(self) -> None:
        """Read and note the reason once the guest has ended, and then end its process."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            with contextlib.suppress(BackendError):
                monitor = await self.monitor()
                if (status := await monitor.status()) in OVER:
                    await self._bury(monitor, status)
                    return

    async def _bury(self, monitor: Monitor, status: str) -> None:
        text = await self.console()
        detail = OVER[status] or _ENDED_BY.get(monitor.ended_by, "the guest ended")
        if "Kernel panic" in text:
            detail = "the guest's kernel panicked"
        write_note(self.room / EXIT, {"detail": detail})
        await monitor.quit()

    async def _stay_linked(self) -> None:
        wait_s = _AGAIN_S[0]
        while self.lives:
            try:
                control = await self.control()
                wait_s = _AGAIN_S[0]
                await control.wait_closed()
            except BackendError:
                wait_s = min(_AGAIN_S[1], wait_s * 2)
            await sleep(wait_s)

    async def _remember(self, text: str) -> None:
        file = self.room / CONSOLE
        kept = (console_kept(self.room) + text).encode()[-CONSOLE_BYTES_KEPT:]
        with contextlib.suppress(OSError):
            file.write_bytes(kept)


def console_kept(room: Path) -> str:
    """What was read of a console before."""
    try:
        return (room / CONSOLE).read_bytes().decode(errors="replace")
    except OSError:
        return ""
