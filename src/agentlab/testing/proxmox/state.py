"""What a cluster consists of: nodes, VMs, snapshots, rule sets."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from agentlab.testing.proxmox.units import GIB, digest

LOCAL_ZONE = "localnetwork"


class Power(enum.Enum):
    """What the process of a VM does."""

    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"


class Absence(enum.Enum):
    """How a node that is offline shows itself to the others: status, reason, seconds until then."""

    NO_ROUTE = (595, "No route to host", 4.0)
    REFUSED = (595, "Connection refused", 0.005)
    SILENT = (596, "Connection timed out", 30.0)


@dataclass(slots=True, kw_only=True)
class Firewall:
    """The rules, options and sets of one VM, or of the datacenter."""

    options: dict[str, Any] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    ipsets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # set → address → its entry
    set_comments: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    group_comments: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """A VM's config as it was, and which volumes kept a copy."""

    config: dict[str, Any]
    description: str
    time: int
    parent: str | None = None
    vmstate: str | None = None
    power: Power = Power.STOPPED


@dataclass(slots=True, kw_only=True)
class Vm:
    """One VM: its config file and its process."""

    vmid: int
    node: str
    config: dict[str, Any]
    pending: dict[str, Any] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)  # option → whether by force; waits for the next stop
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    parent: str | None = None
    power: Power = Power.STOPPED
    pid: int = 0
    started: float = 0.0  # by the monotonic clock
    stopped: float | None = None
    booted: bool = True  # by its firmware, not from a saved memory
    firewall: Firewall = field(default_factory=Firewall)
    published: dict[str, Any] | None = None  # what /cluster/resources has learned of it

    @property
    def is_template(self) -> bool:
        """Whether it may be cloned by link, and not started."""
        return bool(self.config.get("template"))

    @property
    def running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self.power is not Power.STOPPED

    def digest(self) -> str:
        """The digest of its config file."""
        shot = {f"[{name}] {key}": value for name, each in self.snapshots.items() for key, value in each.config.items()}
        waiting = {f"[pending] {key}": value for key, value in self.pending.items()}
        removed = {f"[pending] delete {key}": 1 for key in self.removed}
        return digest({**self.config, **shot, **waiting, **removed, "parent": self.parent or ""})


@dataclass(slots=True, kw_only=True)
class Node:
    """One node.  `absence` None: it is online."""

    name: str
    address: str
    cores: int = 16
    memory: int = 64 * GIB
    absence: Absence | None = None
    interfaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    pending_interfaces: dict[str, dict[str, Any]] | None = None
    hidden_bridges: frozenset[str] = frozenset()
    fingerprint: str = ":".join(["00"] * 32)
    reload_error: str | None = None  # why its network cannot be reloaded


@dataclass(slots=True, kw_only=True)
class Sdn:
    """Zones, vnets and subnets; what was applied, and what is only written down."""

    zones: dict[str, dict[str, Any]] = field(default_factory=dict)
    vnets: dict[str, dict[str, Any]] = field(default_factory=dict)
    subnets: dict[str, dict[str, Any]] = field(default_factory=dict)
    applied: dict[str, dict[str, dict[str, Any]]] = field(
        default_factory=lambda: {"zones": {}, "vnets": {}, "subnets": {}}
    )


def bridge(index: int = 0, address: str | None = None) -> dict[str, Any]:
    """The settings of a plain bridge."""
    found: dict[str, Any] = {
        "type": "bridge", "method": "manual", "method6": "manual", "bridge_ports": "", "bridge_stp": "off",
        "bridge_fd": "0", "families": ["inet"], "priority": 3 + index, "autostart": 1, "active": 1,
    }  # fmt: skip
    if address is not None:
        found |= {"method": "static", "cidr": address, "address": address.partition("/")[0]}
        found["netmask"] = address.partition("/")[2]
    return found
