"""What the resident guest asks of the kernel that Python's os lacks.  All raise OSError."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence

_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_FIFREEZE, _FITHAW, _FITRIM = 0xC0045877, 0xC0045878, 0xC0185879
_EXT4_IOC_RESIZE_FS = 0x40086610
_BLKPG, _RESIZE_PARTITION = 0x1269, 3
_SECTOR_BYTES = 512
_FIRST_AT, _SECTORS_MAX = 446, (1 << 32) - 1  # of a table as PCs have it: its first entry, and what an entry can say
_PR_SET_NO_NEW_PRIVS = 38
_POWER_OFF = 0x4321FEDC
MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_NOATIME, MS_BIND = 2, 4, 32, 1024, 4096
_libc = ctypes.CDLL(None, use_errno=True)


def no_new_privileges() -> None:
    """Nothing that this process starts can gain privileges by set-user-ID programs."""
    _done(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    _done(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()), target)


def unmount(target: str) -> None:
    """umount2(2), without force."""
    _done(_libc.umount2(target.encode(), 0), target)


def power_off() -> None:
    """reboot(2): at once, without asking anybody."""
    _done(_libc.reboot(_POWER_OFF), "reboot")


def reseed(entropy: bytes) -> None:
    """Mix in entropy, count it, and let the kernel's generator begin anew with it."""
    descriptor = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _RNDADDENTROPY, struct.pack("=ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(descriptor, _RNDRESEEDCRNG)
    finally:
        os.close(descriptor)


def freeze(path: str) -> None:
    """Write out the file system that is mounted there, and hold every further change."""
    _on_directory(path, _FIFREEZE, struct.pack("i", 0))


def thaw(path: str) -> None:
    """Let changes go on; EINVAL if it is not frozen."""
    _on_directory(path, _FITHAW, struct.pack("i", 0))


def trim(path: str) -> None:
    """Tell the disk which blocks are free."""
    _on_directory(path, _FITRIM, struct.pack("=QQQ", 0, (1 << 64) - 1, 0))


def grow(path: str) -> int:
    """Let the ext4 that is mounted there fill its disk; how many bytes its device then has.

    A partition is made larger first, if it is the disk's only one.
    """
    device = os.stat(path).st_dev
    folder = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if os.path.exists(f"{folder}/partition"):
        _grow_partition(folder)
    device_bytes = _number(f"{folder}/size") * _SECTOR_BYTES
    found = os.statvfs(path)
    _on_directory(path, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", device_bytes // found.f_bsize))
    return device_bytes


@contextlib.contextmanager
def born_with_oom_score(score: int) -> Iterator[None]:
    """Children that are born meanwhile have this score, if ours is lower than 0; otherwise they have ours."""
    descriptor = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    own = os.pread(descriptor, 16, 0)
    try:
        if own.startswith(b"-"):
            os.pwrite(descriptor, str(score).encode(), 0)
        yield
    finally:
        if own.startswith(b"-"):
            os.pwrite(descriptor, own, 0)  # only a process with privileges may lower it again
        os.close(descriptor)


@contextlib.contextmanager
def children_of(uid: int, gid: int, groups: Sequence[int]) -> Iterator[None]:
    """Children that are born meanwhile belong to this user, without being copies of this process.

    A child that changes its user itself has to be forked for it, which takes thrice the time.  This process keeps its
    saved ids, with which it comes back; what it starts loses them, and all capabilities, with its exec.  Nobody can
    trace it meanwhile: a change of user makes a process undumpable.  It has one thread.
    """
    former = os.getgroups()
    os.setgroups(groups)
    os.setresgid(gid, gid, 0)
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(former)


def _grow_partition(folder: str) -> None:
    start, length = _number(f"{folder}/start"), _number(f"{folder}/size")
    disk = os.path.dirname(folder)
    wanted = min(_number(f"{disk}/size") - start, _SECTORS_MAX)
    if wanted <= length:
        return
    descriptor = os.open(f"/dev/{os.path.basename(disk)}", os.O_RDWR | os.O_CLOEXEC)
    try:
        table = bytearray(os.pread(descriptor, _SECTOR_BYTES, 0))
        (noted,) = struct.unpack_from("<I", table, _FIRST_AT + 8)
        if table[510:] != b"\x55\xaa" or noted != start or any(table[_FIRST_AT + 16 : 510]):
            return  # not a disk with this partition alone: not ours to change
        struct.pack_into("<I", table, _FIRST_AT + 12, wanted)  # for the next boot
        os.pwrite(descriptor, table, 0)
        os.fsync(descriptor)
        entry = struct.pack("=qqi64x64x4x", start * _SECTOR_BYTES, wanted * _SECTOR_BYTES, 1)
        kept = ctypes.create_string_buffer(entry, len(entry))
        order = struct.pack("@iiiP", _RESIZE_PARTITION, 0, len(entry), ctypes.addressof(kept))
        fcntl.ioctl(descriptor, _BLKPG, order)
    finally:
        os.close(descriptor)


def _number(path: str) -> int:
    with open(path, "rb") as file:
        return int(file.read())


def _on_directory(path: str, request: int, argument: bytes) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, request, argument)
    finally:
        os.close(descriptor)


def _done(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
