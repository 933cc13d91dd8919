"""IPv4 on interfaces, and who lives where: addresses, default route, neighbours, by way of rtnetlink.  Blocking."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Network

from agentlab.network import rtnetlink
from agentlab.network.rtnetlink import CREATE, REPLACE, Message, RouteSocket, attribute

_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_PERMANENT, _NOARP, _MASTER_FLAG, _STICKY = 0x80, 0x40, 0x04, 0x40


def add_address(route: RouteSocket, index: int, address: IPv4Address, prefix_length: int) -> None:
    """Give an interface its address; quiet if it has it."""
    broadcast = IPv4Network(f"{address}/{prefix_length}", strict=False).broadcast_address
    route.carry_out(
        Message(
            kind=rtnetlink.NEWADDR,
            flags=CREATE | REPLACE,
            fixed=_ADDRESS.pack(socket.AF_INET, prefix_length, 0, 0, index),
            attributes=attribute(2, address.packed) + attribute(1, address.packed) + attribute(4, broadcast.packed),
        )
    )


def addresses_of(route: RouteSocket, index: int) -> set[tuple[IPv4Address, int]]:
    """IPv4 addresses with their prefix lengths that an interface has."""
    found = set()
    for fixed, attributes in route.dump(rtnetlink.GETADDR, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)):
        _, prefix_length, _, _, owner = _ADDRESS.unpack(fixed)
        local = attributes.get(2) or attributes.get(1)
        if owner == index and local is not None:
            found.add((IPv4Address(local), prefix_length))
    return found


def drop_address(route: RouteSocket, index: int, address: IPv4Address, prefix_length: int) -> None:
    """Take an address from an interface."""
    fixed = _ADDRESS.pack(socket.AF_INET, prefix_length, 0, 0, index)
    route.carry_out(Message(kind=rtnetlink.DELADDR, fixed=fixed, attributes=attribute(2, address.packed)))


def default_route(route: RouteSocket, index: int, gateway: IPv4Address) -> None:
    """Send what is for nobody near to the gateway, through this interface."""
    fixed = _ROUTE.pack(socket.AF_INET, 0, 0, 0, 254, 4, 0, 1, 0)  # table main, protocol static, universe, unicast
    attributes = attribute(5, gateway.packed) + attribute(4, index)
    route.carry_out(Message(kind=rtnetlink.NEWROUTE, flags=CREATE | REPLACE, fixed=fixed, attributes=attributes))


def neighbour(route: RouteSocket, index: int, address: IPv4Address, mac: str) -> None:
    """Fix the MAC of a neighbour, so that nobody needs to be asked for it."""
    fixed = _NEIGHBOUR.pack(socket.AF_INET, index, _PERMANENT, 0, 0)
    attributes = attribute(1, address.packed) + attribute(2, bytes.fromhex(mac.replace(":", "")))
    route.carry_out(Message(kind=rtnetlink.NEWNEIGH, flags=CREATE | REPLACE, fixed=fixed, attributes=attributes))


def bridge_neighbour(route: RouteSocket, index: int, mac: str) -> None:
    """Fix behind which of its ports a bridge finds a MAC; frames from elsewhere do not move it."""
    fixed = _NEIGHBOUR.pack(socket.AF_BRIDGE, index, _NOARP, _MASTER_FLAG | _STICKY, 0)
    attributes = attribute(2, bytes.fromhex(mac.replace(":", "")))
    route.carry_out(Message(kind=rtnetlink.NEWNEIGH, flags=CREATE | REPLACE, fixed=fixed, attributes=attributes))
