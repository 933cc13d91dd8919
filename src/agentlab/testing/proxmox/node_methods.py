"""Methods of /nodes that are about a node: its state, its network, its tasks."""

from __future__ import annotations

from typing import Any

from agentlab.testing.proxmox import views
from agentlab.testing.proxmox.access import ROOT
from agentlab.testing.proxmox.cluster import RELEASES
from agentlab.testing.proxmox.formats import CIDR, CONFIG_IDS, INTERFACE, VMID
from agentlab.testing.proxmox.kinds import FLAG, integer, need, newer, one_of, text
from agentlab.testing.proxmox.method import Call, Method, Reply, everybody, on
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.state import Node, bridge
from agentlab.testing.proxmox.tasks import UPID, Task

LOG_LINES = 50
TASKS_LISTED = 50
CLUSTER_TASKS_MAX = 50
MHZ = "2596.144"


async def _nodes(call: Call) -> Any:
    rows = []
    for name, node in call.cluster.nodes.items():
        rows.append(views.node_row(call.cluster, node, call.has(f"/nodes/{name}", "Sys.Audit")))
    return rows


def _node(call: Call) -> Node:
    return call.cluster.nodes[call.node]


async def _status(call: Call) -> Any:
    cluster, node = call.cluster, _node(call)
    release = RELEASES[cluster.version]
    used = views.node_used(cluster, node)
    kernel = {"machine": "x86_64", "release": "6.17.2-1-pve", "sysname": "Linux", "version": "#1 SMP PREEMPT_DYNAMIC"}
    return {
        "boot-info": {"mode": "legacy-bios"}, "cpu": 0.05, "current-kernel": kernel, "idle": 0, "ksm": {"shared": 0},
        "kversion": "Linux 6.17.2-1-pve #1 SMP PREEMPT_DYNAMIC", "loadavg": ["0.76", "1.13", "2.65"], "wait": 0,
        "cpuinfo": {
            "cores": node.cores, "cpus": node.cores, "family": "25", "flags": "fpu vme de pse svm", "hvm": "1",
            "mhz": MHZ, "model": "AMD EPYC", "sockets": 1, "user_hz": 100, "vendor": "AuthenticAMD",
        },
        "memory": {"available": node.memory - used, "free": node.memory - used, "total": node.memory, "used": used},
        "pveversion": f"pve-manager/{release['version']}/{release['repoid']}",
        "rootfs": {"avail": 68 << 30, "free": 218 << 30, "total": 252 << 30, "used": 33 << 30},
        "swap": {"free": 0, "total": 0, "used": 0}, "uptime": int(cluster.clock.monotonic()) + 4000,
    }  # fmt: skip


async def _version(call: Call) -> Any:
    return RELEASES[call.cluster.version]


async def _machines(call: Call) -> Any:
    return [{"id": "pc-i440fx-10.0+pve1", "type": "i440fx", "version": "10.0+pve1"}]


async def _network(call: Call) -> Any:
    """The interfaces as the file says that will be applied next, and the difference beside them."""
    node = _node(call)
    shown = node.interfaces if node.pending_interfaces is None else node.pending_interfaces
    kind = call.values.get("type")
    rows = [
        {"iface": name, **each}
        for name, each in sorted(shown.items())
        if name not in node.hidden_bridges and _is_kind(each, kind) and _may_see(call, name, each)
    ]
    if node.pending_interfaces is None:
        return rows
    return Reply(data=rows, beside={"changes": "--- /etc/network/interfaces\n+++ /etc/network/interfaces.new\n"})


def _is_kind(interface: dict[str, Any], wanted: str | None) -> bool:
    return (
        wanted is None or interface["type"] == wanted or (wanted.startswith("any_") and interface["type"] == "bridge")
    )


def _may_see(call: Call, name: str, interface: dict[str, Any]) -> bool:
    if interface["type"] != "bridge":
        return True
    return call.has(f"/sdn/zones/localnetwork/{name}", "SDN.Audit", "SDN.Use")


async def _interface(call: Call) -> Any:
    node = _node(call)
    shown = node.interfaces if node.pending_interfaces is None else node.pending_interfaces
    if call.values["iface"] not in shown or call.values["iface"] in node.hidden_bridges:
        raise invalid({"iface": "interface does not exist"})
    return shown[call.values["iface"]]


