"""Taps: a VM's network card, seen from the host.  They vanish with the last process that holds them open."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from agentlab.backends.interface import Unavailable
from agentlab.backends.qemu.sockets import control_of_interfaces, interface_index

DEVICE = "/dev/net/tun"
NAME_LENGTH_MAX = 15

_TUNSETIFF, _TUNSETVNETHDRSZ, _SIOCSIFNAME = 0x400454CA, 0x400454D8, 0x8923
_TAP, _NO_PI, _VNET_HDR = 0x0002, 0x1000, 0x4000  # frames with the card's own header: large segments pass whole
_VNET_HDR_BYTES = 12


def open_tap(name: str) -> int:
    """A new tap of this name, down and on no bridge, as a descriptor to hand to a VM's process.

    Raises Unavailable if the name is taken or the machine refuses, with what to do.
    """
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            f"{DEVICE} cannot be opened: {error.strerror}", "Load the module: modprobe tun.  The daemon must be root."
        ) from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", _encoded(name), _TAP | _NO_PI | _VNET_HDR))
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_BYTES))
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBUSY:
            remedy = "Another process holds it: see `ip -d link show`.  If it is an old VM of ours, destroy that."
            raise Unavailable(f"the tap {name} is in use", remedy) from error
        remedy = "The daemon needs CAP_NET_ADMIN; `agentlab doctor` tells what this machine lacks."
        raise Unavailable(f"the tap {name} was refused: {error.strerror}", remedy) from error
    return descriptor


def index_of(name: str) -> int | None:
    """The index of the interface of this name, if there is one."""
    try:
        return interface_index(name)
    except OSError:
        return None


def rename(old: str, new: str) -> None:
    """Give a tap that is down another name.  Raises OSError."""
    with control_of_interfaces() as control:
        fcntl.ioctl(control, _SIOCSIFNAME, struct.pack("16s16s", _encoded(old), _encoded(new)))


def _encoded(name: str) -> bytes:
    assert 0 < len(name) <= NAME_LENGTH_MAX, name
    return name.encode()
