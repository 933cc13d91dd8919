"""What an agent bridge on a plain host shall be, and why it cannot be so.  Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from agentlab.network import addresses

TABLE = "agentlab_host"  # in the families inet and bridge
MARK = "agentlab host-network"  # the bridge's alias: only a link that bears it is ever changed or removed

DEFAULT_BRIDGE = "agbr0"
DEFAULT_SUBNET = IPv4Network("10.80.0.0/24")
DEFAULT_GUEST_PORT = 8811

# Tailscale gives its nodes addresses of this range, and so may an uplink behind carrier-grade NAT.
TAILNET = IPv4Network("100.64.0.0/10")
TAILSCALE = "tailscale"  # how its interfaces' names begin

# Before Tailscale's own rules (5210 to 5270), which would send guests' packets, or the replies to them, into a
# tailnet; behind a VRF's (1000).  See docs/howto/host-network.md.
ROUTE_PRIORITY = 1270

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")  # what is written into files and rules as it is
_BRIDGE = re.compile(r"[A-Za-z][A-Za-z0-9_]{1,9}")  # what Proxmox VE takes as a bridge of a VM


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One agent bridge.  The host has the subnet's first address on it."""

    bridge: str
    subnet: IPv4Network
    uplink: str
    guest: IPv4Address  # where guests call home: the gateway, if the daemon is on this host
    guest_port: int
    nameserver: IPv4Address | None = None  # where guests ask for names, if not on the internet
    on_link: tuple[IPv4Network, ...] = ()  # public networks that the host is directly on
    by_bridge: bool = True  # whether the kernel can tell a frame by the bridge that it passes

    @property
    def gateway(self) -> IPv4Address:
        """The host's address on the bridge."""
        return addresses.gateway(self.subnet)

    @property
    def address(self) -> str:
        """The same with its prefix length."""
        return f"{self.gateway}/{self.subnet.prefixlen}"

    @property
    def mac(self) -> str:
        """The bridge's own, so that it does not change with the VMs that are plugged: locally administered."""
        digest = hashlib.sha256(f"{MARK} {self.bridge}".encode()).digest()
        return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why something cannot be done, and what helps."""

    cause: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of the host's policy routing: to the subnet, or from the bridge."""

    priority: int
    selector: tuple[str, str]  # ("to", network) or ("iif", bridge)
    action: tuple[str, ...]  # ("lookup", "main") or ("unreachable",)

    @property
    def words(self) -> tuple[str, ...]:
        """As `ip rule add` and `ip rule del` take it."""
        return ("pref", str(self.priority), *self.selector, *self.action)


def routing(spec: Spec) -> tuple[Rule, ...]:
    """To the guests by the bridge and from them by the main table, whatever tables others have put before it."""
    bridge = ("iif", spec.bridge)
    return (
        Rule(priority=ROUTE_PRIORITY, selector=("to", str(spec.subnet)), action=("lookup", "main")),
        Rule(priority=ROUTE_PRIORITY + 1, selector=bridge, action=("lookup", "main")),
        Rule(priority=ROUTE_PRIORITY + 2, selector=bridge, action=("unreachable",)),
    )


def objections(spec: Spec) -> list[Obstacle]:
    """What is wrong with it on any host."""
    found = []
    if _BRIDGE.fullmatch(spec.bridge) is None:
        found.append(
            Obstacle(
                cause=f"{spec.bridge!r} is not the name of a bridge",
                remedy="Take a letter and up to nine letters, digits or underscores, such as agbr0.",
            )
        )
    if spec.subnet.overlaps(TAILNET):
        why: str | None = f"{spec.subnet} is within {TAILNET}, where tailnets live"
    else:
        why = addresses.objection(spec.subnet)
    if why is not None:
        found.append(Obstacle(cause=why, remedy=f"Take a free private network: --subnet {DEFAULT_SUBNET}"))
    named = _INTERFACE.fullmatch(spec.uplink) is not None
    if not named or spec.uplink == spec.bridge or spec.uplink.startswith(TAILSCALE):
        found.append(
            Obstacle(
                cause=f"{spec.uplink!r} cannot be the way to the internet",
                remedy="Name the interface with the host's default route: --uplink vmbr0",
            )
        )
    found += _asked("the daemon", "--guest-address", spec, spec.guest)
    if spec.nameserver is not None:
        found += _asked("the name server", "--nameserver", spec, spec.nameserver)
    return found


def _asked(who: str, option: str, spec: Spec, address: IPv4Address) -> list[Obstacle]:
    if address in TAILNET:
        why = "is in a tailnet, which guests never reach"
    elif address.is_loopback or address.is_multicast or address.is_unspecified:
        why = "is not an address that another machine can reach"
    elif address in (spec.subnet.network_address, spec.subnet.broadcast_address):
        why = f"is not an address of a machine in {spec.subnet}"
    else:
        return []
    return [Obstacle(cause=f"{who} cannot be at {address}: it {why}", remedy=f"Give another address: {option}")]
