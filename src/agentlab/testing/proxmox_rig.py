"""Sandboxes on a simulated cluster for tests: a backend as the daemon makes it, with a token that may do no more.

async with proxmox_rig(tmp_path, guests=ProcessGuests(folder=tmp_path / "guests")) as rig:
    spec = rig.spec()
    await rig.backend.create(spec)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentlab.backends.link.guests import Guests
from agentlab.backends.proxmox import check
from agentlab.backends.proxmox.backend import CAPABILITIES, ProxmoxBackend
from agentlab.backends.proxmox.card import Cards
from agentlab.backends.proxmox.certificate import Endpoint, Trust
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.placement import Policy
from agentlab.backends.proxmox.plan import Addresses, ClusterPlan
from agentlab.backends.proxmox.privileges import ROLES, Grantee, Where, role_privileges
from agentlab.backends.proxmox.records import Records
from agentlab.backends.proxmox.shelf import ClusterImage, Shelf
from agentlab.backends.proxmox.transport import Token, Transport
from agentlab.backends.proxmox.vmids import VmidRange
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.base.files import make_directory
from agentlab.base.secret import Secret
from agentlab.daemon.cluster_network import ClusterNetwork, cluster_port
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, SandboxSpec
from agentlab.model.snapshot import WorkspaceDisk
from agentlab.testing.guest_home import GuestHome
from agentlab.testing.proxmox.access import Pool, User
from agentlab.testing.proxmox.access import Token as StoredToken
from agentlab.testing.proxmox.guests import GuestHost
from agentlab.testing.proxmox.server import ProxmoxSim
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.storage import Volume
from agentlab.testing.proxmox.units import GIB, MIB

TEMPLATE, TEMPLATE_VMID, HOLDER_VMID = "test", 9000, 9900
POOL, STORAGE, BRIDGE = "agentlab", "local", "vmbr0"
USER, TOKEN_ID = "agentlab@pve", "sandboxes"
SMALL = Resources(memory_bytes=512 * MIB, cpus=1.0, pids_max=128, disk_bytes=256 * MIB, secrets_bytes=MIB)
WORKSPACE_BYTES = 64 * MIB
ADDRESSES = Addresses(
    network=IPv4Network("198.18.7.0/24"),
    first=IPv4Address("198.18.7.10"),
    last=IPv4Address("198.18.7.250"),
    gateway=IPv4Address("198.18.7.1"),
    nameserver=IPv4Address("198.18.7.1"),
)


def least_token(sim: ProxmoxSim, grantee: Grantee) -> str:
    """A user and a token with the rows of `backends.proxmox.privileges` and nothing else; `user@realm!id=secret`."""
    access = sim.cluster.access
    token_id = grantee.token.partition("!")[2]
    access.pools.setdefault(grantee.pool, Pool())
    stored = access.users.setdefault(grantee.user, User()).tokens[token_id] = StoredToken(secret=access.new_secret())
    for where in Where:
        access.roles[ROLES[where]] = frozenset(role_privileges(where, grantee.version))
        for path in grantee.paths(where):
            access.set_acl(path, "user", grantee.user, ROLES[where], 1)
            access.set_acl(path, "token", grantee.token, ROLES[where], 1)
    return f"{grantee.token}={stored.secret}"


@dataclass(slots=True, kw_only=True)
class ProxmoxRig:
    """One installation with its backend; `another` gives a second one on the same folders, as after a restart."""

    folder: Path
    sim: ProxmoxSim
    home: GuestHome
    plan: ClusterPlan
    installation: InstallationId
    grantee: Grantee
    secret: str
    image: ClusterImage | None = None  # what templates are made of that no administrator made
    settings: Mapping[str, Any] = field(default_factory=dict)
    cluster: Cluster = field(init=False)
    shelf: Shelf = field(init=False)
    backend: ProxmoxBackend = field(init=False)
    backends: list[ProxmoxBackend] = field(default_factory=list)
    made: list[Mark] = field(default_factory=list)
    slots: count[int] = field(default_factory=lambda: count(1))
    _disks: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.backend = self.another()

    @property
    def guests(self) -> Guests:
        """Where machines call home."""
        return self.home.guests

    @property
    def network(self) -> ClusterNetwork:
        """As the daemon has it."""
        return ClusterNetwork(Cards(self.cluster), self.plan.addresses, self.installation)

    def another(self, **changes: Any) -> ProxmoxBackend:
        """A backend that shares nothing with the first but the folders and the door; `changes` are settings."""
        cluster = self.new_cluster()
        self.cluster, self.shelf = cluster, Shelf(cluster, self._image_of, SystemEntropy())
        settings: dict[str, Any] = {
            "copies_of": self.shelf.copies,
            "port_of": partial(cluster_port, self.installation, self.plan.addresses),
            "look": lambda: check.look(cluster, CAPABILITIES),
            "entropy": SystemEntropy(),
        }
        backend = ProxmoxBackend(cluster, self.guests, **(settings | dict(self.settings) | changes))
        self.backends.append(backend)
        return backend

    def new_cluster(self) -> Cluster:
        """Connections and records of a process of its own."""
        clock, entropy = SystemClock(), SystemEntropy()
        token_id, _, secret = self.secret.partition("=")
        endpoints = [_endpoint(url) for url in self.sim.endpoints.values()]
        trust = Trust(fingerprints=frozenset(self.sim.fingerprints.values()))
        transport = Transport(endpoints, trust, Token(id=token_id, secret=Secret(secret)), clock=clock, entropy=entropy)
        records = Records(installation=self.installation, state=self.folder / "proxmox")
        records.prepare()
        return Cluster(transport, self.plan, records, clock, self.grantee)

    def spec(self, **changes: Any) -> SandboxSpec:
        """A sandbox to make, in the next slot; it is destroyed when the rig ends."""
        entropy = SystemEntropy()
        mark = Mark(installation=self.installation, sandbox=SandboxId(f"sb-{entropy.word()}"), nonce=entropy.token(8))
        self.made.append(mark)
        spec = SandboxSpec(
            mark=mark,
            name="test",
            template=TEMPLATE,
            template_digest=Digest("0" * 64),
            slot=next(self.slots),
            resources=SMALL,
            network=NetworkMode.OFF,
            port=None,
            hostname=f"box-{mark.sandbox.removeprefix('sb-')}",
            nameserver=None,
        )
        return replace(spec, **changes)

    async def up(self, spec: SandboxSpec) -> Vm:
        """Bring a sandbox up as the reconciler does, with its network; its VM."""
        port = self.network.port(spec.mark.sandbox, spec.slot, spec.network)
        await self.backend.create(spec)
        armed = await self.backend.arm(spec)
        assert armed.end is not None
        await self.network.attach(port, armed.end)
        assert await self.network.verify(port)
        await self.backend.start(spec.mark)
        return self.vm_of(spec)

    def vm_of(self, spec: SandboxSpec) -> Vm:
        """A sandbox's VM on the cluster."""
        record = self.cluster.records.read(spec.mark.sandbox)
        assert record is not None
        return self.sim.cluster.vms[record.vmid]

    def disk(self) -> WorkspaceDisk:
        """An empty workspace, which belongs to a VM of the pool that never runs."""
        cluster, store = self.sim.cluster, self.sim.cluster.stores[STORAGE]
        node = next(iter(cluster.nodes))
        holder = cluster.vms.setdefault(HOLDER_VMID, Vm(vmid=HOLDER_VMID, node=node, config={"name": "holder"}))
        cluster.access.pools[POOL].vms.add(HOLDER_VMID)
        own = store.free_name(node, HOLDER_VMID, store.extension("raw"))
        volume = Volume(own=own, content="images", format="raw", size=WORKSPACE_BYTES, ctime=0, vmid=HOLDER_VMID)
        store.on(node)[own] = volume
        number = next(self._disks)
        holder.config[f"virtio{number}"] = f"{store.volid(volume)},size={WORKSPACE_BYTES // MIB}M"
        if (path := store.real(node, volume)) is not None:
            with path.open("wb") as file:
                file.truncate(WORKSPACE_BYTES)
        return WorkspaceDisk(serial=f"w{number}", disk=store.volid(volume))

    async def _image_of(self, _: Digest) -> ClusterImage:
        assert self.image is not None, "the rig was given no image"
        return self.image


