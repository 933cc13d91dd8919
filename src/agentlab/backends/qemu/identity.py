"""Whom a VM shall be: decided when it is armed, told to its guest program when it starts."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from agentlab.backends.link.control import Identity, Nic
from agentlab.backends.qemu.layout import read_note, title, write_note
from agentlab.base.entropy import Entropy
from agentlab.model.sandbox import SandboxSpec

ARMED = "armed.json"
MTU_DEFAULT = 1500
ENTROPY_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What is noted in a VM's room between `arm` and `start`, and beyond."""

    name: str
    machine_id: str
    hostname: str
    mac: str | None
    address: str | None
    prefix_length: int | None
    gateway: str | None
    nameserver: str | None
    secrets_bytes: int
    restored: bool  # from prepared memory, whose root file system has been grown already
    tap: int | None  # its interface's index
    boot: str  # of the host
    link: str = ""  # the tap's name
    own: bool = False  # the memory is this sandbox's own: it needs fresh randomness and the time, and is itself already


def role_of(spec: SandboxSpec, *, restored: bool, tap: int | None, boot: str, own: bool = False) -> Role:
    """The machine's id is the same whenever this sandbox starts, and no other's."""
    port = spec.port
    return Role(
        name=spec.mark.sandbox,
        machine_id=hashlib.sha256(f"{title(spec.mark)}:{spec.mark.nonce}".encode()).hexdigest()[:32],
        hostname=spec.hostname,
        mac=None if port is None else port.mac,
        address=None if port is None else str(port.address),
        prefix_length=None if port is None else port.prefix_length,
        gateway=None if port is None else str(port.gateway),
        nameserver=spec.nameserver,
        secrets_bytes=spec.resources.secrets_bytes,
        restored=restored,
        tap=tap,
        boot=boot,
        link="" if port is None else port.link,
        own=own,
    )


def identity_of(role: Role, entropy: Entropy, now: float) -> Identity:
    """What the guest program is told; the random bytes are for this time only."""
    random, clock_ns = bytes.fromhex(entropy.token(ENTROPY_BYTES)), int(now * 1e9)
    if role.own:
        return Identity(name=role.name, entropy=random, clock_ns=clock_ns)
    nic = None
    if role.mac and role.address and role.gateway and role.prefix_length is not None:
        nic = Nic(
            mac=role.mac,
            address=IPv4Address(role.address),
            prefix_length=role.prefix_length,
            gateway=IPv4Address(role.gateway),
            mtu=mtu_of(role.link),
        )
    return Identity(
        name=role.name,
        entropy=random,
        clock_ns=clock_ns,
        machine_id=role.machine_id,
        boot_id=_as_uuid(entropy.token(16)) if role.restored else None,
        hostname=role.hostname,
        nic=nic,
        nameserver=role.nameserver,
        secrets_bytes=role.secrets_bytes,
        grow=not role.restored,
    )


def mtu_of(link: str) -> int:
    """How large a packet may be that passes the tap: as large as the network has made it."""
    try:
        return int(Path(f"/sys/class/net/{link}/mtu").read_text())
    except (OSError, ValueError):
        return MTU_DEFAULT


def note_role(room: Path, role: Role) -> None:
    """Write it down for `start`, which another daemon may carry out."""
    write_note(room / ARMED, asdict(role))


def noted_role(room: Path) -> Role | None:
    """What was written down; None if nothing was, or not by us."""
    found: dict[str, Any] | None = read_note(room / ARMED)
    try:
        return None if found is None else Role(**found)
    except TypeError:
        return None


def _as_uuid(text: str) -> str:
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:32]))
