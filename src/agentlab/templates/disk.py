"""Layers become one disk: merged where nobody else sees it, written as ext4, kept as qcow2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.files import free_bytes
from agentlab.base.process import ProgramFailed, run
from agentlab.base.units import format_bytes
from agentlab.errors import DiskFull
from agentlab.templates.isolation import MOUNT_OPTIONS_BYTES_MAX, StepFailed, in_user_namespace, namespaces

DISK_S_MAX = 900.0  # of each program that reads or writes a whole disk
LABEL = "agentlab"
SLACK_BYTES = 64 << 20
JOURNAL_BYTES = 16 << 20
INODES_PER_FILE = 2  # a sandbox that makes many small files meets the end of its bytes before that of its inodes
BYTES_PER_INODE_MIN, BYTES_PER_INODE_MAX = 4096, 16384
INODE_BYTES = 256
ALIGN_BYTES = 1 << 20
PROGRAMS = {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "qemu-img": "qemu-utils"}

# The merged tree exists in this namespace alone, and only while the script runs.
_MERGED = """\
set -eu
cd "$DISK_LAYERS"
mount -t overlay -o "$DISK_OVERLAY" overlay "$DISK_ROOT"
cd "$DISK_ROOT"
"""
# What the files hold in blocks of the new file system, one of several names counting once; the blocks that they take on
# the host's may be fewer, by compression.
_COUNT = """$2 > 1 && seen[$3]++ {next} {bytes += int(($1 + 4095) / 4096) * 4096} END {printf "%.0f %d", bytes, NR}"""
_MEASURE = _MERGED + f"find . -xdev -printf '%s %n %i\\n' | awk '{_COUNT}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Layers to be seen as one: `lowers` are names below `layers`, top first; `mount_point` an empty directory."""

    layers: Path
    lowers: Sequence[str]
    mount_point: Path

    def environment(self) -> Mapping[str, str]:
        """What the scripts read."""
        overlay = f"ro,lowerdir={':'.join(self.lowers)}" + (",userxattr" if in_user_namespace() else "")
        assert len(overlay) <= MOUNT_OPTIONS_BYTES_MAX, "EXTENDS_DEPTH_MAX and the steps of a recipe keep this short"
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "DISK_LAYERS": str(self.layers),
            "DISK_OVERLAY": overlay,
            "DISK_ROOT": str(self.mount_point),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a file system has to be."""

    size_bytes: int
    bytes_per_inode: int


def shape_of(used_bytes: int, files: int) -> Shape:
    """A file system that holds this much and little more: a sandbox's own share is added to it when it is made."""
    content = used_bytes + JOURNAL_BYTES + SLACK_BYTES
    # ext4 keeps 1/64 to 1/16 of itself for inodes, and its group descriptors and bitmaps besides.
    wanted = content // max(1, files * INODES_PER_FILE)
    ratio = max(BYTES_PER_INODE_MIN, min(BYTES_PER_INODE_MAX, wanted))
    size = content + content * INODE_BYTES // ratio + content // 50
    return Shape(size_bytes=-(-size // ALIGN_BYTES) * ALIGN_BYTES, bytes_per_inode=ratio)


def check_room(folder: Path, needed_bytes: int) -> None:
    """DiskFull if the file system of `folder` has less than this free for us."""
    if (free := free_bytes(folder)) < needed_bytes:
        raise DiskFull(path=folder, free=format_bytes(free), needed=format_bytes(needed_bytes))


async def measure(tree: Tree) -> Shape:
    """How large the tree's file system has to be.  Raises StepFailed."""
    done = await _run([*namespaces(), "bash", "-c", _MEASURE], tree.environment())
    used, files = (int(each) for each in done.split())
    return shape_of(used, files)


async def write_ext4(tree: Tree, disk: Path, shape: Shape, offset_bytes: int = 0) -> None:
    """Write the tree as a file system at this place of the raw file `disk`, which is made or extended, sparse.

    Raises StepFailed.
    """
    size_kib = shape.size_bytes // 1024
    with disk.open("ab") as file:
        file.truncate(offset_bytes + shape.size_bytes)
    extended = ["root_owner=0:0", "lazy_itable_init=0", "lazy_journal_init=0", "nodiscard"]
    extended += [f"offset={offset_bytes}"] if offset_bytes else []
    flags = ["-q", "-F", "-t", "ext4", "-L", LABEL, "-m", "0", "-i", str(shape.bytes_per_inode)]
    flags += ["-J", f"size={JOURNAL_BYTES >> 20}", "-E", ",".join(extended)]
    argv = [*namespaces(), "bash", "-c", _MERGED + 'exec mke2fs "$@"', "bash", *flags, "-d", str(tree.mount_point)]
    await _run([*argv, str(disk), f"{size_kib}k"], tree.environment())


async def read_back(disk: Path, path: str, offset_bytes: int = 0) -> bytes:
    """The content of a file inside a raw disk, read without mounting it.  Raises StepFailed if it is not there."""
    device = f"{disk}?offset={offset_bytes}" if offset_bytes else str(disk)
    done = await run(["debugfs", "-R", f"cat {path}", device], timeout_s=DISK_S_MAX, check=False)
    if not done.out:
        raise StepFailed(f"{path} could not be read back: {done.err.decode(errors='replace')[-300:].strip()}")
    return done.out


async def to_qcow2(raw: Path, disk: Path) -> None:
    """Convert; what is zero takes no space.  Raises StepFailed."""
    await _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-W", "-m", "4", str(raw), str(disk)], None)


async def virtual_bytes(disk: Path) -> int:
    """How large the disk looks to a guest.  Raises StepFailed if it is not a qcow2 file of its own."""
    found = json.loads(await _run(["qemu-img", "info", "--output=json", str(disk)], None))
    if found.get("format") != "qcow2" or found.get("backing-filename"):
        raise StepFailed(f"{disk} is not a qcow2 file that stands alone")
    return int(found["virtual-size"])


async def check(disk: Path) -> None:
    """Compare the disk's own tables.  Raises StepFailed with what is wrong with them."""
    await _run(["qemu-img", "check", "-q", "-f", "qcow2", str(disk)], None)


async def _run(argv: Sequence[str], env: Mapping[str, str] | None) -> bytes:
    try:
        return (await run(argv, env=env, timeout_s=DISK_S_MAX)).out
    except ProgramFailed as error:
        raise StepFailed(str(error), timed_out=error.status is None) from error
