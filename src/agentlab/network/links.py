"""Bridge, veth pairs, taps and what lies in a sandbox's network namespace, by way of rtnetlink.  Blocking.

Ownership marks are interface aliases, written in the same system call that creates the link: `agentlab <installation>`
for the bridge, `agentlab <installation> <sandbox>` for a port.  A link without our mark is never changed.
"""

from __future__ import annotations

import errno
import struct
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from agentlab.model.network import Port
from agentlab.network import inet, rtnetlink
from agentlab.network.rtnetlink import CREATE, EXCLUSIVE, Message, RouteSocket, attribute, byte, nested

INSIDE = "eth0"  # the interface as the sandbox sees it
MARK = "agentlab"
_NAME_REUSE_TRIES_MAX = 50
_NAME_REUSE_WAIT_S = 0.01

_UP = 0x1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_IFALIAS, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 20, 28, 29
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_PEER = 1
_TUN_TYPE, _TUN_PERSIST, _TAP = 3, 6, 2
_PORT_GUARD, _PORT_LEARNING, _PORT_FLOOD, _PORT_MULTICAST_FLOOD, _PORT_ISOLATED = 5, 8, 9, 27, 33
_BRIDGE_FORWARD_DELAY, _BRIDGE_STP, _BRIDGE_MULTICAST_SNOOPING = 1, 5, 23
_LINK = struct.Struct("=BxHiII")

_GONE = frozenset({errno.ENODEV})
_PORT_OPTIONS = nested(
    _IFLA_LINKINFO,
    (
        attribute(_INFO_SLAVE_KIND, b"bridge"),
        nested(
            _INFO_SLAVE_DATA,
            (
                byte(_PORT_GUARD, 1),
                byte(_PORT_LEARNING, 0),
                byte(_PORT_FLOOD, 0),
                byte(_PORT_MULTICAST_FLOOD, 0),
                byte(_PORT_ISOLATED, 1),
            ),
        ),
    ),
)

