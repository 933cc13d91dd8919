"""Methods of /cluster, /pools and /version that are about the cluster as a whole."""

from __future__ import annotations

from typing import Any

from agentlab.testing.proxmox import views
from agentlab.testing.proxmox.cluster import RELEASES
from agentlab.testing.proxmox.formats import CONFIG_ID, CONFIG_IDS, VMID, words
from agentlab.testing.proxmox.kinds import FLAG, Kind, integer, matching, need, one_of, parsed, text
from agentlab.testing.proxmox.method import Call, Method, everybody, on
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.state import LOCAL_ZONE

FIRST_VMID, LAST_VMID = 100, 1_000_000
_AUDIT, _MODIFY = on("/", "Sys.Audit"), on("/", "Sys.Modify")
_STRUCTURED = {
    "tag-style": {
        "case-sensitive": FLAG,
        "color-map": text(),
        "ordering": one_of("config", "alphabetical"),
        "shape": text(),
    },
    "user-tag-access": {"user-allow": one_of("none", "list", "existing", "free"), "user-allow-list": text()},
    "next-id": {"lower": integer(), "upper": integer()},
    "migration": {"type": one_of("secure", "insecure"), "network": text()},
}


async def _version(call: Call) -> Any:
    return RELEASES[call.cluster.version]


async def _next_id(call: Call) -> Any:
    """A free id; nobody keeps it for the caller."""
    taken, wanted = call.cluster.vms, call.values.get("vmid")
    if wanted is not None:
        if wanted in taken:
            raise invalid({"vmid": f"VM {wanted} already exists"})
        return str(wanted)
    bounds = call.cluster.options.get("next-id")
    low, high = FIRST_VMID, LAST_VMID
    if isinstance(bounds, dict):
        low, high = int(bounds.get("lower", low)), int(bounds.get("upper", high))
    found = next((vmid for vmid in range(low, high) if vmid not in taken), None)
    if found is None:
        raise Refused("unable to get any free VMID")
    return str(found)


async def _resources(call: Call) -> Any:
    cluster, wanted, rows = call.cluster, call.values.get("type"), []
    if wanted is None:
        rows += [
            {"id": f"/pool/{name}", "pool": name, "type": "pool"}
            for name in cluster.access.pools
            if call.has(f"/pool/{name}", "Pool.Audit")
        ]
    if wanted in (None, "vm"):
        rows += views.vm_resources(cluster, call.caller)
    if wanted in (None, "node"):
        full = {name: call.has(f"/nodes/{name}", "Sys.Audit") for name in cluster.nodes}
        rows += [views.node_row(cluster, node, full[name], resources=True) for name, node in cluster.nodes.items()]
    if wanted in (None, "storage"):
        for store in cluster.stores.values():
            if call.has(f"/storage/{store.name}", "Datastore.Audit"):
                nodes = [name for name in cluster.nodes if store.nodes is None or name in store.nodes]
                rows += [views.store_row(cluster, store, name) for name in nodes]
    if wanted in (None, "sdn") and call.has(f"/sdn/zones/{LOCAL_ZONE}", "SDN.Audit", "SDN.Allocate"):
        rows += [views.network_row(cluster, name) for name in cluster.nodes]
    return rows


async def _status(call: Call) -> Any:
    cluster = call.cluster
    head: dict[str, Any] = {"id": "cluster", "name": cluster.name, "nodes": len(cluster.nodes), "type": "cluster"}
    rows = [head | {"quorate": int(cluster.quorate), "version": len(cluster.nodes)}] if len(cluster.nodes) > 1 else []
    for number, node in enumerate(cluster.nodes.values(), 1):
        rows.append({
            "id": f"node/{node.name}", "ip": node.address, "level": "", "local": int(node.name == call.node),
            "name": node.name, "nodeid": number, "online": int(node.absence is None), "type": "node",
        })  # fmt: skip
    return rows


async def _options(call: Call) -> Any:
    registered = call.cluster.options.get("registered-tags", [])
    if not call.has("/", "Sys.Audit"):
        return {"allowed-tags": []}
    return {"description": "", **call.cluster.options, "allowed-tags": registered}


