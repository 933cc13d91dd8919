"""One network interface, set up over rtnetlink: no program is run for it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEWLINK, _NEWADDR, _DELADDR, _GETADDR, _NEWROUTE = 16, 20, 21, 22, 24
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_ERROR, _DONE = 2, 3
_IFLA_ADDRESS, _IFLA_MTU = 1, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5
_UP = 1
_TABLE_MAIN, _BOOT, _UNIVERSE, _UNICAST = 254, 3, 0, 1
REPLY_BYTES_MAX = 64 << 10


def interface(mac: str | None = None) -> str | None:
    """The name of the machine's network interface that has a device, and this MAC if one is given; or None."""
    for name in sorted(os.listdir("/sys/class/net")):
        if os.path.exists(f"/sys/class/net/{name}/device") and mac in (None, _mac(name)):
            return name
    return None


def bears(name: str, address: str) -> bool:
    """Whether the interface has this address.  OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        link.bind((0, 0))
        return any(raw == socket.inet_aton(address) for _, _, raw in _addresses(link, socket.if_nametoindex(name)))


def set_up(
    name: str, *, mac: str | None, address: str, prefix_length: int, gateway: str | None, mtu: int | None
) -> None:
    """Give the interface this MAC and this address and no other, raise it, and route through the gateway.  OSError.

    Without a MAC it keeps its own.
    """
    index = socket.if_nametoindex(name)
    _sysctl(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "1")
    _sysctl(f"/proc/sys/net/ipv4/conf/{name}/arp_notify", "1")  # the host's table may hold whoever had the address
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        link.bind((0, 0))
        attributes = b"" if mac is None else _attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        if mtu is not None:
            attributes += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
        _ask(link, _NEWLINK, 0, _LINK.pack(0, 0, index, 0, _UP))
        _ask(link, _NEWLINK, 0, _LINK.pack(0, 0, index, 0, _UP) + attributes)
        for family, prefix, raw in _addresses(link, index):
            body = _ADDRESS.pack(family, prefix, 0, 0, index) + _attribute(_IFA_LOCAL, raw)
            _ask(link, _DELADDR, 0, body)
        _ask(link, _NEWLINK, 0, _LINK.pack(0, 0, index, _UP, _UP))
        own = socket.inet_aton(address)
        body = _ADDRESS.pack(socket.AF_INET, prefix_length, 0, _UNIVERSE, index)
        body += _attribute(_IFA_LOCAL, own) + _attribute(_IFA_ADDRESS, own)
        _ask(link, _NEWADDR, _REPLACE | _CREATE, body)
        if gateway is not None:
            route = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _BOOT, _UNIVERSE, _UNICAST, 0)
            route += _attribute(_RTA_GATEWAY, socket.inet_aton(gateway)) + _attribute(
                _RTA_OIF, struct.pack("=I", index)
            )
            _ask(link, _NEWROUTE, _REPLACE | _CREATE, route)


def _mac(name: str) -> str:
    with open(f"/sys/class/net/{name}/address", encoding="ascii") as file:
        return file.read().strip()


def _addresses(link: socket.socket, index: int) -> list[tuple[int, int, bytes]]:
    """Family, prefix length and value of each IPv4 address of the interface."""
    found: list[tuple[int, int, bytes]] = []
    body = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
    link.send(_HEADER.pack(_HEADER.size + len(body), _GETADDR, _REQUEST | _DUMP, 1, 0) + body)
    while True:
        reply = link.recv(REPLY_BYTES_MAX)
        at = 0
        while at + _HEADER.size <= len(reply):
            size, kind, _, _, _ = _HEADER.unpack_from(reply, at)
            if kind in (_DONE, _ERROR) or size < _HEADER.size:
                return found
            family, prefix, _, _, where = _ADDRESS.unpack_from(reply, at + _HEADER.size)
            value = _find(reply[at + _HEADER.size + _ADDRESS.size : at + size], _IFA_LOCAL)
            if where == index and value is not None:
                found.append((family, prefix, value))
            at += size + 3 & ~3


def _find(raw: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + 4 <= len(raw):
        size, kind = struct.unpack_from("=HH", raw, at)
        if kind == wanted:
            return raw[at + 4 : at + size]
        at += max(4, size + 3 & ~3)
    return None


def _ask(link: socket.socket, kind: int, flags: int, body: bytes) -> None:
    link.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body)
    reply = link.recv(REPLY_BYTES_MAX)
    (number,) = struct.unpack_from("=i", reply, _HEADER.size)
    if number:
        raise OSError(-number, f"rtnetlink {kind}: {os.strerror(-number)}")


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _sysctl(path: str, value: str) -> None:
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write(value)
