"""How lists and states show VMs, nodes and storages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentlab.testing.proxmox.access import Caller
from agentlab.testing.proxmox.cluster import QEMU, Cluster
from agentlab.testing.proxmox.drives import drives
from agentlab.testing.proxmox.kinds import parsed
from agentlab.testing.proxmox.options import AGENT, NIC
from agentlab.testing.proxmox.state import LOCAL_ZONE, Node, Power, Vm
from agentlab.testing.proxmox.storage import Store
from agentlab.testing.proxmox.units import MIB

MEMORY_MIB = 512  # what a config without the option means
FIRST_READ_S = 2
MACHINE = "pc-i440fx-10.0+pve1"
SUPPORT = (
    "backup-access-api", "backup-fleecing", "backup-max-workers", "pbs-dirty-bitmap", "pbs-dirty-bitmap-migration",
    "pbs-dirty-bitmap-savevm", "pbs-masterkey", "query-bitmap-info",
)  # fmt: skip
PRESSURES = tuple(f"pressure{what}{how}" for what in ("cpu", "io", "memory") for how in ("full", "some"))
_BLOCK_COUNTERS = (
    "failed_flush_operations", "failed_rd_operations", "failed_unmap_operations", "failed_wr_operations",
    "failed_zone_append_operations", "flush_operations", "flush_total_time_ns", "invalid_flush_operations",
    "invalid_rd_operations", "invalid_unmap_operations", "invalid_wr_operations", "invalid_zone_append_operations",
    "rd_bytes", "rd_merged", "rd_operations", "rd_total_time_ns", "unmap_bytes", "unmap_merged", "unmap_operations",
    "unmap_total_time_ns", "wr_bytes", "wr_highest_offset", "wr_merged", "wr_operations", "wr_total_time_ns",
    "zone_append_bytes", "zone_append_merged", "zone_append_operations", "zone_append_total_time_ns",
)  # fmt: skip


def memory_bytes(config: Mapping[str, Any]) -> int:
    """The memory of a VM."""
    return int(str(config.get("memory", MEMORY_MIB)).removeprefix("current=")) * MIB


def cores(config: Mapping[str, Any]) -> int:
    """The processors of a VM."""
    return int(config.get("cores", 1)) * int(config.get("sockets", 1))


def agent_enabled(config: Mapping[str, Any]) -> bool:
    """Whether the VM has a channel for the guest agent."""
    return bool(parsed(AGENT, str(config["agent"])).get("enabled")) if "agent" in config else False


def boot_disk_bytes(config: Mapping[str, Any]) -> int:
    """The size of the first disk that is no CD."""
    return next((each.size for each in drives(config) if not each.cdrom), 0)


def uptime_s(cluster: Cluster, vm: Vm) -> int:
    """Whole seconds since the start."""
    return int(cluster.clock.monotonic() - vm.started) if vm.running else 0


def _figures(cluster: Cluster, vm: Vm) -> dict[str, Any]:
    """What all views share."""
    figures = {
        "vmid": vm.vmid,
        "name": vm.config.get("name", f"VM {vm.vmid}"),
        "maxmem": memory_bytes(vm.config),
        "maxdisk": boot_disk_bytes(vm.config),
        "uptime": uptime_s(cluster, vm),
        **dict.fromkeys(("cpu", "disk", "diskread", "diskwrite", "mem", "netin", "netout"), 0),
    }
    if cluster.major >= 9:
        figures["memhost"] = 0
    return figures


def listed(cluster: Cluster, vm: Vm) -> dict[str, Any]:
    """A row of the list of one node's VMs."""
    row = _figures(cluster, vm) | {"cpus": cores(vm.config), "status": "running" if vm.running else "stopped"}
    del row["diskread"], row["diskwrite"]
    if vm.running:
        row["pid"] = vm.pid
        row |= dict.fromkeys(PRESSURES if cluster.major >= 9 else (), 0)
    return row | _marks(vm)


def _marks(vm: Vm) -> dict[str, Any]:
    marks: dict[str, Any] = {}
    if "serial0" in vm.config:
        marks["serial"] = 1
    if vm.is_template:
        marks["template"] = 1
    for name in ("tags", "lock"):
        if vm.config.get(name):
            marks[name] = vm.config[name]
    return marks


def current(cluster: Cluster, vm: Vm, guest_up: bool) -> dict[str, Any]:
    """The answer to status/current."""
    row = listed(cluster, vm) | {"qmpstatus": vm.power.value, "ha": _managed(cluster, vm)}
    if agent_enabled(vm.config):
        row["agent"] = 1
    if cluster.major >= 9:
        row["clipboard"] = None
    return row | _process(cluster, vm, guest_up) if vm.running else row


def _managed(cluster: Cluster, vm: Vm) -> dict[str, Any]:
    found = cluster.ha.get(f"vm:{vm.vmid}")
    return {"managed": 0} if found is None else {"managed": 1, "state": found["state"]}


