"""The process of a VM: begun without rights, recognised again by its mark, ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends import first_process
from agentlab.backends.first_process import FirstProcess
from agentlab.backends.interface import NotOurs, Unavailable
from agentlab.backends.ownership import INSPECT_BY_HAND
from agentlab.backends.termination import all_ended
from agentlab.base.clock import sleep
from agentlab.base.process import start, which

STDERR = "stderr"
STDERR_BYTES_MAX = 256 << 10
KILL_S_MAX = 10.0
_BECOMING_S_MAX, _POLL_S = 1.0, 0.002
OOM_SCORE = 200  # like a container's: sandboxes go before the host's own programs

# Joins its control groups before it uses any memory.  A shell, because it starts in a millisecond.
_JOIN = (
    'echo "$1" > /proc/self/oom_score_adj; shift; ulimit -c 0; '
    'while [ "$1" != -- ]; do echo $$ > "$1" || exit 97; shift; done; shift; exec "$@"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a VM's process is kept in."""

    uid: int
    groups: tuple[Path, ...] = ()  # the folders of its control groups


def begin(argv: Sequence[str], room: Path, confinement: Confinement, descriptors: Sequence[int]) -> BegunProcess:
    """Start QEMU with no rights, no network but the tap that it inherits, and no way to gain either.

    What it complains of goes to a file in `room`.  Raises Unavailable if it cannot be started.
    """
    chain = [
        *("/bin/sh", "-c", _JOIN, "agentlab-vm", str(OOM_SCORE)),
        *(str(group / "cgroup.procs") for group in confinement.groups),
        "--",
        *powerless(confinement.uid),
        *argv,
    ]
    # Appending, so that emptying it leaves no hole.
    complaints = os.open(room / STDERR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = start(chain, stdout=complaints, stderr=complaints, pass_fds=descriptors, env={"PATH": os.defpath})
    except OSError as error:
        raise Unavailable(f"the VM's process cannot be started: {error.strerror}") from error
    finally:
        os.close(complaints)
    noted = first_process.note(room, child.pid)
    if noted is None:
        raise Unavailable(f"the VM's process ended at once: {complaint(room)}")
    return BegunProcess(child=child, process=noted)


def powerless(uid: int) -> list[str]:
    """What to put before a program so that it runs as this user, with no rights and an empty network."""
    rights = ("--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--")
    user = (which("setpriv") or "setpriv", f"--reuid={uid}", f"--regid={uid}", *rights)
    return [which("unshare") or "unshare", "--net", "--", *user]


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunProcess:
    """A process that we started ourselves, and must reap."""

    child: subprocess.Popen[bytes]
    process: FirstProcess


def living(room: Path) -> FirstProcess | None:
    """The process noted in `room`, while it lives."""
    noted = first_process.noted(room)
    return noted if noted is not None and noted.lives() else None


async def end(process: FirstProcess, title: str) -> None:
    """Kill it, after reading its mark back.  Quiet if it has ended.

    Raises NotOurs if the process bears no mark of this sandbox, Unavailable if it does not end.
    """
    if not process.lives():
        return
    if not await bears(process, title):
        raise NotOurs(f"process {process.pid} is not the VM {title}", INSPECT_BY_HAND)
    process.kill()
    if not await all_ended([process.pid], KILL_S_MAX) and process.lives():
        raise Unavailable(f"the VM's process {process.pid} does not end", "The host's disk may hang; look at dmesg.")


async def bears(process: FirstProcess, title: str) -> bool:
    """Whether the mark stands among the arguments of a living process; before it is QEMU, it is our own chain."""
    wanted, waited = f"guest={title}".encode(), 0.0
    while process.lives():
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        # For a moment, one that becomes another program shows no arguments at all.
        if any(words) or waited > _BECOMING_S_MAX:
            return wanted in words
        await sleep(_POLL_S)
        waited += _POLL_S
    return True


def complaint(room: Path, bytes_max: int = 2000) -> str:
    """The last that the process said on its standard error.  Keeps the file from growing without end."""
    try:
        with (room / STDERR).open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bytes_max))
            text = file.read(bytes_max).decode(errors="replace").strip()
            if size > STDERR_BYTES_MAX:
                file.truncate(0)
    except OSError:
        return ""
    return text
