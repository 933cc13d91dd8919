"""The door to files that must not be half written, shared or followed astray."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put `content` at `path` so that a reader, or a crash, sees the old file or the new one, durable on return."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and creations inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, mode: int = 0o700) -> Path:
    """`path` as a directory with exactly `mode`, its parents made as needed.

    PermissionError for one that exists and is shared by everybody, such as /tmp: that mode is not ours to change.
    """
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & stat.S_ISVTX:
        raise PermissionError(errno.EPERM, "it is a directory that everybody shares", str(path))
    path.chmod(mode)
    return path


def free_bytes(path: Path) -> int:
    """Bytes that are free for us on the file system of `path`."""
    return shutil.disk_usage(path).free


def mounts_below(path: Path) -> list[Path]:
    """Mount points at or below `path`, deepest first, as this process sees them."""
    root = str(path.resolve()).rstrip("/")
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if point == root or point.startswith(root + "/"):
            found.append(Path(point))
    return sorted(found, key=lambda each: len(each.parts), reverse=True)


def remove_tree(path: Path) -> None:
    """Remove a directory that we made; refuses while anything is mounted in it, because that would be emptied too.

    Raises OSError (EBUSY) naming the mount.  Absence is success.
    """
    if (mounted := mounts_below(path)) and path.exists():
        raise OSError(16, f"refusing to delete: {mounted[0]} is still mounted", str(path))
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `path` as a lock while inside.  BlockingIOError at once if another process holds it, unless `wait`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
