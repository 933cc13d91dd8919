"""Disks of VMs: qcow2 overlays on files that nobody writes any more."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from agentlab.base.process import ProgramFailed, run, which

CREATE_S_MAX = 60
CHECK_S_MAX = 900
_CORRECTED = 3  # qemu-img check: errors were found and corrected, or only leaks remain


async def overlay(target: Path, below: Path, bytes_count: int, *, exists: bool = True) -> None:
    """An empty overlay on a qcow2 file, which need not exist yet if `exists` is False.  Raises ProgramFailed."""
    arguments = ["create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2"]
    words = [*arguments, *([] if exists else ["-u"]), str(target), str(bytes_count)]
    await run([which("qemu-img") or "qemu-img", *words], timeout_s=CREATE_S_MAX)


async def repair(disk: Path) -> None:
    """Check a disk that was in use when the host stopped.  ProgramFailed if it stays damaged."""
    program = which("qemu-img") or "qemu-img"
    arguments = ["check", "-q", "-f", "qcow2", "-r", "all", str(disk)]
    done = await run([program, *arguments], timeout_s=CHECK_S_MAX, check=False)
    if done.status not in (0, _CORRECTED):
        raise ProgramFailed("qemu-img check", done.status, (done.err or done.out).decode(errors="replace")[-300:])


def copy(source: Path, target: Path, uid: int) -> None:
    """A copy of a small file, owned by `uid` alone, that appears complete or not at all.  Raises OSError."""
    scratch = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, scratch)
    give(scratch, uid)
    scratch.replace(target)


def give(disk: Path, uid: int) -> None:
    """Let the process of this user alone read and write it."""
    os.chown(disk, uid, uid)
    disk.chmod(0o600)


def share(source: Path, target: Path) -> None:
    """The same read-only file under another name, which keeps it alive.  Where that cannot be, a pointer to it."""
    target.unlink(missing_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
        target.symlink_to(source)
