"""What a sandbox may reach, and the addresses that are its own."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

# What is never reachable from a sandbox in any mode: everything that is not the public internet.
BLOCKED_NETWORKS = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; tailnets
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; cloud metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking networks
        "224.0.0.0/4",
        "240.0.0.0/4",  # reserved, with the limited broadcast
    )
)


class NetworkMode(enum.StrEnum):
    """`off`: no network at all.  `nat`: the public internet through the host, and nothing else."""

    OFF = "off"
    NAT = "nat"


@dataclass(frozen=True, slots=True)
class Namespace:
    """Where a port ends that leads into a container: the network namespace of this process."""

    pid: int


@dataclass(frozen=True, slots=True)
class Tap:
    """Where a port ends that leads into a VM: an interface of the host whose frames are the guest's.

    It bears the port's link name and vanishes with the VM's process; it is made down and on no bridge.  The index is
    never given twice while the host runs, so that another VM's tap of the same name is not taken for this one.
    """

    index: int


@dataclass(frozen=True, slots=True)
class Unplugged:
    """A VM without any network device."""


@dataclass(frozen=True, slots=True)
class Card:
    """Where a port ends that leads into a VM of a cluster: its first network card, under the cluster's own firewall."""

    vmid: int


LinkEnd = Namespace | Tap | Unplugged | Card


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One sandbox's place on the agent bridge; every frame that leaves it must bear these addresses."""

    sandbox: str
    link: str  # the host's end, such as "alx3k2-002a"; at most 15 characters
    mac: str
    address: IPv4Address
    gateway: IPv4Address
    prefix_length: int
    mode: NetworkMode