async def _change_options(call: Call) -> Any:
    options = call.cluster.options
    for name in words(call.values.pop("delete", "")):
        options.pop(name, None)
    for name, value in call.values.items():
        if name in _STRUCTURED:
            kind = Kind(fields=_STRUCTURED[name], default_key="type" if name == "migration" else None)
            options[name] = parsed(kind, value)
        elif name == "registered-tags":
            options[name] = words(value)
        else:
            options[name] = value


async def _ha_resources(call: Call) -> Any:
    return [{"sid": sid, "type": "vm", **facts} for sid, facts in call.cluster.ha.items()]


async def _new_ha_resource(call: Call) -> Any:
    sid, ha = call.values["sid"], call.cluster.ha
    sid = sid if ":" in sid else f"vm:{sid}"
    if sid in ha:
        raise Refused(f"create ha resource failed: resource ID '{sid}' already defined")
    if int(sid.partition(":")[2]) not in call.cluster.vms:
        raise Refused(f"unable to read vm {sid.partition(':')[2]} - does not exist")
    ha[sid] = {"state": call.values.get("state", "started"), "digest": "0" * 40}


async def _drop_ha_resource(call: Call) -> Any:
    if call.cluster.ha.pop(call.values["sid"], None) is None:
        raise Refused(f"no such resource '{call.values['sid']}'")


async def _none(call: Call) -> Any:
    return []


async def _ha_status(call: Call) -> Any:
    node = next(iter(call.cluster.nodes))
    word = "OK" if call.cluster.quorate else "No quorum on node!"
    rows: list[dict[str, Any]] = [
        {"id": "quorum", "node": node, "quorate": int(call.cluster.quorate), "status": word, "type": "quorum"}
    ]
    if call.cluster.major >= 9:
        status = "standby (CRM watchdog standby)"
        rows.append({"id": "fencing", "node": node, "armed-state": "standby", "status": status, "type": "fencing"})
    return rows


METHODS = (
    Method(verb="GET", path="/version", handler=_version, allow=everybody),
    Method(verb="GET", path="/cluster/nextid", handler=_next_id, allow=everybody, params={"vmid": VMID}),
    Method(verb="GET", path="/cluster/resources", handler=_resources, allow=everybody, params={
        "type": one_of("vm", "storage", "node", "sdn"),
    }),
    Method(verb="GET", path="/cluster/status", handler=_status, allow=_AUDIT),
    Method(verb="GET", path="/cluster/options", handler=_options, allow=everybody),
    Method(verb="PUT", path="/cluster/options", handler=_change_options, allow=_MODIFY, params={
        "delete": CONFIG_IDS, "registered-tags": text(), "tag-style": Kind(fields=_STRUCTURED["tag-style"]),
        "user-tag-access": Kind(fields=_STRUCTURED["user-tag-access"]), "description": text(65536),
        "next-id": Kind(fields=_STRUCTURED["next-id"]), "mac_prefix": text(), "keyboard": text(),
        "migration": Kind(fields=_STRUCTURED["migration"], default_key="type"), "max_workers": integer(1),
    }),
    Method(verb="GET", path="/cluster/ha/resources", handler=_ha_resources, allow=_AUDIT),
    Method(verb="POST", path="/cluster/ha/resources", handler=_new_ha_resource, allow=on("/", "Sys.Console"), params={
        "sid": need(matching(r"(vm:|ct:)?[1-9][0-9]{2,8}")), "group": CONFIG_ID,
        "state": one_of("started", "stopped", "enabled", "disabled", "ignored"),
        "comment": text(4096), "max_restart": integer(0), "max_relocate": integer(0),
    }),
    Method(verb="DELETE", path="/cluster/ha/resources/{sid}", handler=_drop_ha_resource, allow=on("/", "Sys.Console")),
    Method(verb="GET", path="/cluster/ha/rules", handler=_none, allow=_AUDIT, since=9),
    Method(verb="GET", path="/cluster/ha/groups", handler=_none, allow=_AUDIT),
    Method(verb="GET", path="/cluster/ha/status/current", handler=_ha_status, allow=_AUDIT),
    Method(verb="GET", path="/cluster/backup", handler=_none, allow=_AUDIT),
)  # fmt: skip
