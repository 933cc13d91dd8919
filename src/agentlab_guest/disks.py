"""Disks of the machine: workspaces that come and go, freezing, growing."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Generator

from agentlab_guest import kernel
from agentlab_guest.orders import Mount
from agentlab_guest.reactor import Reactor, Timer

LOOK_S = 0.05  # between two looks for a disk that has not appeared
HOLDERS_NAMED_MAX = 5
_SUPERBLOCK, _MAGIC, _CLEAN = 1024, 0xEF53, 0x0001
_BLANK_BYTES = 128 << 10  # of a disk without content, from its beginning, all zero
_FSCK_CORRECTED = 3  # the highest status that leaves a sound file system
Work = Generator["list[str] | float", "tuple[int, str]", str]


class DiskFailed(Exception):
    """It could not be done, and why."""


_under_way: set[str] = set()  # serial numbers of disks that are being brought to their places


def mount(order: Mount) -> Work:
    """Bring the disk of that serial to its place: the commands to run, and the times to wait.

    A host that was lost meanwhile may order it again: there is one who makes a file system, and the other waits.
    """
    while order.serial in _under_way:
        yield LOOK_S
    _under_way.add(order.serial)
    try:
        return (yield from _mount(order))
    finally:
        _under_way.discard(order.serial)


def _mount(order: Mount) -> Work:
    waited = 0.0
    while (device := _by_serial(order.serial)) is None:
        if waited >= order.wait_s:
            raise DiskFailed(f"no disk with the serial number {order.serial} appeared within {order.wait_s:g} s")
        yield LOOK_S
        waited += LOOK_S
    if os.path.ismount(order.path):
        if os.stat(order.path).st_dev == os.stat(device).st_rdev:
            return "mounted"
        raise DiskFailed(f"another file system is mounted at {order.path}")
    state = _state(device)
    if state == "blank":
        label = ["-L", order.label] if order.label else []
        yield from _run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", *label, device], 0)
    elif state == "unclean":
        yield from _run(["e2fsck", "-p", device], _FSCK_CORRECTED)
    os.makedirs(order.path, exist_ok=True)
    kernel.mount(device, order.path, "ext4", kernel.MS_NODEV | kernel.MS_NOSUID | kernel.MS_NOATIME)
    return state


def unmount(path: str) -> str:
    """Unmount what is there; quiet if nothing is.  DiskFailed names who is in the way."""
    if not os.path.ismount(path):
        return ""
    try:
        kernel.unmount(path)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise DiskFailed(f"{path} is in use by {', '.join(_holders(path)) or 'a process'}") from None
        raise
    return ""


class Frozen:
    """File systems that stand still, each for a limited time."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._timers: dict[str, Timer] = {}

    def freeze(self, path: str, limit_s: float) -> str:
        """Freeze; freezing what is frozen makes its time longer."""
        if (timer := self._timers.pop(path, None)) is not None:
            timer.cancel()
        else:
            kernel.freeze(path)
        self._timers[path] = self._reactor.after(limit_s, lambda: self._overdue(path))
        return ""

    def thaw(self, path: str) -> str:
        """ "late" if it was thawed before, because its time was over."""
        timer = self._timers.pop(path, None)
        if timer is None:
            return "late"
        timer.cancel()
        kernel.thaw(path)
        return ""

    def thaw_all(self) -> None:
        """Whoever froze them is gone.  Without this, the first of us to write would stand still, and thaw nothing."""
        for path in list(self._timers):
            self.thaw(path)

    def _overdue(self, path: str) -> None:
        if self._timers.pop(path, None) is not None:
            kernel.thaw(path)


def _run(argv: list[str], status_max: int) -> Work:
    status, text = yield argv
    if status > status_max:
        raise DiskFailed(f"{argv[0]} ended with status {status}: {text}")
    return text


def _by_serial(serial: str) -> str | None:
    for name in sorted(os.listdir("/sys/block")):
        if serial in (_own_serial(name), _scsi_serial(name)) and os.path.exists(f"/dev/{name}"):
            return f"/dev/{name}"
    return None


def _own_serial(name: str) -> str | None:
    """Of a virtio disk."""
    try:
        with open(f"/sys/block/{name}/serial", encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _scsi_serial(name: str) -> str | None:
    """Of a SCSI disk: the unit serial number's page of its product data, behind four bytes that say which it is."""
    try:
        with open(f"/sys/block/{name}/device/vpd_pg80", "rb") as file:
            return file.read(256)[4:].decode("ascii", "replace").strip()
    except OSError:
        return None


def _state(device: str) -> str:
    """What the disk holds: blank, clean, unclean.  DiskFailed for anything else."""
    with open(device, "rb") as file:
        begin = file.read(_BLANK_BYTES)
    magic, state = struct.unpack_from("<HH", begin, _SUPERBLOCK + 56)
    if magic == _MAGIC:
        return "clean" if state & 3 == _CLEAN else "unclean"
    if any(begin):
        raise DiskFailed("the disk holds something that is not ext4")
    return "blank"


def _holders(path: str) -> list[str]:
    """Programs that have the file system open."""
    device = os.stat(path).st_dev
    found: list[str] = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and len(found) < HOLDERS_NAMED_MAX and _holds(pid, device):
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                found.append(f"{file.read().strip()} ({pid})")
    return found


def _holds(pid: str, device: int) -> bool:
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"]
    try:
        links += [f"/proc/{pid}/fd/{each}" for each in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    for link in links:
        try:
            if os.stat(link).st_dev == device:
                return True
        except OSError:
            continue
    return False