def _endpoint(url: str) -> Endpoint:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Endpoint(host=parts.hostname, port=parts.port)


@asynccontextmanager
async def proxmox_rig(
    folder: Path,
    *,
    guests: GuestHost | None = None,
    version: str = "9.2",
    link: tuple[str, int] = ("127.0.0.1", 0),
    image: ClusterImage | None = None,
    plan: Mapping[str, Any] | None = None,
    sim: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[ProxmoxRig]:
    """A cluster with a template, and a rig below `folder`; all that it made is destroyed at the end.

    With `image` there is no template: it is made of that.  `plan`, `sim` and `settings` are those of the cluster's
    plan, of `ProxmoxSim` and of the backend, where they shall differ.
    """
    installation = InstallationId(SystemEntropy().word(8))
    async with AsyncExitStack() as stack:
        simulated = ProxmoxSim(version=version, guests=guests, folder=folder / "storage", **(sim or {}))
        await stack.enter_async_context(simulated)
        home = GuestHome(folder=make_directory(folder / "home"), host=link[0])
        await home.begin()
        stack.push_async_callback(home.end)
        templates = {} if image is not None else {TEMPLATE: TEMPLATE_VMID}
        for vmid in templates.values():
            simulated.add_template(vmid, disk_bytes=GIB)
        made_plan = cluster_plan(link=(IPv4Address(link[0]), home.port), templates=templates, **(plan or {}))
        grantee = grantee_of(made_plan, int(version.partition(".")[0]))
        rig = ProxmoxRig(
            folder=folder,
            sim=simulated,
            home=home,
            plan=made_plan,
            installation=installation,
            grantee=grantee,
            secret=least_token(simulated, grantee),
            image=image,
            settings=settings,
        )
        await rig.backend.probe()
        try:
            yield rig
        finally:
            for mark in rig.made:
                await rig.backend.destroy(mark)
            for backend in rig.backends:
                await backend.close()


def cluster_plan(**changes: Any) -> ClusterPlan:
    """What an administrator of the simulated cluster decides."""
    values: dict[str, Any] = {
        "pool": POOL,
        "storage": STORAGE,
        "uploads": STORAGE,
        "bridge": BRIDGE,
        "vlan": None,
        "vmids": VmidRange(first=20000, last=20999),
        "policy": Policy(),
        "addresses": ADDRESSES,
    }
    return ClusterPlan(**(values | changes))


def grantee_of(plan: ClusterPlan, version: int) -> Grantee:
    """Who gets the rights that this plan needs."""
    return Grantee(
        token=f"{USER}!{TOKEN_ID}",
        pool=plan.pool,
        version=version,
        templates=tuple(plan.templates.values()),
        storages=(plan.storage,),
        uploads=(plan.uploads,),
        bridge=plan.bridge,
    )