def _process(cluster: Cluster, vm: Vm, guest_up: bool) -> dict[str, Any]:
    memory = memory_bytes(vm.config)
    balloon: dict[str, Any] = {"actual": memory, "max_mem": memory}
    found: dict[str, Any] = {"balloon": memory, "ballooninfo": balloon, "diskread": 0, "diskwrite": 0}
    if guest_up and agent_enabled(vm.config):
        pages = ("major_page_faults", "mem_swapped_in", "mem_swapped_out", "minor_page_faults")
        balloon |= {"free_mem": memory // 2, "total_mem": memory, "last_update": int(cluster.clock.now())}
        balloon |= dict.fromkeys(pages, 0)
        found["freemem"] = memory // 2
    counters = dict.fromkeys(_BLOCK_COUNTERS, 0)
    block = {**counters, "timed_stats": [], "account_failed": True, "account_invalid": True}
    found["blockstat"] = {each.key: dict(block) for each in drives(vm.config)}
    for each in drives(vm.config):
        if (each.cdrom and vm.booted) or uptime_s(cluster, vm) >= FIRST_READ_S:  # it is there once something was read
            found["blockstat"][each.key]["idle_time_ns"] = 0
    nics = [key for key in vm.config if NIC.fullmatch(key)]
    found["nics"] = {f"tap{vm.vmid}i{key.removeprefix('net')}": {"netin": 0, "netout": 0} for key in nics}
    found["proxmox-support"] = {**dict.fromkeys(SUPPORT, True), "pbs-library-version": ""}
    return found | {"running-machine": MACHINE, "running-qemu": QEMU[cluster.version]}


def resource(cluster: Cluster, vm: Vm) -> dict[str, Any]:
    """A VM's row of /cluster/resources without what is known only to the cluster: pool, tags, lock."""
    status = vm.power.value if vm.power is not Power.STOPPED else "stopped"
    return _figures(cluster, vm) | {
        "maxcpu": cores(vm.config),
        "status": status,
        "template": int(vm.is_template),
    }


def vm_resources(cluster: Cluster, caller: Caller) -> Iterator[dict[str, Any]]:
    """The rows of the VMs that `caller` may see; names, states and sizes as of the node's last round."""
    _publish(cluster)
    for vm in sorted(cluster.vms.values(), key=lambda vm: vm.vmid):
        if cluster.access.has(caller, f"/vms/{vm.vmid}", "VM.Audit"):
            yield vm_resource(cluster, vm)


def vm_resource(cluster: Cluster, vm: Vm, marks: bool = True) -> dict[str, Any]:
    """One row, as published; with `marks` also what the cluster itself knows at once: pool, tags, lock."""
    row: dict[str, Any] = {"id": f"qemu/{vm.vmid}", "node": vm.node, "type": "qemu", "vmid": vm.vmid}
    row |= vm.published if vm.published is not None else {"status": "unknown"}
    if cluster.nodes[vm.node].absence is not None:
        row = {key: row[key] for key in ("id", "node", "type", "vmid")} | {"status": "unknown"}
    if not marks:
        return row
    pool = cluster.access.pool_of(vm.vmid)
    if pool is not None:
        row["pool"] = pool
    return row | {name: vm.config[name] for name in ("tags", "lock") if vm.config.get(name)}


def _publish(cluster: Cluster) -> None:
    lag_s = cluster.latency.resources_lag_s
    number = int(cluster.clock.monotonic() / lag_s) if lag_s else None
    for name, node in cluster.nodes.items():
        if node.absence is not None or (number is not None and cluster.rounds.get(name) == number):
            continue
        if number is not None:
            cluster.rounds[name] = number
        for vm in cluster.vms.values():
            if vm.node == name:
                vm.published = resource(cluster, vm)


def node_row(cluster: Cluster, node: Node, full: bool, resources: bool = False) -> dict[str, Any]:
    """A node in /nodes or, with its mode of control groups, in /cluster/resources."""
    online = node.absence is None
    row: dict[str, Any] = {"id": f"node/{node.name}", "node": node.name, "type": "node", "level": ""}
    row["status"] = "online" if online else "offline"
    if resources:
        row["cgroup-mode"] = 2
    else:
        row["ssl_fingerprint"] = node.fingerprint
    if full and online:
        row |= {
            "cpu": 0.05, "disk": 33 << 30, "maxdisk": 252 << 30, "maxcpu": node.cores, "maxmem": node.memory,
            "mem": node_used(cluster, node), "uptime": int(cluster.clock.monotonic()) + 4000,
        }  # fmt: skip
    return row


def node_used(cluster: Cluster, node: Node) -> int:
    """Bytes of memory that a node's own processes and its guests take."""
    guests = (memory_bytes(vm.config) for vm in cluster.vms.values() if vm.node == node.name and vm.running)
    return (1 << 30) + sum(guests)


def store_row(cluster: Cluster, store: Store, node: str) -> dict[str, Any]:
    """A storage of a node in /cluster/resources."""
    online = cluster.nodes[node].absence is None
    return {
        "id": f"storage/{node}/{store.name}", "node": node, "storage": store.name, "type": "storage",
        "content": ",".join(store.content), "plugintype": store.type, "shared": int(store.shared),
        "status": "available" if online else "unknown", "disk": store.used(node), "maxdisk": store.total,
    }  # fmt: skip


def store_status(store: Store, node: str) -> dict[str, Any]:
    """A storage as its node sees it."""
    used = store.used(node)
    return {
        "active": 1, "avail": max(0, store.total - used), "content": ",".join(store.content),
        "enabled": int(not store.settings.get("disable")), "shared": int(store.shared), "total": store.total,
        "type": store.type, "used": used,
    }  # fmt: skip


def network_row(cluster: Cluster, node: str) -> dict[str, Any]:
    """The zone of the plain bridges, in the words of each version."""
    if cluster.major >= 9:
        return {
            "id": f"network/{node}/zone/{LOCAL_ZONE}", "network": LOCAL_ZONE, "network-type": "zone", "node": node,
            "status": "ok", "type": "network",
        }  # fmt: skip
    return {"id": f"sdn/{node}/{LOCAL_ZONE}", "sdn": LOCAL_ZONE, "node": node, "status": "ok", "type": "sdn"}
