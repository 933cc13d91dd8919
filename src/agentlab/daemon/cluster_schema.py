"""What can be set of the backend `proxmox`: how the cluster is reached, and what of it may be used."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from agentlab.base.yaml import Flag, Number, Seconds, StrictModel, Whole

PORT_DEFAULT = 8006
VMID_MIN, VMID_MAX = 100, 999_999_999
ENDPOINT = re.compile(r"https://(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::(?P<port>\d{1,5}))?/?")
_FINGERPRINT = re.compile(r"(?:[0-9A-Fa-f]{2}:?){32}")
_STORAGE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]+")


def _endpoint(value: str) -> str:
    if ENDPOINT.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not an endpoint; write for example https://pve1.example.org:8006")
    return value


def _fingerprint(value: str) -> str:
    if _FINGERPRINT.fullmatch(value) is None:
        raise ValueError(
            f"{value!r} is not a SHA-256 fingerprint: 32 bytes in hexadecimal, as `pvenode cert info` shows"
        )
    return value


def _vmids(value: str) -> str:
    first, dash, last = value.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and VMID_MIN <= int(first) <= int(last) <= VMID_MAX):
        raise ValueError(f"{value!r} is not a range of VMIDs within {VMID_MIN} … {VMID_MAX}; write 20000-29999")
    return value


def _address(value: object) -> object:
    if value is None or isinstance(value, IPv4Address):
        return value
    try:
        return IPv4Address(str(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is not an IPv4 address") from error


def _network(value: object) -> object:
    if value is None or isinstance(value, IPv4Network):
        return value
    try:
        return IPv4Network(str(value))
    except ValueError as error:
        raise ValueError(f"{error}; write for example 10.80.0.0/24") from error


def _span(value: str | None) -> str | None:
    if value is not None:
        addresses_of(value)
    return value


def _host_port(value: str | None) -> str | None:
    if value is not None:
        host_port(value)
    return value


def _file(value: object) -> object:
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path")
    return Path(value)


def _storage(value: str) -> str:
    if _STORAGE.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not the name of a storage")
    return value


def addresses_of(text: str) -> tuple[IPv4Address, IPv4Address]:
    """`10.80.0.100-10.80.0.199` as its ends.  ValueError if it is none."""
    first, dash, last = text.partition("-")
    try:
        found = IPv4Address(first.strip()), IPv4Address(last.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} is not a range; write for example 10.80.0.100-10.80.0.199") from error
    if not dash or found[0] > found[1]:
        raise ValueError(f"{text!r} is not a range; write for example 10.80.0.100-10.80.0.199")
    return found


def host_port(text: str) -> tuple[IPv4Address, int]:
    """`10.80.0.2:8811` as address and port.  ValueError if it is none."""
    host, colon, port = text.rpartition(":")
    try:
        address = IPv4Address(host)
    except ValueError as error:
        raise ValueError(f"{text!r} is not ADDRESS:PORT") from error
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    return address, int(port)


def endpoint_of(text: str) -> tuple[str, int]:
    """Host and port of an endpoint's address."""
    found = ENDPOINT.fullmatch(text)
    assert found is not None, text
    return found["host"].strip("[]"), int(found["port"] or PORT_DEFAULT)


