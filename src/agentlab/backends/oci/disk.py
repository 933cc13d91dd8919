"""The disk of a sandbox: a sparse ext4 image, so that the kernel enforces its size."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from agentlab.base.files import make_directory
from agentlab.base.process import ProgramFailed, run, which

FORMAT_S_MAX = 120
BLANKS_KEPT_MAX = 16  # sizes of which an empty image is kept
CHECK_S_MAX = 900  # a full check of a large image after a crash of the host

_BLOCK = 4096
# A disposable disk needs no journal: after a crash of the host it is checked before its next mount.
_FORMAT = ("-q", "-F", "-b", str(_BLOCK), "-m", "0", "-O", "^has_journal,^resize_inode,sparse_super2")
_EXTENDED = "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,root_owner=0:0"
_SUPERBLOCK, _MAGIC, _STATE_CLEAN = 1024, 0xEF53, 1


async def blank(folder: Path, bytes_count: int) -> Path:
    """An empty formatted image of this size, made once and kept in `folder`; copies of it are cheap.

    Raises ProgramFailed if mkfs.ext4 is missing or fails, OSError if the disk is full.
    """
    finished = folder / f"blank-{bytes_count // _BLOCK}.img"
    if finished.exists():
        return finished
    make_directory(folder)
    scratch = folder / f".{finished.name}.{os.getpid()}.{id(finished)}.new"
    try:
        with scratch.open("wb") as file:
            file.truncate(bytes_count // _BLOCK * _BLOCK)
        await run([which("mkfs.ext4") or "mkfs.ext4", *_FORMAT, "-E", _EXTENDED, str(scratch)], timeout_s=FORMAT_S_MAX)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.rename(finished)
        _forget_oldest(folder, finished)
    finally:
        scratch.unlink(missing_ok=True)
    return finished


def _forget_oldest(folder: Path, newest: Path) -> None:
    # Anyone who may ask for a sandbox may ask for another size each time.
    kept = sorted(
        (file for file in folder.glob("blank-*.img") if file != newest), key=lambda file: file.stat().st_mtime
    )
    for file in kept[: -(BLANKS_KEPT_MAX - 1)]:
        file.unlink(missing_ok=True)


def clone(source: Path, target: Path) -> None:
    """Copy a sparse image to `target`, which appears complete or not at all.  Raises OSError."""
    scratch = target.with_name(f".{target.name}.new")
    scratch.unlink(missing_ok=True)
    with source.open("rb") as reader, scratch.open("xb") as writer:
        os.fchmod(writer.fileno(), 0o600)
        _copy_sparsely(reader.fileno(), writer.fileno())
    scratch.rename(target)


def is_clean(image: Path) -> bool:
    """Whether the file system was unmounted in order.  ValueError if the image holds no ext4 at all."""
    with image.open("rb") as file:
        file.seek(_SUPERBLOCK)
        block = file.read(64)
    magic, state = struct.unpack_from("<HH", block, 56) if len(block) == 64 else (0, 0)
    if magic != _MAGIC:
        raise ValueError(f"{image} holds no file system; the host stopped before it was written")
    return bool(state == _STATE_CLEAN)


async def repair(image: Path) -> None:
    """Check an image that was not unmounted in order, and repair what can be.  ProgramFailed if it stays damaged."""
    program = which("e2fsck") or "e2fsck"
    done = await run([program, "-f", "-y", str(image)], timeout_s=CHECK_S_MAX, check=False)
    if done.status & ~3:  # 1 and 2: errors were corrected
        raise ProgramFailed("e2fsck", done.status, done.err.decode(errors="replace")[-300:])


def _copy_sparsely(source: int, target: int) -> None:
    end = os.fstat(source).st_size
    os.ftruncate(target, end)
    position = 0
    while position < end:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: no data beyond here
        position = os.lseek(source, start, os.SEEK_HOLE)
        while start < position:
            copied = os.copy_file_range(source, target, position - start, start, start)
            if copied == 0:
                return
            start += copied
