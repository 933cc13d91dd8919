"""VMs as the network sees them: a tap whose descriptor somebody holds, and behind it a guest that may send anything.

    tap = HeldTap("alx3k2-0001")              # on the host; QEMU would hold its descriptor
    end = Tap(tap.index)
    async with guest_behind(lab, tap, port) as place:
        lab.tcp(place, "1.1.1.10", 80)        # and any frame at all, through a packet socket on its eth0

The guest is a network namespace whose `eth0` is a tap as well; a thread carries frames from one tap to the other with
their virtio headers, so that large segments and missing checksums cross as they do between QEMU and its guest.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agentlab.model.network import LinkEnd, NetworkMode, Port, Tap, Unplugged
from agentlab.testing.netlab import NetLab, Place

_TUN = Path("/dev/net/tun")
# linux/if_tun.h: _IOW('T', 202, int), 203, 208; the flags of the interface, and what its reader can do.
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_CHECKSUM, _SEGMENTS_4, _SEGMENTS_6 = 0x01, 0x02, 0x04
VNET_HEADER = bytes(10)  # a whole frame with its checksum
_FRAME_BYTES_MAX = len(VNET_HEADER) + 65536 + 64


class HeldTap:
    """A tap in the calling thread's network namespace, down and on no bridge; it vanishes with `close`."""

    def __init__(self, name: str, *, offload: bool = True) -> None:
        """`offload`: its reader takes large segments, and frames without checksums."""
        self.name = name
        able = _CHECKSUM | _SEGMENTS_4 | _SEGMENTS_6 if offload else 0
        self.descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(self.descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(self.descriptor, _TUNSETOFFLOAD, able)
            self.index = socket.if_nametoindex(name)
        except BaseException:
            os.close(self.descriptor)
            raise

    def send(self, frame: bytes, header: bytes = VNET_HEADER) -> None:
        """What a guest does that sends this frame.  OSError while the tap is down, or if the header makes no sense."""
        os.write(self.descriptor, header + frame)

    def persist(self) -> None:
        """What a QEMU that was taken over can do: let the interface outlive it."""
        fcntl.ioctl(self.descriptor, _TUNSETPERSIST, 1)

    def close(self) -> None:
        """The VM ends.  May be repeated."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class TapRack:
    """The taps of several VMs, for ports as they come."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, HeldTap]] = {}  # by link: whose it is

    def end_of(self, port: Port) -> LinkEnd:
        """A fresh end; the same sandbox's former VM ends, another's keeps the name, so that is what is found."""
        if port.mode is NetworkMode.OFF:
            return Unplugged()
        owner, tap = self._held.get(port.link, (port.sandbox, None))
        if owner == port.sandbox or tap is None:
            if tap is not None:
                tap.close()
            tap = HeldTap(port.link)
            self._held[port.link] = (port.sandbox, tap)
        return Tap(tap.index)

    def close(self) -> None:
        """Every VM ends."""
        for _, tap in self._held.values():
            tap.close()


@asynccontextmanager
async def guest_behind(lab: NetLab, tap: HeldTap, port: Port) -> AsyncIterator[Place]:
    """A guest at the other end of `tap` that has given itself the port's addresses."""
    place = await lab.new_sandbox()
    inside = lab.run_in(place, lambda: HeldTap("eth0"))
    try:
        furnish = f"link set eth0 address {port.mac} up\naddr add {port.address}/{port.prefix_length} dev eth0\n"
        await lab.on(place, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        await lab.on(place, "ip", "-batch", "-", stdin=f"{furnish}route add default via {port.gateway}\n")
        stopped, stop = os.pipe()
        carrier = threading.Thread(target=_carry, args=(inside.descriptor, tap.descriptor, stopped), daemon=True)
        carrier.start()
        try:
            yield place
        finally:
            os.close(stop)
            await asyncio.to_thread(carrier.join)
            os.close(stopped)
    finally:
        inside.close()


def _carry(one: int, other: int, stopped: int) -> None:
    """Frames in both directions until the writing end of `stopped` is closed; what cannot be delivered is lost."""
    waiting = select.poll()
    for descriptor in (one, other, stopped):
        waiting.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in waiting.poll()}
        if stopped in ready:
            return
        for source, target in ((one, other), (other, one)):
            if source in ready and not _pass_on(source, target):
                waiting.unregister(source)


def _pass_on(source: int, target: int) -> bool:
    """Whether more may come."""
    try:
        frame = os.read(source, _FRAME_BYTES_MAX)
    except BlockingIOError:
        return True
    except OSError:  # the interface was deleted
        return False
    try:
        os.write(target, frame)
    except OSError:  # the other side is down, or its queue is full
        pass
    return True
