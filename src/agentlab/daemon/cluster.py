"""The backend `proxmox`, composed from its settings."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from agentlab.backends.link.certificate import provide
from agentlab.backends.link.control import Relay
from agentlab.backends.link.guests import Guests
from agentlab.backends.link.invitations import FileStore, Invitations
from agentlab.backends.proxmox import check
from agentlab.backends.proxmox.backend import CAPABILITIES, ProxmoxBackend
from agentlab.backends.proxmox.card import Cards
from agentlab.backends.proxmox.certificate import Endpoint, Trust, fingerprint
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.placement import Policy, Strategy
from agentlab.backends.proxmox.plan import Addresses, ClusterPlan
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.records import Records
from agentlab.backends.proxmox.shelf import ImageOf, Shelf
from agentlab.backends.proxmox.transport import Token, Transport
from agentlab.backends.proxmox.vmids import VmidRange
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory
from agentlab.base.secret import Secret
from agentlab.daemon.cluster_network import ClusterNetwork, cluster_port
from agentlab.daemon.cluster_schema import ProxmoxSettings, addresses_of, endpoint_of, host_port
from agentlab.errors import PermissionMissing, SettingsInvalid
from agentlab.model.ids import InstallationId, SandboxId

TOKEN_BYTES_MAX = 4096
KEPT_PORTS = (22, 8006)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterParts:
    """What the daemon has of a cluster: its backend and its network.  `listen` is where guests are waited for."""

    backend: ProxmoxBackend
    network: ClusterNetwork
    guests: Guests
    listen: tuple[str, int]


async def make_cluster(
    settings: ProxmoxSettings,
    *,
    installation: InstallationId,
    state_dir: Path,
    image_of: ImageOf,
    relay: Relay,
    replayed: Callable[[SandboxId], Awaitable[None]],
    clock: Clock,
    entropy: Entropy,
) -> ClusterParts:
    """Everything of it, not yet listening and not yet asked.

    Raises SettingsInvalid, PermissionMissing, Unavailable, OSError.
    """
    plan, token = plan_of(settings), token_of(settings)
    records = Records(installation=installation, state=make_directory(state_dir))
    records.prepare()
    transport = Transport(endpoints(settings), trust_of(settings), token, clock=clock, entropy=entropy)
    cluster = Cluster(transport, plan, records, clock, grantee_of(settings, token.id))
    guests = Guests(
        invitations=Invitations(FileStore(make_directory(state_dir / "invitations")), clock, entropy),
        certificate=await provide(state_dir / "certificate", installation),
        relay=relay,
        replayed=replayed,
        clock=clock,
        entropy=entropy,
    )
    backend = ProxmoxBackend(
        cluster,
        guests,
        copies_of=Shelf(cluster, image_of, entropy, settings.template_nodes).copies,
        port_of=partial(cluster_port, installation, plan.addresses),
        look=lambda: check.look(cluster, CAPABILITIES),
        entropy=entropy,
        walls=await walls_of(settings, plan),
    )
    return ClusterParts(
        backend=backend,
        network=ClusterNetwork(Cards(cluster), plan.addresses, installation),
        guests=guests,
        listen=settings.listen,
    )


async def walls_of(settings: ProxmoxSettings, plan: ClusterPlan) -> list[tuple[str, int]]:
    """What no sandbox may reach and what answers whoever does: the cluster's API, ports by which hosts are kept.

    Names are looked up here, because a sandbox may not be able to; its own loopback is none of them.
    """
    found = [(str(host), port) for host in (plan.addresses.gateway, plan.link[0]) for port in KEPT_PORTS]
    for host, port in map(endpoint_of, settings.endpoints):
        try:
            answers = await asyncio.get_running_loop().getaddrinfo(host, port)
        except OSError:
            continue  # whoever asks the API will say so
        found += [(str(answer[4][0]), port) for answer in answers]
    return [
        (host, port)
        for host, port in dict.fromkeys(found)
        if isinstance(address := ip_address(host), IPv4Address) and not address.is_loopback
    ]


def endpoints(settings: ProxmoxSettings) -> list[Endpoint]:
    """As they are asked, in order."""
    return [Endpoint(host=host, port=port) for host, port in map(endpoint_of, settings.endpoints)]


def plan_of(settings: ProxmoxSettings) -> ClusterPlan:
    """What may be used of the cluster.  The settings are complete."""
    network, placement = settings.network, settings.placement
    assert network.subnet is not None
    assert network.addresses is not None
    assert settings.guest_address is not None
    first, last = addresses_of(network.addresses)
    gateway = network.gateway or network.subnet[1]
    return ClusterPlan(
        pool=settings.pool,
        storage=settings.storage,
        uploads=settings.uploads,
        bridge=settings.bridge,
        vlan=settings.vlan,
        vmids=VmidRange.parse(settings.vmids),
        policy=Policy(
            strategy=Strategy(placement.strategy),
            nodes=frozenset(placement.nodes),
            maintenance=frozenset(placement.maintenance),
            storages=(settings.storage,),
            full_clones=placement.full_clones,
            memory_overcommit=placement.memory_overcommit,
            cpu_overcommit=placement.cpu_overcommit,
        ),
        addresses=Addresses(
            network=network.subnet,
            first=first,
            last=last,
            gateway=gateway,
            nameserver=network.nameserver or gateway,
        ),
        link=host_port(settings.guest_address),
        templates=settings.templates,
        boot_s_max=settings.boot_s_max,
    )


def trust_of(settings: ProxmoxSettings) -> Trust:
    """Who answers for the cluster.  SettingsInvalid, PermissionMissing."""
    try:
        if settings.ca_file is None:
            return Trust(fingerprints=frozenset(map(fingerprint, settings.fingerprints)))
        trust = Trust(ca_pem=_read(settings.ca_file))
        trust.context()
    except ValueError as error:
        raise SettingsInvalid(problems=f"backends.proxmox: {error}") from error
    return trust


def token_of(settings: ProxmoxSettings) -> Token:
    """The token of `token_file`, which nobody else may read.  SettingsInvalid, PermissionMissing."""
    path = settings.token_file
    assert path is not None
    text = _read(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionMissing(
            path=path, cause="others may read or change it", what_to_do=f"chmod 600 {path}; it holds a secret."
        )
    try:
        return parse_token(text)
    except ValueError as error:
        raise SettingsInvalid(problems=f"{path}: {error}") from error


def parse_token(text: str) -> Token:
    """What a token file holds: USER@REALM!NAME=SECRET.  ValueError if it is something else."""
    name, equals, secret = text.strip().partition("=")
    if not equals or not secret:
        raise ValueError("it must hold USER@REALM!NAME=SECRET")
    return Token(id=name, secret=Secret(secret))


def grantee_of(settings: ProxmoxSettings, token: str) -> Grantee:
    """Who needs which rights where."""
    return Grantee(
        token=token,
        pool=settings.pool,
        templates=tuple(settings.templates.values()),
        storages=(settings.storage,),
        uploads=() if settings.templates else (settings.uploads,),
        bridge=settings.bridge,
        zone=settings.zone,
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(TOKEN_BYTES_MAX * 16).decode()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PermissionMissing(
            path=path, cause=cause, what_to_do="Make it readable for the daemon's user; see docs/howto/proxmox.md."
        ) from error
