"""What an administrator sees of a cluster before set-up.  Only reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentlab.backends.proxmox import encode, lenient
from agentlab.backends.proxmox.answers import ProxmoxError
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.transport import Transport

ACCESS_PORTS = (8006, 22)  # of the nodes: without them nobody gets in any more


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenToken:
    """A token of the user: `expire` in seconds since the epoch, 0 for never."""

    separated: bool
    expire: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenStorage:
    """A storage as configured."""

    type: str
    content: tuple[str, ...]
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFirewall:
    """The datacenter's.  `lets_in`: an administrator has said who may reach the nodes."""

    enabled: bool
    policy_in: str = ""
    lets_in: bool = False
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that decides about the steps.  The defaults are those of a cluster on which nothing was done yet.

    `entries` are (path, user or token, role) that hold for what is below the path, too; `bridges` are those of each
    node that is online; `vms` are the VMIDs with whether each is a template.
    """

    version: str
    now: float
    permissions: Mapping[str, object] = field(default_factory=dict)
    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)
    users: Mapping[str, bool] = field(default_factory=dict)  # whether it may act: enabled and not expired
    tokens: Mapping[str, SeenToken] = field(default_factory=dict)  # of the user, by name
    pools: frozenset[str] = frozenset()
    entries: frozenset[tuple[str, str, str]] = frozenset()
    storages: Mapping[str, SeenStorage] = field(default_factory=dict)
    bridges: Mapping[str, frozenset[str]] = field(default_factory=dict)
    vnets: Mapping[str, str] = field(default_factory=dict)  # the zone of each
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of each node's certificate
    firewall: SeenFirewall = field(default_factory=lambda: SeenFirewall(enabled=False))
    vms: Mapping[int, bool] = field(default_factory=dict)

    @property
    def major(self) -> int:
        """The major version; 0 if it cannot be read."""
        head = self.version.partition(".")[0]
        return int(head) if head.isdigit() else 0


async def see(transport: Transport, grantee: Grantee, now: float) -> Seen:
    """Ask the cluster.  Raises ProxmoxError."""
    version = lenient.row(await transport.call("GET", "/version"))
    accounts = lenient.rows(await transport.call("GET", "/access/users"))
    users = {lenient.text(each, "userid"): _active(each, now) for each in accounts}
    nodes = lenient.rows(await transport.call("GET", "/nodes"))
    return Seen(
        version=lenient.text(version, "version"),
        now=now,
        permissions=lenient.row(await transport.call("GET", "/access/permissions")),
        roles=await _roles(transport),
        users=users,
        tokens=await _tokens(transport, grantee.user) if grantee.user in users else {},
        pools=frozenset(lenient.text(each, "poolid") for each in lenient.rows(await transport.call("GET", "/pools"))),
        entries=await _entries(transport),
        storages=await _storages(transport),
        bridges={
            lenient.text(each, "node"): await _bridges(transport, lenient.text(each, "node"))
            for each in nodes
            if lenient.text(each, "status") == "online"
        },
        vnets=await _vnets(transport),
        fingerprints={
            lenient.text(each, "node"): lenient.text(each, "ssl_fingerprint")
            for each in nodes
            if lenient.text(each, "ssl_fingerprint")
        },
        firewall=await _firewall(transport),
        vms={
            lenient.integer(each, "vmid"): lenient.truth(each, "template")
            for each in lenient.rows(await transport.call("GET", "/cluster/resources", {"type": "vm"}))
        },
    )


def _active(user: lenient.Row, now: float) -> bool:
    expire = lenient.integer(user, "expire")
    return lenient.truth(user, "enable", default=True) and not 0 < expire < now


async def _roles(transport: Transport) -> dict[str, frozenset[str]]:
    return {
        lenient.text(each, "roleid"): frozenset(filter(None, lenient.text(each, "privs").split(",")))
        for each in lenient.rows(await transport.call("GET", "/access/roles"))
    }


async def _tokens(transport: Transport, user: str) -> dict[str, SeenToken]:
    rows = lenient.rows(await transport.call("GET", encode.path("access", "users", user, "token")))
    return {
        lenient.text(each, "tokenid"): SeenToken(
            separated=lenient.truth(each, "privsep", default=True), expire=lenient.integer(each, "expire")
        )
        for each in rows
    }


async def _entries(transport: Transport) -> frozenset[tuple[str, str, str]]:
    return frozenset(
        (lenient.text(each, "path"), lenient.text(each, "ugid"), lenient.text(each, "roleid"))
        for each in lenient.rows(await transport.call("GET", "/access/acl"))
        if lenient.truth(each, "propagate", default=True) and lenient.text(each, "type") in ("user", "token")
    )


async def _storages(transport: Transport) -> dict[str, SeenStorage]:
    return {
        lenient.text(each, "storage"): SeenStorage(
            type=lenient.text(each, "type"),
            content=tuple(sorted(filter(None, lenient.text(each, "content").split(",")))),
            digest=lenient.text(each, "digest"),
        )
        for each in lenient.rows(await transport.call("GET", "/storage"))
    }


async def _bridges(transport: Transport, node: str) -> frozenset[str]:
    rows = lenient.rows(await transport.call("GET", encode.path("nodes", node, "network")))
    return frozenset(
        lenient.text(each, "iface") for each in rows if lenient.text(each, "type") in ("bridge", "OVSBridge")
    )


async def _vnets(transport: Transport) -> dict[str, str]:
    try:
        rows = lenient.rows(await transport.call("GET", "/cluster/sdn/vnets"))
    except ProxmoxError as error:
        if error.status != 501:  # a cluster without SDN
            raise
        return {}
    return {lenient.text(each, "vnet"): lenient.text(each, "zone") for each in rows}


async def _firewall(transport: Transport) -> SeenFirewall:
    options = lenient.row(await transport.call("GET", "/cluster/firewall/options"))
    enabled = lenient.truth(options, "enable")
    return SeenFirewall(
        enabled=enabled,
        policy_in=lenient.text(options, "policy_in"),
        lets_in=enabled or await _lets_in(transport),
        digest=lenient.text(options, "digest"),
    )


async def _lets_in(transport: Transport) -> bool:
    """Whether the nodes' own ports would stay open to somebody: the set `management`, or a rule for each of them."""
    sets = lenient.rows(await transport.call("GET", "/cluster/firewall/ipset"))
    if any(lenient.text(each, "name") == "management" for each in sets):
        path = encode.path("cluster", "firewall", "ipset", "management")
        if lenient.rows(await transport.call("GET", path)):
            return True
    rules = [
        each
        for each in lenient.rows(await transport.call("GET", "/cluster/firewall/rules"))
        if lenient.text(each, "type") == "in"
        and lenient.text(each, "action") == "ACCEPT"
        and lenient.truth(each, "enable")
    ]
    return all(any(_opens(rule, port) for rule in rules) for port in ACCESS_PORTS)


def _opens(rule: lenient.Row, port: int) -> bool:
    ports, macro = lenient.text(rule, "dport"), lenient.text(rule, "macro")
    if macro:
        return macro == "SSH" and port == 22
    if not ports:
        return lenient.text(rule, "proto") in ("", "tcp")
    for each in ports.split(","):
        first, _, last = each.partition(":")
        if first.isdigit() and int(first) <= port <= int(last if last.isdigit() else first):
            return True
    return False
