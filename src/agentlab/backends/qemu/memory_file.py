"""Memory of a machine as a file without a name, which becomes unchangeable once it is complete.

QEMU before 8.2 opens a memory file for writing even if all that it writes shall be its own.  A sealed file in memory
can be opened so, and still nobody can change it: not the process that was handed it, not even root.  The price: its
pages stay in memory, and what a clone touches first, where the file has a hole, takes a page here and one of its own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = "agentlab-memory"
_CHUNK_BYTES = 16 << 20
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def blank(bytes_count: int) -> int:
    """A descriptor of empty memory that everyone to whom it is handed may write, until it is sealed."""
    descriptor = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, bytes_count)
    os.fchmod(descriptor, 0o666)
    return descriptor


def seal(descriptor: int) -> None:
    """From here on, nobody can change it.  OSError (EBUSY) while a process still has it mapped for writing."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


def keep(descriptor: int, target: Path) -> int:
    """Write memory to a sparse file, durable on return; the bytes that are not holes.  Raises OSError."""
    with target.open("xb") as file:
        file.truncate(os.fstat(descriptor).st_size)
        written = copy(descriptor, file.fileno())
        os.fsync(file.fileno())
    return written


def load(source: Path) -> int:
    """A descriptor of sealed memory with the content of a file.  Raises OSError."""
    with source.open("rb") as file:
        descriptor = blank(os.fstat(file.fileno()).st_size)
        try:
            copy(file.fileno(), descriptor)
            seal(descriptor)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def copy(source: int, target: int) -> int:
    """Copy what is not a hole to an empty file; how many bytes that were.  Raises OSError."""
    copied = 0
    for start, end in _pieces(source):
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            count = os.sendfile(target, source, start, min(end - start, _CHUNK_BYTES))
            if count == 0:
                raise OSError(5, "a memory file is shorter than it was")
            start += count
            copied += count
    return copied


def _pieces(descriptor: int) -> Iterator[tuple[int, int]]:
    """Where there is data, as start and end."""
    position, size = 0, os.fstat(descriptor).st_size
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: no data beyond here
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position
