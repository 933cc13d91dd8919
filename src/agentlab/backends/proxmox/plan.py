"""What an administrator decided about the cluster: one value, made from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from agentlab.backends.proxmox.placement import Policy
from agentlab.backends.proxmox.vmids import VmidRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The addresses that sandboxes may have, which nobody else uses, and what surrounds them."""

    network: IPv4Network
    first: IPv4Address
    last: IPv4Address
    gateway: IPv4Address
    nameserver: IPv4Address

    def __post_init__(self) -> None:
        if self.first not in self.network or self.last not in self.network or self.first > self.last:
            raise ValueError(f"{self.first}-{self.last} is not a range within {self.network}")
        if self.first <= self.gateway <= self.last:
            raise ValueError(f"the gateway {self.gateway} is among the addresses of sandboxes")

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1

    def of(self, slot: int) -> IPv4Address:
        """Slot 1 has the first.  ValueError beyond the last."""
        if not 1 <= slot <= len(self):
            raise ValueError(f"slot {slot} is not within 1 … {len(self)}, the addresses {self.first}-{self.last}")
        return self.first + (slot - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """`link` is where guests find the daemon; `templates` names templates that an administrator made."""

    pool: str
    storage: str
    uploads: str  # the storage that takes images, by its content `import`
    bridge: str
    vlan: int | None
    vmids: VmidRange
    policy: Policy
    addresses: Addresses
    link: tuple[IPv4Address, int]
    on_link: tuple[IPv4Network, ...] = ()
    templates: Mapping[str, int] = field(default_factory=dict)
    clones_per_storage_max: int = 2  # one that holds the storage's lock, and one that waits for it
    boot_s_max: float = 180.0  # until the guest has called home
    enforce_s_max: float = 20.0  # until the firewall is seen to work; its service looks every 10 s
