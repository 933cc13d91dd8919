"""Loop devices: a disk image as a block device."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTROL = Path("/dev/loop-control")
ATTEMPTS_MAX = 64  # two makers may be given the same free device; the loser asks again

_CTL_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_FLAG_AUTOCLEAR = 4
_MAJOR = 7
_CONFIG_BYTES, _INFO_OFFSET, _FLAGS_IN_INFO = 304, 8, 52  # struct loop_config; loop_info64 in it; its lo_flags


@contextmanager
def attached(image: Path, scratch: Path) -> Iterator[Path]:
    """A device node, made in `scratch`, of a loop device that is backed by `image`.

    The device lets go of the image by itself once this context is left and nothing has it mounted.  Raises OSError.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        node, device = _configured(backing, scratch)
    finally:
        os.close(backing)
    try:
        yield node
    finally:
        os.close(device)


def users_of(image: Path) -> list[str]:
    """Names of loop devices that are still backed by `image`, also if it was deleted."""
    wanted = {str(image), f"{image} (deleted)"}
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().rstrip("\n") in wanted:
                found.append(file.parent.parent.name)
        except OSError:
            continue  # it was let go while we looked
    return found


def _configured(backing: int, scratch: Path) -> tuple[Path, int]:
    config = bytearray(_CONFIG_BYTES)
    struct.pack_into("=II", config, 0, backing, 512)
    struct.pack_into("=I", config, _INFO_OFFSET + _FLAGS_IN_INFO, _FLAG_AUTOCLEAR)
    for _ in range(ATTEMPTS_MAX):
        with CONTROL.open() as control:
            number = fcntl.ioctl(control, _CTL_GET_FREE)
        # A node of our own: /dev may be a plain directory in which nobody makes new nodes.
        node = scratch / f"loop{number}"
        if not node.exists():
            os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(_MAJOR, number))
        device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _CONFIGURE, bytes(config))
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:
                raise
        else:
            return node, device
    raise OSError(errno.EBUSY, "no loop device is free")
