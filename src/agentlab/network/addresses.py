"""Slot → address, MAC and link name; which subnet to use.  Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from agentlab.model.network import NetworkMode, Port

DEFAULT_SUBNET = IPv4Network("10.77.0.0/16")

# Tried in this order when the default clashes and none was asked for: corners of RFC 1918 that routers, container
# engines and VPNs seldom pick.  100.64.0.0/10 is left out on purpose: tailnets live there.
CANDIDATE_SUBNETS = (
    DEFAULT_SUBNET,
    IPv4Network("10.177.0.0/16"),
    IPv4Network("10.213.0.0/16"),
    IPv4Network("172.29.0.0/16"),
    IPv4Network("172.23.0.0/16"),
    IPv4Network("192.168.208.0/20"),
    IPv4Network("192.168.144.0/20"),
)

PREFIX_LENGTH_MIN, PREFIX_LENGTH_MAX = 8, 29
_PRIVATE = tuple(IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
LINK_NAME_LENGTH_MAX = 15  # IFNAMSIZ less its terminator

_INSTALLATION = re.compile(r"[a-z0-9]{4,13}")
_LINK = re.compile(r"al[a-z0-9]{4}-([0-9a-f]{4,8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Addresses that the host uses already, and what shows it, such as `route 10.0.0.0/8 dev wg0`."""

    network: IPv4Network
    what: str


def bridge_name(installation: str) -> str:
    """The bridge of this installation; at most 15 characters."""
    return f"al{_checked(installation)}"


def link_prefix(installation: str) -> str:
    """What the host's ends of all ports of this installation begin with."""
    return f"al{_checked(installation)[:4]}-"


def link_name(installation: str, slot: int) -> str:
    """The host's end of the port in this slot."""
    return f"{link_prefix(installation)}{slot:04x}"


def slot_of(link: str, installation: str) -> int | None:
    """The slot that a link's name tells, or None for a link that is not named like ours."""
    match = _LINK.fullmatch(link)
    return int(match[1], 16) if match and link.startswith(link_prefix(installation)) else None


def bridge_mac(installation: str) -> str:
    """The gateway's MAC: slot 0, so that it is known before the bridge exists."""
    return mac(installation, 0)


def mac(installation: str, slot: int) -> str:
    """A locally administered unicast MAC: two bytes tell the installation, three the slot."""
    digest = hashlib.sha256(_checked(installation).encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, digest[0], digest[1], *slot.to_bytes(3, "big")))


def gateway(subnet: IPv4Network) -> IPv4Address:
    """The host's own address on the bridge: the first of the subnet."""
    return subnet[1]


def capacity(subnet: IPv4Network) -> int:
    """How many slots there are: all addresses less network, gateway and broadcast."""
    return subnet.num_addresses - 3


def make_port(installation: str, subnet: IPv4Network, sandbox: str, slot: int, mode: NetworkMode) -> Port:
    """The addresses that belong to this slot.  ValueError outside 1 … capacity."""
    if not 1 <= slot <= capacity(subnet):
        raise ValueError(f"slot {slot} is not within 1 … {capacity(subnet)}, the capacity of {subnet}")
    return Port(
        sandbox=sandbox,
        link=link_name(installation, slot),
        mac=mac(installation, slot),
        address=subnet[1 + slot],
        gateway=gateway(subnet),
        prefix_length=subnet.prefixlen,
        mode=mode,
    )


def objection(subnet: IPv4Network) -> str | None:
    """Why a configured subnet cannot serve, in a sentence; None if it can."""
    if not any(subnet.subnet_of(each) for each in _PRIVATE):
        return f"{subnet} is not a private network: sandboxes would take addresses that belong to others"
    if not PREFIX_LENGTH_MIN <= subnet.prefixlen <= PREFIX_LENGTH_MAX:
        return f"{subnet} has a prefix length outside {PREFIX_LENGTH_MIN} … {PREFIX_LENGTH_MAX}"
    return None


def first_clash(subnet: IPv4Network, taken: Iterable[Taken]) -> Taken | None:
    """What of the host overlaps with `subnet`, the most specific first; None if it is free."""
    found = [each for each in taken if each.network.overlaps(subnet)]
    return max(found, key=lambda each: each.network.prefixlen, default=None)


def free_subnet(taken: Sequence[Taken], candidates: Sequence[IPv4Network] = CANDIDATE_SUBNETS) -> IPv4Network | None:
    """The first candidate that overlaps with nothing of the host; None if every one does."""
    return next((each for each in candidates if first_clash(each, taken) is None), None)


def _checked(installation: str) -> str:
    if _INSTALLATION.fullmatch(installation) is None:
        raise ValueError(f"{installation!r} is not an installation id: 4 to 13 lower-case letters and digits")
    return installation