# What a new namespace may hold beside loopback: devices that kernel modules put everywhere, harmless while down.
_FALLBACK = frozenset(
    {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
    | {"ifb0", "ifb1", "teql0", "bond0", "dummy0"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One interface as the kernel shows it."""

    index: int
    name: str
    up: bool
    mac: str
    mtu: int
    alias: str = ""
    master: int = 0
    peer: int = 0  # index of the veth's other end, in whichever namespace that lies
    kind: str = ""
    tap: bool = False  # frames come from whoever holds its descriptor; kind `tun` alone may also mean packets
    persistent: bool = False  # stays when that descriptor is closed
    isolated: bool = False
    learning: bool = True
    flooded: bool = True


def bridge_mark(installation: str) -> str:
    """The alias of our bridge."""
    return f"{MARK} {installation}"


def port_mark(installation: str, sandbox: str) -> str:
    """The alias of a port's host end."""
    return f"{MARK} {installation} {sandbox}"


def sandbox_of(alias: str, installation: str) -> str | None:
    """The sandbox that a port's alias names, or None if the mark is not ours."""
    words = alias.split(" ")
    return words[2] if len(words) == 3 and words[:2] == [MARK, installation] else None


def find(route: RouteSocket, name: str) -> Link | None:
    """The link of this name, or None."""
    return _ask(route, _named(rtnetlink.GETLINK, name))


def find_index(route: RouteSocket, index: int) -> Link | None:
    """The link of this index, or None."""
    return _ask(route, _indexed(rtnetlink.GETLINK, index))


def all_links(route: RouteSocket) -> list[Link]:
    """Every link of the socket's namespace."""
    return [_parse_link(*each) for each in route.dump(rtnetlink.GETLINK, _LINK.pack(0, 0, 0, 0, 0))]


def make_bridge(route: RouteSocket, name: str, mark: str, mac: str, gateway: IPv4Address, subnet: IPv4Network) -> None:
    """Create the bridge, marked, and give it its MAC and address; it stays down.  OSError if the name is taken."""
    data = (
        attribute(_BRIDGE_FORWARD_DELAY, 0),
        attribute(_BRIDGE_STP, 0),
        byte(_BRIDGE_MULTICAST_SNOOPING, 0),
    )
    info = nested(_IFLA_LINKINFO, (attribute(_INFO_KIND, b"bridge"), nested(_INFO_DATA, data)))
    route.carry_out(
        _named(rtnetlink.NEWLINK, name, info + _mac(mac), flags=CREATE | EXCLUSIVE),
        _named(rtnetlink.SETLINK, name, attribute(_IFLA_IFALIAS, mark)),
    )
    link = find(route, name)
    assert link is not None
    inet.add_address(route, link.index, gateway, subnet.prefixlen)


def set_up(route: RouteSocket, name: str, *, up: bool) -> None:
    """Bring a link up or down."""
    route.carry_out(_named(rtnetlink.SETLINK, name, change=_UP, state=_UP if up else 0))


def set_mac(route: RouteSocket, name: str, mac: str) -> None:
    """Give a link its MAC."""
    route.carry_out(_named(rtnetlink.SETLINK, name, _mac(mac)))


def remove(route: RouteSocket, link: Link) -> None:
    """Delete a link that bears our mark; quiet if it went meanwhile."""
    route.carry_out(_indexed(rtnetlink.DELLINK, link.index, quiet=_GONE))


def make_pair(route: RouteSocket, port: Port, mark: str, bridge: Link, namespace: int, mtu: int) -> None:
    """Create the port's two ends, both down: ours marked, on the bridge and isolated; theirs inside `namespace`.

    A name whose former bearer is still dying is waited for, half a second at most.
    """
    peer = _LINK.pack(0, 0, 0, 0, 0) + b"".join(
        (
            attribute(_IFLA_IFNAME, INSIDE),
            _mac(port.mac),
            attribute(_IFLA_MTU, mtu),
            attribute(_IFLA_NET_NS_FD, namespace),
        )
    )
    info = nested(_IFLA_LINKINFO, (attribute(_INFO_KIND, b"veth"), nested(_INFO_DATA, (nested(_VETH_PEER, (peer,)),))))
    create = attribute(_IFLA_MTU, mtu) + attribute(_IFLA_MASTER, bridge.index) + info
    for attempt in range(_NAME_REUSE_TRIES_MAX):
        try:
            route.carry_out(
                _named(rtnetlink.NEWLINK, port.link, create, flags=CREATE | EXCLUSIVE),
                _named(rtnetlink.SETLINK, port.link, attribute(_IFLA_IFALIAS, mark)),
                _named(rtnetlink.NEWLINK, port.link, _PORT_OPTIONS),
            )
            break
        except OSError as error:
            if error.errno != errno.EEXIST or attempt + 1 == _NAME_REUSE_TRIES_MAX or find(route, port.link):
                raise
            threading.Event().wait(_NAME_REUSE_WAIT_S)
    link = find(route, port.link)
    assert link is not None
    _pin(route, port, link, bridge)


def adopt(route: RouteSocket, port: Port, mark: str, tap: Link, bridge: Link, mtu: int) -> None:
    """Take a tap that a VM's process brought: marked, on the bridge and isolated.  One that was not there is down.

    By its index throughout, so that no other link of the name is taken for it.  FileNotFoundError if it vanished.
    """
    down = [] if tap.master == bridge.index else [_indexed(rtnetlink.SETLINK, tap.index, change=_UP)]
    join = attribute(_IFLA_MTU, mtu) + attribute(_IFLA_MASTER, bridge.index)
    try:
        route.carry_out(
            *down,
            _indexed(rtnetlink.SETLINK, tap.index, attribute(_IFLA_IFALIAS, mark)),
            _indexed(rtnetlink.SETLINK, tap.index, join),
            _indexed(rtnetlink.NEWLINK, tap.index, _PORT_OPTIONS),
        )
        _pin(route, port, tap, bridge)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        raise FileNotFoundError(error.errno, f"the tap {port.link} vanished") from error


def release(route: RouteSocket, tap: Link) -> None:
    """Give back a tap that bears our mark: down, off the bridge, unmarked; its VM keeps it, and nothing flows.

    One that was made persistent would outlive its VM, so it is deleted.  Quiet if it went meanwhile.
    """
    route.carry_out(
        _indexed(rtnetlink.SETLINK, tap.index, change=_UP, quiet=_GONE),
        _indexed(rtnetlink.SETLINK, tap.index, attribute(_IFLA_MASTER, 0), quiet=_GONE),
        _indexed(rtnetlink.SETLINK, tap.index, attribute(_IFLA_IFALIAS, b""), quiet=_GONE),
    )
    if tap.persistent:
        remove(route, tap)


def furnish(inside: RouteSocket, port: Port, gateway_mac: str) -> None:
    """Inside the namespace: loopback up, eth0 with address and default route, the gateway's MAC known."""
    set_up(inside, "lo", up=True)
    link = find(inside, INSIDE)
    assert link is not None
    inet.add_address(inside, link.index, port.address, port.prefix_length)
    set_up(inside, INSIDE, up=True)
    inet.default_route(inside, link.index, port.gateway)
    inet.neighbour(inside, link.index, port.gateway, gateway_mac)


def strangers(inside: RouteSocket, allowed: frozenset[str]) -> list[str]:
    """Interfaces in a sandbox's namespace that should not be there."""
    return sorted(
        each.name for each in all_links(inside) if each.name not in allowed and (each.up or each.name not in _FALLBACK)
    )


def _pin(route: RouteSocket, port: Port, link: Link, bridge: Link) -> None:
    """The bridge and the host know where this MAC and address live; they neither learn nor ask."""
    inet.bridge_neighbour(route, link.index, port.mac)
    inet.neighbour(route, bridge.index, port.address, port.mac)


def _ask(route: RouteSocket, message: Message) -> Link | None:
    try:
        answers = route.ask(message)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return _parse_link(*answers[0]) if answers else None


def _named(
    kind: int, name: str, attributes: bytes = b"", *, flags: int = 0, change: int = 0, state: int = 0
) -> Message:
    fixed = _LINK.pack(0, 0, 0, state, change)
    return Message(kind=kind, flags=flags, fixed=fixed, attributes=attribute(_IFLA_IFNAME, name) + attributes)


def _indexed(
    kind: int,
    index: int,
    attributes: bytes = b"",
    *,
    change: int = 0,
    state: int = 0,
    quiet: frozenset[int] = frozenset(),
) -> Message:
    return Message(kind=kind, fixed=_LINK.pack(0, 0, index, state, change), attributes=attributes, quiet=quiet)


def _mac(mac: str) -> bytes:
    return attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))


def _number(attributes: dict[int, bytes], kind: int, default: int = 0) -> int:
    return int.from_bytes(attributes[kind], "little") if kind in attributes else default


def _text(attributes: dict[int, bytes], kind: int) -> str:
    return attributes.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _parse_link(fixed: bytes, attributes: dict[int, bytes]) -> Link:
    _, _, index, flags, _ = _LINK.unpack(fixed)
    info = rtnetlink.parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
    options = rtnetlink.parse_attributes(info.get(_INFO_SLAVE_DATA, b""))
    kind = _text(info, _INFO_KIND)
    tun = rtnetlink.parse_attributes(info.get(_INFO_DATA, b"")) if kind == "tun" else {}
    return Link(
        index=index,
        name=_text(attributes, _IFLA_IFNAME),
        up=bool(flags & _UP),
        mac=attributes.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(attributes, _IFLA_MTU),
        alias=_text(attributes, _IFLA_IFALIAS),
        master=_number(attributes, _IFLA_MASTER),
        peer=_number(attributes, _IFLA_LINK),
        kind=kind,
        tap=_number(tun, _TUN_TYPE) == _TAP,
        persistent=_number(tun, _TUN_PERSIST) == 1,
        isolated=_number(options, _PORT_ISOLATED) == 1,
        learning=_number(options, _PORT_LEARNING, 1) == 1,
        flooded=_number(options, _PORT_FLOOD, 1) == 1,
    )