Endpoint = Annotated[str, AfterValidator(_endpoint)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
Storage = Annotated[str, AfterValidator(_storage)]
File = Annotated[Path | None, BeforeValidator(_file)]
Address = Annotated[IPv4Address | None, BeforeValidator(_address)]
Network = Annotated[IPv4Network | None, BeforeValidator(_network)]


class ClusterNetworkSettings(StrictModel):
    """Where sandboxes are on the cluster's network.  There is no DHCP: each gets an address of this range."""

    subnet: Network = Field(default=None, description="The network that the bridge leads to, such as 10.80.0.0/24.")
    addresses: Annotated[str | None, AfterValidator(_span)] = Field(
        default=None,
        description="The addresses of that network that sandboxes may have and nobody else uses, such as "
        "10.80.0.100-10.80.0.199.",
    )
    gateway: Address = Field(
        default=None, description="The way to the internet; by default the subnet's first address."
    )
    nameserver: Address = Field(default=None, description="Where sandboxes ask for names; by default the gateway.")


class PlacementSettings(StrictModel):
    """Which node a sandbox goes to."""

    strategy: Literal["spread", "pack"] = Field(
        default="spread", description="`spread`: the node with the most room; `pack`: the fullest that has enough."
    )
    nodes: tuple[str, ...] = Field(default=(), description="Only these nodes; all if empty.")
    maintenance: tuple[str, ...] = Field(default=(), description="No new sandboxes on these nodes.")
    memory_overcommit: Number = Field(
        default=1.0,
        ge=0.1,
        le=16,
        description="How much memory all VMs of a node together may be promised, per its own.",
    )
    cpu_overcommit: Number = Field(
        default=4.0, ge=0.1, le=64, description="How many processors all VMs of a node may be promised, per its own."
    )
    full_clones: Flag = Field(default=False, description="Copy the template's disk whole, also where it can be linked.")


class ProxmoxSettings(StrictModel):
    """VMs on a Proxmox VE cluster.  Used once `endpoints` are given."""

    endpoints: tuple[Endpoint, ...] = Field(
        default=(),
        max_length=16,
        description="The cluster's API, such as https://pve1.example.org:8006; several fail over.",
    )
    fingerprints: tuple[Fingerprint, ...] = Field(
        default=(), description="The SHA-256 fingerprints of the nodes' certificates.  Or give `ca_file`."
    )
    ca_file: File = Field(
        default=None, description="The cluster's own authority: a copy of /etc/pve/pve-root-ca.pem.  Or `fingerprints`."
    )
    token_file: File = Field(
        default=None, description="A file that holds USER@REALM!NAME=SECRET, readable by the daemon's user alone."
    )
    pool: str = Field(default="agentlab", min_length=1, description="The resource pool that all our VMs belong to.")
    storage: Storage = Field(default="local-lvm", description="The storage of sandboxes' disks and of templates.")
    uploads: Storage = Field(default="local", description="The storage that takes images, by its content `import`.")
    bridge: str = Field(default="vmbr0", min_length=1, description="The bridge or SDN vnet that sandboxes are on.")
    vlan: Whole | None = Field(default=None, ge=1, le=4094, description="The VLAN tag of their network cards.")
    zone: str = Field(default="localnetwork", description="The SDN zone of the bridge, for its privilege.")
    vmids: Annotated[str, AfterValidator(_vmids)] = Field(
        default="20000-29999", description="The VMIDs that are ours to give.  Nothing else may use them."
    )
    templates: dict[str, Whole] = Field(
        default={}, description="Templates that an administrator made, by the name of ours that they stand for: VMIDs."
    )
    template_nodes: tuple[str, ...] = Field(
        default=(),
        description="Where each template shall lie, if its storage is not shared; else on the roomiest node.",
    )
    network: ClusterNetworkSettings = Field(default=ClusterNetworkSettings(), description="Addresses of sandboxes.")
    placement: PlacementSettings = Field(default=PlacementSettings(), description="The choice of a node.")
    guest_listen: Annotated[str | None, AfterValidator(_host_port)] = Field(
        default=None,
        description="Where this daemon listens for its guests, with TLS: ADDRESS:PORT.  Unset: everywhere, at the port "
        "of `guest_address`.",
    )
    guest_address: Annotated[str | None, AfterValidator(_host_port)] = Field(
        default=None, description="The same as sandboxes reach it: ADDRESS:PORT of this machine on their network."
    )
    boot_s_max: Annotated[Seconds, Field(gt=0)] = Field(
        default=180.0, description="How long a VM may take from its start to calling home."
    )

    @property
    def listen(self) -> tuple[str, int]:
        """Where guests are listened for.  The settings are complete."""
        if self.guest_listen is not None:
            host, port = host_port(self.guest_listen)
            return str(host), port
        assert self.guest_address is not None
        return "0.0.0.0", host_port(self.guest_address)[1]

    @property
    def used(self) -> bool:
        """Whether there is a cluster at all."""
        return bool(self.endpoints)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.used:
            return self
        network = self.network
        needed = {
            "token_file": self.token_file,
            "network.subnet": network.subnet,
            "network.addresses": network.addresses,
            "guest_address": self.guest_address,
        }
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(f"with endpoints, these are needed too: {', '.join(missing)}")
        if bool(self.fingerprints) == (self.ca_file is not None):
            raise ValueError("give either fingerprints or ca_file: who answers for the cluster must be known")
        assert network.subnet is not None
        assert network.addresses is not None
        first, last = addresses_of(network.addresses)
        if first not in network.subnet or last not in network.subnet:
            raise ValueError(f"network.addresses: {network.addresses} is not within {network.subnet}")
        gateway = network.gateway or network.subnet[1]
        if first <= gateway <= last:
            raise ValueError(f"network.addresses: the gateway {gateway} is among the sandboxes' own")
        return self