async def _new_interface(call: Call) -> Any:
    node, values = _node(call), call.values
    shown = dict(node.interfaces if node.pending_interfaces is None else node.pending_interfaces)
    if values["iface"] in shown:
        raise invalid({"iface": "interface already exists"})
    shown[values["iface"]] = _settings(values, len(shown) - len(node.hidden_bridges))
    node.pending_interfaces = shown


def _settings(values: dict[str, Any], index: int) -> dict[str, Any]:
    found = bridge(index, values.get("cidr")) | {"type": values["type"]}
    for name in ("active", "autostart"):
        found.pop(name)
    for name in ("autostart", "comments", "bridge_ports", "bridge_vlan_aware", "mtu", "gateway"):
        if name in values:
            found[name] = f"{values[name]}\n" if name == "comments" else values[name]
    return found


async def _change_interface(call: Call) -> Any:
    node, values = _node(call), call.values
    shown = dict(node.interfaces if node.pending_interfaces is None else node.pending_interfaces)
    if values["iface"] not in shown:
        raise invalid({"iface": "interface does not exist"})
    shown[values["iface"]] = _settings(values, len(shown))
    node.pending_interfaces = shown


async def _drop_interface(call: Call) -> Any:
    node, name = _node(call), call.values["iface"]
    shown = dict(node.interfaces if node.pending_interfaces is None else node.pending_interfaces)
    if shown.pop(name, None) is None:
        raise invalid({"iface": "interface does not exist"})
    node.pending_interfaces = shown  # which stays, even if it says what is there already


async def _revert_network(call: Call) -> Any:
    _node(call).pending_interfaces = None


async def _apply_network(call: Call) -> Any:
    if (error := _node(call).reload_error) is not None:
        raise Refused(error)

    async def work(task: Task) -> None:
        await call.cluster.spend("reload")
        node = call.cluster.nodes[call.node]
        if node.pending_interfaces is not None:
            node.interfaces = {name: {**each, "active": 1} for name, each in node.pending_interfaces.items()}
            node.pending_interfaces = None

    return call.start("srvreload", "networking", work)


def _may_read(call: Call, task: Task) -> bool:
    """One's own tasks, those of one's tokens, and with Sys.Audit everybody's."""
    if call.caller.user in (ROOT, task.caller.user) and call.caller.token in (None, task.caller.token):
        return True
    return task.caller.authid == call.caller.authid or call.has(f"/nodes/{task.node}", "Sys.Audit")


def _task(call: Call, privilege: str = "Sys.Audit") -> Task:
    upid = call.values["upid"]
    found = UPID.fullmatch(upid)
    if found is None:
        raise invalid({"upid": "unable to parse worker upid"})
    task = call.cluster.tasks.find(upid)
    if task is None or task.node != call.node:
        raise Refused("no such task")
    if not _may_read(call, task) or (privilege != "Sys.Audit" and task.caller.authid != call.caller.authid):
        call.check(f"/nodes/{call.node}", privilege)
    return task


async def _task_status(call: Call) -> Any:
    task = _task(call)
    facts = task.facts() | {"pid": task.pid, "pstart": task.pstart}
    if task.exitstatus is None:
        return facts | {"status": "running"}
    return facts | {"status": "stopped", "exitstatus": task.exitstatus}


async def _task_log(call: Call) -> Any:
    task, first, limit = _task(call), call.values.get("start", 0), call.values.get("limit", LOG_LINES)
    lines = task.lines or ["no content"]
    shown = lines[first : first + limit] if limit else lines[first:]
    return Reply(data=[{"n": first + n, "t": line} for n, line in enumerate(shown, 1)], beside={"total": len(lines)})


async def _stop_task(call: Call) -> Any:
    call.cluster.tasks.stop(_task(call, "Sys.Modify"))


async def _tasks(call: Call) -> Any:
    values = call.values
    found = [
        task
        for task in reversed(call.cluster.tasks.tasks.values())
        if task.node == call.node and _may_read(call, task) and _wanted(values, task)
    ]
    first, limit = values.get("start", 0), values.get("limit", TASKS_LISTED)
    return Reply(
        data=[_row(task) for task in found[first : first + limit]], beside={"total": len(found)} if found else {}
    )


