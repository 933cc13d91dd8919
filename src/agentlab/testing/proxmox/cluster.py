"""The simulated cluster: its state, and what a test or an administrator does to it from outside the API."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.tasks import TaskScope
from agentlab.testing.proxmox.access import Access
from agentlab.testing.proxmox.faults import Faults
from agentlab.testing.proxmox.guests import GuestHost
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.locks import Locks
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.state import Absence, Firewall, Node, Power, Sdn, Vm, bridge
from agentlab.testing.proxmox.storage import Store
from agentlab.testing.proxmox.tasks import TaskBoard
from agentlab.testing.proxmox.units import new_mac, new_uuid

RELEASES = {
    "9.2": {"release": "9.2", "repoid": "14a22df3", "version": "9.2.11"},
    "8.4": {"release": "8.4", "repoid": "2a5fa54a8503f96d", "version": "8.4.14"},
}
QEMU = {"9.2": "10.0.13", "8.4": "9.2.0"}
WORKERS = 3  # calls that a node answers at the same time
NO_QUORUM = "cluster not ready - no quorum?"


class Cluster:
    """All state.  Rules live in the modules with methods; nothing here opens a socket or asks the real clock.

    Tasks run as children of `scope`, on the running loop's time.
    """

    def __init__(
        self,
        *,
        version: str,
        nodes: Sequence[str],
        clock: Clock,
        entropy: Entropy,
        scope: TaskScope,
        guests: GuestHost,
        latency: Latency,
        name: str = "sim",
    ) -> None:
        self.version, self.name = version, name
        self.major = int(version.partition(".")[0])
        self.clock, self.entropy, self.scope, self.latency, self.guests = clock, entropy, scope, latency, guests
        self.nodes = {each: Node(name=each, address=f"192.0.2.{11 + at}") for at, each in enumerate(nodes)}
        for node in self.nodes.values():
            node.interfaces["vmbr0"] = bridge(0, f"{node.address}/24")
        self.stores: dict[str, Store] = {}
        self.vms: dict[int, Vm] = {}
        self.access = Access(self.major, entropy)
        self.tasks = TaskBoard(clock, scope, self.spend)
        self.locks = Locks()
        self.faults = Faults()
        self.firewall = Firewall()
        self.sdn = Sdn()
        self.options: dict[str, object] = {"mac_prefix": "BC:24:11"}
        self.ha: dict[str, dict[str, object]] = {}
        self.quorate = True
        self.calls: list[tuple[str, str]] = []
        self.calls_in_flight = self.calls_in_flight_max = 0
        self.rounds: dict[str, int] = {}  # node → the round in which its VMs were last published

    # What a test does.

    def node_offline(self, name: str, how: Absence = Absence.NO_ROUTE) -> None:
        """Let a node vanish: its calls end in 59x, its tasks die, its guests are gone without a word."""
        self.nodes[name].absence = how
        self.tasks.lose(name)
        self.scope.start(self._lose_guests(name), f"guests of {name}")

    async def _lose_guests(self, name: str) -> None:
        for vm in [vm for vm in self.vms.values() if vm.node == name and vm.running]:
            await self.guests.stopped(vm.vmid)

    def node_online(self, name: str) -> None:
        """Let it come back, booted: its VMs are stopped unless they start with the node."""
        self.nodes[name].absence = None
        for vm in self.vms.values():
            if vm.node == name:
                vm.power = Power.STOPPED

    def quorum(self, there: bool) -> None:
        """Whether the majority of nodes sees each other: without it nothing can be written."""
        self.quorate = there

    def hold_lock(self, vmid: int, seconds: float) -> None:
        """Let something hold a VM's config lock for a while, as `qm cleanup` does after a quick stop and start."""
        self.scope.start(self.locks.of_vm(vmid).hold(seconds), f"lock of {vmid}")

    def hold_storage(self, name: str, seconds: float, node: str | None = None) -> None:
        """The same for a storage."""
        self.scope.start(self.locks.of_storage(name, node).hold(seconds), f"lock of {name}")

    # What an administrator does, by other ways than a token's calls.

    async def migrate(self, vmid: int, node: str) -> None:
        """Move a VM to another node, live if it runs; its volumes come along."""
        vm = self.vms[vmid]
        vm.config["lock"] = "migrate"
        await self.spend("qmigrate")
        del vm.config["lock"]
        for store in self.stores.values():
            if not store.shared:
                mine = {own: volume for own, volume in store.on(vm.node).items() if volume.vmid == vmid}
                for own, volume in mine.items():
                    store.on(node)[own] = store.on(vm.node).pop(own)
                    volume.parent = None  # a copy stands upon nothing
        vm.node = node

    def rename(self, vmid: int, name: str) -> None:
        """Give a VM another name."""
        self.vms[vmid].config["name"] = name

    def human_clone(self, vmid: int, newid: int, name: str = "copy") -> Vm:
        """A full clone made by hand: description, tags and serial are copied; uuid, address and pool are not."""
        source = self.vms[vmid]
        config = copy.deepcopy(source.config) | {"name": name, "vmgenid": new_uuid(self.entropy)}
        config.pop("template", None)
        smbios = [part for part in str(config.get("smbios1", "")).split(",") if part and not part.startswith("uuid=")]
        config["smbios1"] = ",".join([*smbios, f"uuid={new_uuid(self.entropy)}"])
        vm = Vm(vmid=newid, node=source.node, config=config)
        for key in [key for key in config if key.startswith("net")]:
            model, _, rest = str(config[key]).partition(",")
            config[key] = ",".join(filter(None, (f"{model.partition('=')[0]}={new_mac(self.entropy)}", rest)))
        for store in self.stores.values():
            mine = [volume for volume in store.on(vm.node).values() if volume.vmid == vmid]
            for volume in mine:
                twin = copy.deepcopy(volume)
                twin.own, twin.vmid, twin.parent = volume.own.replace(str(vmid), str(newid)), newid, None
                twin.own = twin.own.replace("base-", "vm-")
                store.on(vm.node)[twin.own] = twin
                for key, value in config.items():
                    if str(value).startswith(store.volid(volume)):
                        config[key] = str(value).replace(store.volid(volume), store.volid(twin), 1)
        vm.firewall = copy.deepcopy(source.firewall)
        self.vms[newid] = vm
        return vm

    async def destroy(self, vmid: int) -> None:
        """Destroy a VM with its volumes, running or not."""
        vm = self.vms.pop(vmid)
        await self.guests.stopped(vmid)
        self.access.forget_vm(vmid)
        for store in self.stores.values():
            for volume in [volume for volume in store.on(vm.node).values() if volume.vmid == vmid]:
                store.remove(vm.node, volume)

    def powered_off(self, vmid: int) -> None:
        """A guest has switched itself off, or its process has died."""
        vm = self.vms.get(vmid)
        if vm is not None:
            vm.power, vm.stopped = Power.STOPPED, self.clock.monotonic()

    # What the methods need.

    def store(self, name: str, node: str | None = None) -> Store:
        """A storage, on a node.  Raises Refused if it is not there."""
        found = self.stores.get(name)
        if found is None:
            raise Refused(f"storage '{name}' does not exist")
        if found.settings.get("disable"):
            raise Refused(f"storage '{name}' is disabled")
        if node is not None and found.nodes is not None and node not in found.nodes:
            raise Refused(f"storage '{name}' is not available on node '{node}'")
        return found

    def vm_on(self, node: str, vmid: int) -> Vm:
        """A VM on this node.  Raises Refused if its config is not there."""
        found = self.vms.get(vmid)
        if found is None or found.node != node:
            raise Refused(f"Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist")
        return found

    async def spend(self, kind: str) -> None:
        """Let the time of one piece of work pass."""
        await self.latency.spend(kind, self.entropy)

    def check_quorum(self) -> None:
        """Raise Refused while nothing can be written."""
        if not self.quorate:
            raise Refused(NO_QUORUM)

    def new_mac(self) -> str:
        """An address that no NIC here has."""
        while True:
            mac = new_mac(self.entropy)
            if not any(mac in str(value) for vm in self.vms.values() for value in vm.config.values()):
                return mac

    def has_bridge(self, node: str, name: str) -> bool:
        """Whether a bridge or an applied vnet of this name is on the node."""
        return name in self.nodes[node].interfaces or name in self.sdn.applied["vnets"]
