"""The OCI runtime: crun, runc or runsc, as a program that is called."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.interface import BackendError, Gone, Refused, Unavailable
from agentlab.backends.oci.bundle import OOM_SCORE_OF_COMMANDS
from agentlab.backends.oci.private import with_private_mounts
from agentlab.backends.oci.syscalls import MS_NODEV, MS_NOSUID, mount
from agentlab.base.process import ended, start
from agentlab.base.tasks import to_the_end
from agentlab.base.text import one_line

CALL_S_MAX = 60.0
KNOWN = ("crun", "runc", "runsc")
_MESSAGE_BYTES_MAX = 4000
_ABSENT = ("does not exist", "container not running", "is not running", "cannot exec in a stopped", "no such process")
# "fail startup": crun could not join the sandbox, before anything ran in it.
_PASSING = (
    "fail startup",
    "resource temporarily unavailable",
    "device or resource busy",
    "cannot allocate memory",
    "no space left",
)
_PASSING_REMEDY = "Try again; if it stays, free memory or disk space, or stop other sandboxes."


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime with its own state folder.  Every call is bounded and is not abandoned half-way."""

    program: str
    name: str  # one of KNOWN
    root: Path
    hidden: Path | None = None  # a hierarchy of control groups that crun must not see
    cgroups: bool = True
    stage: str = "/mnt"

    async def create(self, sandbox: str, bundle: Path, assemble: Callable[[], None]) -> int:
        """Make the container, held before its first instruction, in mounts that `assemble` makes; its process id."""
        pid_file = bundle / "pid"
        pid_file.unlink(missing_ok=True)
        await self._call(["create", "--bundle", str(bundle), "--pid-file", str(pid_file), sandbox], assemble)
        return int(pid_file.read_text())

    async def start(self, sandbox: str) -> None:
        """Let the first instruction run."""
        await self._call(["start", sandbox])

    async def pause(self, sandbox: str) -> None:
        """Freeze it."""
        await self._call(["pause", sandbox])

    async def resume(self, sandbox: str) -> None:
        """Let it go on."""
        await self._call(["resume", sandbox])

    async def delete(self, sandbox: str) -> None:
        """Kill whatever lives in it and forget it.  Quiet if it is unknown."""
        if (self.root / sandbox).exists():
            try:
                await self._call(["delete", "--force", sandbox])
            except Gone:
                pass

    def is_held(self, sandbox: str, bundle: Path) -> bool:
        """Whether a living container still waits for `start`."""
        if self.name == "runsc":
            return not (bundle / "started").exists()
        return (self.root / sandbox / "exec.fifo").exists()

    async def spawn(
        self,
        arguments: Sequence[str],
        log: int,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
        assemble: Callable[[], None] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start the runtime with these arguments; its messages go to the descriptor `log`."""
        argv = [self.program, "--root", str(self.root), "--log", f"/proc/self/fd/{log}"]
        if not self.cgroups and self.name == "crun":
            argv.append("--cgroup-manager=disabled")
        argv += arguments

        def begin() -> subprocess.Popen[bytes]:
            child = start(argv, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=(log, *pass_fds))
            if arguments[0] == "exec":
                # No runtime applies the score of the configuration to later processes; they inherit this one's.
                with suppress(ProcessLookupError, FileNotFoundError):  # it ended at once; its status tells why
                    Path(f"/proc/{child.pid}/oom_score_adj").write_text(str(oom_score(OOM_SCORE_OF_COMMANDS)))
            return child

        def begin_in_private() -> subprocess.Popen[bytes]:
            self._scene(assemble)
            return begin()

        try:
            if assemble is None and self.hidden is None and self.name == "crun":
                return begin()
            return await with_private_mounts(begin_in_private)
        except OSError as error:
            raise failure(error.strerror or str(error), f"{self.name} {arguments[0]}") from error

    def _scene(self, assemble: Callable[[], None] | None) -> None:
        if self.hidden is not None:
            # Covered rather than unmounted, which a user namespace may not do.
            mount("tmpfs", str(self.hidden), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4k")
        if assemble is not None:
            assemble()
        elif self.name != "crun":
            # runc enters the folder of the root before it joins a container, although it needs nothing there.
            mount("tmpfs", self.stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k")
            (Path(self.stage) / "root").mkdir()

    async def _call(self, arguments: Sequence[str], assemble: Callable[[], None] | None = None) -> None:
        await to_the_end(self._called(arguments, assemble))

    async def _called(self, arguments: Sequence[str], assemble: Callable[[], None] | None) -> None:
        log = os.memfd_create("log", os.MFD_CLOEXEC)
        try:
            child = await self.spawn(arguments, log, assemble=assemble)
            try:
                async with asyncio.timeout(CALL_S_MAX):
                    status = await ended(child)
            except TimeoutError:
                child.kill()
                await ended(child)
                raise Unavailable(f"{self.name} {arguments[0]} did not end within {CALL_S_MAX:g} s") from None
            if status != 0:
                raise failure(message(log) or f"status {status}", f"{self.name} {arguments[0]}")
        finally:
            os.close(log)


def oom_score(wanted: int) -> int:
    """`wanted`, or our own score where that is higher: without root none may be set below one's own."""
    return max(wanted, int(Path("/proc/self/oom_score_adj").read_text()))


def message(log: int) -> str:
    """What the runtime wrote to its log, as one line."""
    return one_line(os.pread(log, _MESSAGE_BYTES_MAX, 0).decode(errors="replace"), 600)


def failure(text: str, call: str) -> BackendError:
    """The error that a message of the runtime or the kernel amounts to."""
    lower, cause = text.lower(), f"{call}: {text}"
    if any(phrase in lower for phrase in _ABSENT):
        return Gone(cause, "The sandbox does not run; see its state with `agentlab sandbox show`.")
    if any(phrase in lower for phrase in _PASSING):
        return Unavailable(cause, _PASSING_REMEDY)
    return Refused(cause, "`agentlab doctor` tells what this machine lacks; the template may also be broken.")
