"""A sandbox's first process, as noted when it was made and as found in /proc."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstProcess:
    """A process id is used again; with its start and the boot it is unique."""

    pid: int
    started: int  # clock ticks after the boot
    boot: str

    def lives(self) -> bool:
        """Whether this very process exists and has not ended."""
        return self.boot == boot_id() and _started(self.pid) == self.started

    def runs(self, program: str) -> bool:
        """Whether it has come to run `program`, or has ended; before that it is still the runtime's own code."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().startswith(os.fsencode(program)) or not self.lives()
        except OSError:
            return True

    def kill(self) -> None:
        """Kill it, and with it everything in its pid namespace.  Quiet if it has ended."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Looked at again through the descriptor's lifetime: the id cannot be used anew while we hold it.
            if self.lives():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    def companions(self) -> list[int]:
        """Ids of the other processes in its pid namespace."""
        mine = _pid_namespace(self.pid)
        others = (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
        return [pid for pid in others if pid != self.pid and mine is not None and _pid_namespace(pid) == mine]


def note(folder: Path, pid: int) -> FirstProcess | None:
    """Write down the process that the runtime has just made; None if it has ended already."""
    started = _started(pid)
    if started is None:
        return None
    found = FirstProcess(pid=pid, started=started, boot=boot_id())
    scratch = folder / ".init.json.new"
    scratch.write_text(json.dumps(asdict(found)))
    scratch.rename(folder / "init.json")
    return found


def noted(folder: Path) -> FirstProcess | None:
    """The process that was written down, whether or not it lives; None if there is none."""
    try:
        return FirstProcess(**json.loads((folder / "init.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _started(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _pid_namespace(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return None


@cache
def boot_id() -> str:
    """Which boot of the host this is."""
    # The same for as long as this process lives.
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
