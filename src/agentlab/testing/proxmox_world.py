"""The world on a cluster: the same daemon and the same storms, over the real backend and a simulated Proxmox VE.

No socket and no real time: calls reach the cluster's rules at once, and guests come home when their VM has booted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

from agentlab.backends.interface import Command, Gone, Probe, Unavailable
from agentlab.backends.link.control import Identity
from agentlab.backends.link.guests import Guests
from agentlab.backends.proxmox import check, firewall
from agentlab.backends.proxmox.answers import NoAnswer, read_answer
from agentlab.backends.proxmox.backend import CAPABILITIES, ProxmoxBackend
from agentlab.backends.proxmox.card import Cards
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.placement import Copy, Policy
from agentlab.backends.proxmox.plan import Addresses, ClusterPlan
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.records import Records
from agentlab.backends.proxmox.request import request_of
from agentlab.backends.proxmox.transport import Transport
from agentlab.backends.proxmox.vmids import VmidRange
from agentlab.base.clock import sleep
from agentlab.base.tasks import TaskScope
from agentlab.daemon.cluster_network import ClusterNetwork, cluster_port
from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.sandbox import SandboxSpec
from agentlab.services.sandboxes import BackendEntry
from agentlab.testing.proxmox.access import ROOT
from agentlab.testing.proxmox.access import Token as StoredToken
from agentlab.testing.proxmox.api import Api
from agentlab.testing.proxmox.cluster import Cluster as SimulatedCluster
from agentlab.testing.proxmox.codec import PREFIX
from agentlab.testing.proxmox.codec import Request as ApiRequest
from agentlab.testing.proxmox.faults import Fault
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.setup import Setup
from agentlab.testing.proxmox.simulated_guests import SimulatedGuests
from agentlab.testing.proxmox.state import Power
from agentlab.testing.world import World
from agentlab_guest import invitation
from agentlab_guest.strict import Malformed

TEMPLATE = 9000
NODES = ("pve1", "pve2")
BOOT_S = 8.0
LOOK_S = 0.25
RETRIES_MAX, RETRY_PAUSE_S = 3, 0.5
FOREIGN = 20_100  # within our own range: somebody else's VM, which nobody may touch
CLONED = 20_101  # a copy of one of ours, made by hand
NAME = "proxmox"


class DirectApi:
    """`Transport` without sockets: a lost answer is NoAnswer, and GETs are tried again, as the real one does."""

    def __init__(self, api: Api, token: str, node: str) -> None:
        self._api, self._token, self._node = api, token, node

    async def call(self, method: str, path: str, params: Params | None = None) -> object:
        """See `Transport.call`."""
        return (await self.answer(method, path, params))["data"]

    async def answer(self, method: str, path: str, params: Params | None = None) -> Mapping[str, object]:
        """See `Transport.answer`."""
        for tries in range(RETRIES_MAX + 1):
            try:
                return await self._once(method, path, params or {})
            except NoAnswer:
                if method != "GET" or tries == RETRIES_MAX:
                    raise
            await sleep(RETRY_PAUSE_S)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """There is nothing to close."""

    async def _once(self, method: str, path: str, params: Params) -> Mapping[str, object]:
        request = request_of(method, path, params)
        content = request.content()
        assert isinstance(content, bytes)
        answer = await self._api.handle(
            ApiRequest(
                method=method,
                target=PREFIX + request.target,
                headers={"authorization": f"PVEAPIToken={self._token}", **request.headers},
                body=content,
            ),
            self._node,
        )
        if answer.lost:
            raise NoAnswer(reason="the connection was reset", method=method, path=path, sent=True)
        return read_answer(method=method, path=path, status=answer.status, reason=answer.reason, content=answer.body)


class HomeControl:
    """`Control` to a guest of the simulation, while its VM is the one that came home."""

    def __init__(self, home: Homes, sandbox: SandboxId) -> None:
        self._home, self._sandbox = home, sandbox

    async def identify(self, identity: Identity) -> Mapping[str, float]:
        """It is told who it is."""
        self._require()
        assert identity.name == self._sandbox
        return {}

    async def set_clock(self, clock_ns: int) -> None:
        """It has the time."""
        self._require()

    async def freeze(self, limit_s: float, path: str = "/") -> None:
        """Its disk stands still."""
        self._require()

    async def thaw(self, path: str = "/") -> None:
        """Its disk goes on."""
        self._require()

    async def shutdown(self) -> None:
        """Its machine ends."""
        self._home.power_off(self._require())

    async def tail(self, length_max: int = 0) -> str:
        """It said nothing."""
        return ""

    async def launch(self, command: Command, stdin: bytes) -> None:
        """A program begins there."""
        self._require()
        self._home.launched(self._sandbox, command, stdin)

    def _require(self) -> int:
        vmid = self._home.vmid_of(self._sandbox)
        if vmid is None:
            raise Unavailable("the control link broke: the guest is gone")
        return vmid


class Homes:
    """`Guests` of the simulation: who boots with an invitation of ours that still counts, is home."""

    def __init__(
        self, cluster: SimulatedCluster, guests: SimulatedGuests, launched: Callable[[SandboxId, Command, bytes], None]
    ) -> None:
        self._cluster, self._guests, self.launched = cluster, guests, launched
        self._tokens: dict[SandboxId, str] = {}
        self._count = 0

    async def invite(self, sandbox: SandboxId, **given: Any) -> invitation.Invitation:
        """A new token; the former one is worth nothing."""
        self._count += 1
        token = self._tokens[sandbox] = f"token-{self._count}"
        return invitation.Invitation(sandbox=sandbox, daemon="10.80.0.2:8811", token=token, fingerprint="A" * 43)

    async def forget(self, sandbox: SandboxId) -> None:
        """Nobody comes in as this one."""
        self._tokens.pop(sandbox, None)

    async def stop(self) -> None:
        """There is nothing to stop."""

    def linked(self, sandbox: SandboxId) -> HomeControl | None:
        """If its machine runs and has booted."""
        return None if self.vmid_of(sandbox) is None else HomeControl(self, sandbox)

    async def control(self, sandbox: SandboxId, within_s: float) -> HomeControl:
        """Waited for."""
        waited = 0.0
        while (found := self.linked(sandbox)) is None:
            if waited >= within_s:
                raise Unavailable(f"the guest program of {sandbox} did not call home within {within_s:g} s")
            await sleep(LOOK_S)
            waited += LOOK_S
        return found

    def vmid_of(self, sandbox: SandboxId) -> int | None:
        """The VM that came home as this sandbox."""
        for vmid, guest in self._guests.guests.items():
            try:
                said = invitation.parse(guest.machine.smbios.get("serial", "").encode())
            except Malformed:
                continue
            vm = self._cluster.vms.get(vmid)
            runs = vm is not None and vm.power is Power.RUNNING
            counts = said.sandbox == sandbox and self._tokens.get(sandbox) == said.token
            if runs and counts and self._guests._up(vmid) and not guest.paused:
                return vmid
        return None

    def power_off(self, vmid: int) -> None:
        """The machine ends by itself."""
        self._cluster.powered_off(vmid)


class ClusterWorld(World):
    """A world whose backend is `proxmox`.  `fault_rate` is the share of calls that meet a misfortune."""

    async def _make_ground(self) -> None:
        self._outside = TaskScope("cluster")
        self.guests = SimulatedGuests(clock=self.clock, boot_s=BOOT_S)
        self.cluster = SimulatedCluster(
            version="9.2",
            nodes=NODES,
            clock=self.clock,
            entropy=self.entropy,
            scope=self._outside,
            guests=self.guests,
            latency=Latency.realistic(),
        )
        setup = Setup(self.cluster)
        setup.add_storage("local", shared=True)
        setup.add_template(TEMPLATE, "local", 3 << 30)
        self.cluster.access.users[ROOT].tokens["world"] = StoredToken(secret="s", privsep=0)  # noqa: S106
        self._token = setup.token(None, user="agentlab@pve", pool="agentlab")
        self._api = Api(self.cluster)
        await self._wall_template()
        self.homes = Homes(self.cluster, self.guests, self._begun)
        self.cluster.human_clone(TEMPLATE, FOREIGN, name="somebodys")
        self._set_faults(self._fault_rate)

    async def _wall_template(self) -> None:
        """The template bears the firewall that every clone copies, as those that AgentLab brings to a cluster do."""
        root, plan = DirectApi(self._api, f"{ROOT}!world=s", NODES[0]), cluster_plan()
        guest = firewall.Guest(mode=NetworkMode.NAT, address=None, link=plan.link, nameserver=plan.addresses.nameserver)
        for each in firewall.difference(firewall.wanted(guest), firewall.Firewall()):
            await root.call(each.method, f"/nodes/{NODES[0]}/qemu/{TEMPLATE}/firewall{each.path}", each.params)

    async def _entries(self, installation: InstallationId) -> Mapping[str, BackendEntry]:
        plan = cluster_plan()
        records = Records(installation=installation, state=self._folder / "proxmox")
        records.prepare()
        token_id = self._token.partition("=")[0]
        transport = DirectApi(self._api, self._token, NODES[0])
        grantee = Grantee(token=token_id, pool="agentlab", templates=(TEMPLATE,), storages=("local",))
        cluster = Cluster(cast(Transport, transport), plan, records, self.clock, grantee)
        self._records = records

        async def copies_of(spec: SandboxSpec) -> list[Copy]:
            return [Copy(vmid=TEMPLATE, node=NODES[0], storage="local")]

        self.proxmox = ProxmoxBackend(
            cluster,
            cast(Guests, self.homes),
            copies_of=copies_of,
            port_of=partial(cluster_port, installation, plan.addresses),
            look=lambda: check.look(cluster, CAPABILITIES),
            entropy=self.entropy,
        )
        probe = await self._probed()
        network = ClusterNetwork(Cards(cluster), plan.addresses, installation)
        return {NAME: BackendEntry(backend=self.proxmox, network=network, probe=probe, remote=True)}

    async def _probed(self) -> Probe:
        """A daemon starts whether or not the cluster answers; here it waits for it, so that the storm has a ship."""
        while not (probe := await self.proxmox.probe()).usable:
            await sleep(5)
        return probe

    def _begun(self, sandbox: SandboxId, command: Command, stdin: bytes) -> None:
        mark = self._records.mark(sandbox)
        if mark is None:
            raise Gone(f"there is no sandbox {sandbox}")
        self._launch(mark, command, stdin)

    def kill_sandbox(self, sandbox: str) -> None:
        """Its machine loses its power; its disk stays."""
        self.kill_guest(sandbox)
        vmid = self.homes.vmid_of(SandboxId(sandbox))
        if vmid is not None:
            self.cluster.powered_off(vmid)

    async def disturb(self) -> None:
        """A node goes away for a while, a VM moves, or somebody clones one of ours by hand."""
        ours = [vm for vm in self.cluster.vms.values() if vm.vmid not in (TEMPLATE, FOREIGN)]
        roll = self.entropy.fraction()
        if roll < 0.4 or not ours:
            self.cluster.node_offline(NODES[1])
            await sleep(20 + self.entropy.fraction() * 60)
            self.cluster.node_online(NODES[1])
            return
        one = ours[int(self.entropy.fraction() * len(ours))]
        if roll < 0.8:
            with suppress(Refused):
                await self.cluster.migrate(one.vmid, NODES[1] if one.node == NODES[0] else NODES[0])
        elif CLONED not in self.cluster.vms:
            self.cluster.human_clone(one.vmid, CLONED, name="looks-like-ours")

    def calm(self) -> None:
        """No more misfortunes, and all nodes are there."""
        self.cluster.faults.rates = {}
        self.cluster.node_online(NODES[1])

    def left(self) -> list[str]:
        """VMs that are neither the template nor somebody else's."""
        return sorted(str(vmid) for vmid in self.cluster.vms if vmid not in (TEMPLATE, FOREIGN, CLONED))

    def left_in_network(self) -> list[str]:
        """A VM's walls go with it."""
        return []

    def check_settled(self) -> None:
        """Somebody else's VM is as it was, beside all the rest."""
        assert FOREIGN in self.cluster.vms, f"a foreign VM was destroyed; {self.replay_hint}"
        super().check_settled()

    def _set_faults(self, rate: float) -> None:
        kinds = (Fault.REFUSED, Fault.RESET, Fault.REPLY_LOST, Fault.PROXY, Fault.PROXY_LATE, Fault.TASK_DIES)
        self.cluster.faults.rates = {each: rate / len(kinds) for each in kinds}


def cluster_plan() -> ClusterPlan:
    """What a daemon of the simulation may use."""
    return ClusterPlan(
        pool="agentlab",
        storage="local",
        uploads="local",
        bridge="vmbr0",
        vlan=None,
        vmids=VmidRange(first=20_000, last=20_199),
        policy=Policy(memory_overcommit=16.0, cpu_overcommit=64.0, memory_reserve_bytes=0, storage_reserve_bytes=0),
        addresses=Addresses(
            network=IPv4Network("10.80.0.0/24"),
            first=IPv4Address("10.80.0.10"),
            last=IPv4Address("10.80.0.200"),
            gateway=IPv4Address("10.80.0.1"),
            nameserver=IPv4Address("10.80.0.1"),
        ),
        link=(IPv4Address("10.80.0.2"), 8811),
        templates={"base": TEMPLATE},
    )
