"""Disks of process guests: sparse images of ext4, so that a guest that fills its disk fills no more than that."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.process import run

COPY_S_MAX = 120.0
_SUPERBLOCK, _MAGIC = 1024, 0xEF53
# No journal: it would be most of a small disk, and a guest's end unmounts it cleanly however it comes.
_MAKE = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "--")


@dataclass(slots=True, kw_only=True)
class Disks:
    """`folder` is where snapshots of images lie; they go with it.  Raises ProgramFailed."""

    folder: Path

    async def provided(self, path: Path, size_bytes: int) -> None:
        """An image that can be mounted and is that large; what it holds stays, and what was no file system is empty."""
        known = _file_system_bytes(path)
        if known == 0:
            made(path, size_bytes)
            await run([*_MAKE, str(path)])
        elif known < size_bytes:
            os.truncate(path, size_bytes)
            await run(["resize2fs", "-f", str(path)])

    async def copied(self, source: Path, path: Path) -> None:
        """An image with the same contents; an empty one if there is nothing that a guest could have written."""
        if _file_system_bytes(source) == 0:
            path.write_bytes(b"")
        else:
            await _replaced(source, path)

    async def kept(self, path: Path, name: str) -> None:
        """A snapshot of an image, which must stand still."""
        self._kept(path, name).parent.mkdir(parents=True, exist_ok=True)
        await _replaced(path, self._kept(path, name))

    async def returned(self, path: Path, name: str) -> None:
        """An image goes back to a snapshot.  Its guest must not run."""
        await _replaced(self._kept(path, name), path)

    def dropped(self, path: Path, name: str) -> None:
        """A snapshot goes."""
        self._kept(path, name).unlink(missing_ok=True)

    def _kept(self, path: Path, name: str) -> Path:
        return self.folder / hashlib.sha256(str(path).encode()).hexdigest()[:32] / name


def made(path: Path, size_bytes: int) -> None:
    """An empty image."""
    with path.open("wb") as file:
        file.truncate(size_bytes)


def _file_system_bytes(path: Path) -> int:
    """How large the file system in an image is; 0 if it holds none."""
    try:
        with path.open("rb") as file:
            file.seek(_SUPERBLOCK)
            block = file.read(64)
    except FileNotFoundError:
        return 0
    if len(block) < 64 or struct.unpack_from("<H", block, 56)[0] != _MAGIC:
        return 0
    blocks, log_size = struct.unpack_from("<I", block, 4)[0], struct.unpack_from("<I", block, 24)[0]
    return int(blocks) << (10 + int(log_size))


async def _replaced(source: Path, target: Path) -> None:
    await run(["cp", "--sparse=always", "--reflink=auto", "--", str(source), str(target)], timeout_s=COPY_S_MAX)