def _wanted(values: dict[str, Any], task: Task) -> bool:
    source, over = values.get("source", "archive"), task.exitstatus is not None
    if (source == "archive" and not over) or (source == "active" and over):
        return False
    if "vmid" in values and task.id != str(values["vmid"]):
        return False
    if values.get("errors") and task.exitstatus in ("OK", None):
        return False
    if "typefilter" in values and values["typefilter"] != task.type:
        return False
    if "userfilter" in values and values["userfilter"] not in task.caller.authid:
        return False
    return bool(values.get("since", 0) <= task.starttime <= values.get("until", task.starttime))


def _row(task: Task) -> dict[str, Any]:
    row = task.facts() | {"pid": task.pid, "pstart": task.pstart}
    return row if task.exitstatus is None else row | {"endtime": task.endtime, "status": task.exitstatus}


async def _cluster_tasks(call: Call) -> Any:
    """The newest tasks of all nodes, a little late."""
    rows: list[dict[str, Any]] = []
    horizon = call.cluster.clock.now() - call.cluster.latency.tasks_lag_s
    for task in reversed(call.cluster.tasks.tasks.values()):
        if not _may_read(call, task) or task.starttime > horizon:
            continue
        over = task.endtime is not None and task.endtime <= horizon
        rows.append(task.facts() | ({"endtime": task.endtime, "status": task.exitstatus, "saved": "1"} if over else {}))
        if len(rows) >= CLUSTER_TASKS_MAX:
            break
    return rows


_N, _T = "/nodes/{node}", "/nodes/{node}/tasks/{upid}"
_AUDIT, _MODIFY = on("/nodes/{node}", "Sys.Audit"), on("/nodes/{node}", "Sys.Modify")
_TYPES = ("bridge", "bond", "eth", "alias", "vlan", "fabric", "OVSBridge", "OVSBond", "OVSPort", "OVSIntPort", "vnet")
_INTERFACE = {
    "iface": need(INTERFACE), "type": need(one_of(*_TYPES, "unknown")), "autostart": FLAG, "cidr": CIDR,
    "cidr6": CIDR, "address": text(), "netmask": text(), "gateway": text(), "comments": text(),
    "bridge_ports": text(), "bridge_vlan_aware": FLAG, "mtu": integer(1280, 65520),
}  # fmt: skip
METHODS = (
    Method(verb="GET", path="/nodes", handler=_nodes, allow=everybody),
    Method(verb="GET", path=f"{_N}/status", handler=_status, allow=_AUDIT),
    Method(verb="GET", path=f"{_N}/version", handler=_version, allow=everybody),
    Method(verb="GET", path=f"{_N}/capabilities/qemu/machines", handler=_machines, allow=everybody),
    Method(verb="GET", path=f"{_N}/network", handler=_network, allow=everybody, params={
        "type": one_of(*_TYPES, "any_bridge", "any_local_bridge", "include_sdn"),
    }),
    Method(verb="POST", path=f"{_N}/network", handler=_new_interface, allow=_MODIFY, params=_INTERFACE),
    Method(verb="PUT", path=f"{_N}/network", handler=_apply_network, allow=_MODIFY, params={
        "regenerate-frr": newer(FLAG),
    }),
    Method(verb="DELETE", path=f"{_N}/network", handler=_revert_network, allow=_MODIFY),
    Method(verb="GET", path=f"{_N}/network/{{iface}}", handler=_interface, allow=_AUDIT),
    Method(verb="PUT", path=f"{_N}/network/{{iface}}", handler=_change_interface, allow=_MODIFY, params={
        **_INTERFACE, "delete": CONFIG_IDS,
    }),
    Method(verb="DELETE", path=f"{_N}/network/{{iface}}", handler=_drop_interface, allow=_MODIFY),
    Method(verb="GET", path=f"{_N}/tasks", handler=_tasks, allow=everybody, params={
        "limit": integer(0), "start": integer(0), "since": integer(), "until": integer(), "vmid": VMID, "errors": FLAG,
        "source": one_of("archive", "active", "all"), "typefilter": text(), "userfilter": text(),
        "statusfilter": text(),
    }),
    Method(verb="GET", path=f"{_T}/status", handler=_task_status, allow=everybody),
    Method(verb="GET", path=f"{_T}/log", handler=_task_log, allow=everybody, params={
        "limit": integer(0), "start": integer(0), "download": FLAG,
    }),
    Method(verb="DELETE", path=_T, handler=_stop_task, allow=everybody, writes=False),
    Method(verb="GET", path="/cluster/tasks", handler=_cluster_tasks, allow=everybody),
)  # fmt: skip
