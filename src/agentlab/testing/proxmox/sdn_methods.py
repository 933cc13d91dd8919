"""Methods of the software-defined network: zones, vnets, subnets; written down first, applied later."""

from __future__ import annotations

import copy
import ipaddress
from typing import Any

from agentlab.testing.proxmox.formats import ADDRESS, NETWORK, SDN_ID
from agentlab.testing.proxmox.kinds import FLAG, WORDS, integer, need, newer, one_of, text
from agentlab.testing.proxmox.method import Call, Method, everybody, on
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.units import digest

_IDS = {"zones": "zone", "vnets": "vnet", "subnets": "subnet"}
_NOUN = {"zones": "sdn zone", "vnets": "sdn vnet", "subnets": "sdn subnet"}


def _written(call: Call, what: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = getattr(call.cluster.sdn, what)
    return found


def _rows(call: Call, what: str) -> list[dict[str, Any]]:
    """What is written down, or with `pending` how it differs from what is applied."""
    applied = call.cluster.sdn.applied[what]
    rows: list[dict[str, Any]] = []
    for name, facts in _written(call, what).items():
        if not _may_see(call, what, name, facts):
            continue
        row: dict[str, Any] = {_IDS[what]: name, "type": facts["type"]}
        rest = {key: value for key, value in facts.items() if key != "type"}
        if call.values.get("pending") and applied.get(name) != facts:
            state = "new" if name not in applied else "changed"
            rows.append(row | {"state": state, "pending": rest, "digest": None})
        else:
            rows.append(row | rest | {"digest": digest(facts)})
    return rows


def _may_see(call: Call, what: str, name: str, facts: dict[str, Any]) -> bool:
    path = f"/sdn/zones/{name}" if what == "zones" else f"/sdn/zones/{facts.get('zone')}/{name}"
    return call.has(path, "SDN.Audit", "SDN.Allocate", "SDN.Use")


async def _zones(call: Call) -> Any:
    return _rows(call, "zones")


async def _vnets(call: Call) -> Any:
    return _rows(call, "vnets")


async def _subnets(call: Call) -> Any:
    return [
        row for row in _rows(call, "subnets") if _written(call, "subnets")[row["subnet"]]["vnet"] == call.values["vnet"]
    ]


async def _one_zone(call: Call) -> Any:
    return _one(call, "zones", call.values["zone"])


async def _one_vnet(call: Call) -> Any:
    return _one(call, "vnets", call.values["vnet"])


def _one(call: Call, what: str, name: str) -> dict[str, Any]:
    facts = _written(call, what).get(name)
    if facts is None:
        raise Refused(f"{_NOUN[what]} '{name}' does not exist")
    return {_IDS[what]: name, **facts, "digest": digest(facts)}


async def _new_zone(call: Call) -> Any:
    name = call.values.pop("zone")
    if name in _written(call, "zones"):
        raise Refused(f"create sdn zone object failed: sdn zone object ID '{name}' already defined")
    _written(call, "zones")[name] = call.values


async def _new_vnet(call: Call) -> Any:
    name = call.values.pop("vnet")
    if name in _written(call, "vnets"):
        raise Refused(f"create sdn vnet object failed: sdn vnet object ID '{name}' already defined")
    if call.values["zone"] not in _written(call, "zones"):
        where = "/usr/share/perl5/PVE/API2/Network/SDN/Vnets.pm line 326."
        raise Refused(f"create sdn vnet object failed: cannot lookup undefined type! at {where}")
    _written(call, "vnets")[name] = {"type": "vnet", **call.values}


async def _new_subnet(call: Call) -> Any:
    vnet = _written(call, "vnets").get(call.values["vnet"])
    if vnet is None:
        raise Refused(f"create sdn subnet object failed: vnet '{call.values['vnet']}' does not exist")
    network = ipaddress.ip_network(call.values["subnet"], strict=False)
    name = f"{vnet['zone']}-{network.network_address}-{network.prefixlen}"
    if name in _written(call, "subnets"):
        raise Refused(f"create sdn subnet object failed: sdn subnet object ID '{name}' already defined")
    facts = {"cidr": str(network), "zone": vnet["zone"], "network": str(network.network_address)}
    given = {key: call.values[key] for key in ("gateway", "snat", "vnet", "type") if key in call.values}
    _written(call, "subnets")[name] = facts | {"mask": str(network.prefixlen)} | given


async def _drop_zone(call: Call) -> Any:
    name = call.values["zone"]
    user = next((vnet for vnet, facts in _written(call, "vnets").items() if facts["zone"] == name), None)
    if user is not None:
        where = "/usr/share/perl5/PVE/Network/SDN/Zones/Plugin.pm line 133."
        raise Refused(f"delete sdn zone object failed: zone {name} is used by vnet {user} at {where}")
    _drop(call, "zones", name)


async def _drop_vnet(call: Call) -> Any:
    name = call.values["vnet"]
    if any(facts["vnet"] == name for facts in _written(call, "subnets").values()):
        raise invalid({"vnet": "Can't delete vnet if subnets exists"}).prefixed("delete sdn vnet object failed")
    _drop(call, "vnets", name)


async def _drop_subnet(call: Call) -> Any:
    _drop(call, "subnets", call.values["subnet"])


def _drop(call: Call, what: str, name: str) -> None:
    if _written(call, what).pop(name, None) is None:
        raise Refused(f"delete {_NOUN[what]} object failed: {_NOUN[what]} '{name}' does not exist")


async def _apply(call: Call) -> Any:
    async def work(task: Task) -> None:
        for name, node in call.cluster.nodes.items():
            task.log(f"{name}: reloading network config")
            if node.reload_error is not None:  # noted, and the task ends well all the same
                command = f"pvesh set /nodes/{name}/network --regenerate-frr 0"
                task.lines += [node.reload_error, f"command '{command}' failed: exit code 255"]
        await call.cluster.spend("reload")
        sdn = call.cluster.sdn
        sdn.applied = {what: copy.deepcopy(getattr(sdn, what)) for what in _IDS}

    return call.start("reloadnetworkall", "", work)


async def _node_zones(call: Call) -> Any:
    zones, applied = call.cluster.sdn.zones, call.cluster.sdn.applied["zones"]
    error = call.cluster.nodes[call.node].reload_error
    return [
        {"zone": name, "status": "available" if name in applied and error is None else "pending"}
        for name in zones
        if call.has(f"/sdn/zones/{name}", "SDN.Audit", "SDN.Allocate", "SDN.Use")
    ]


async def _overview(call: Call) -> Any:
    return [{"id": each} for each in ("vnets", "zones", "controllers", "ipams", "dns")]


_S = "/cluster/sdn"
_FLAGS = {"pending": FLAG, "running": FLAG}
_ZONE = {
    "type": need(one_of("evpn", "faucet", "qinq", "simple", "vlan", "vxlan")), "zone": need(SDN_ID), "bridge": text(),
    "mtu": integer(), "nodes": text(), "peers": text(), "ipam": text(), "dhcp": one_of("dnsmasq"), "tag": integer(0),
    "lock-token": newer(text()),
}  # fmt: skip
_VNET = {
    "vnet": need(SDN_ID), "zone": need(text()), "alias": text(256), "tag": integer(1, 16_777_215), "vlanaware": FLAG,
    "isolate-ports": FLAG, "type": one_of("vnet"), "lock-token": newer(text()),
}  # fmt: skip
METHODS = (
    Method(verb="GET", path=_S, handler=_overview, allow=on("/sdn", "SDN.Audit")),
    Method(verb="PUT", path=_S, handler=_apply, allow=on("/sdn", "SDN.Allocate"), params={
        "lock-token": newer(text()), "release-lock": newer(FLAG),
    }),
    Method(verb="GET", path=f"{_S}/zones", handler=_zones, allow=everybody, params={**_FLAGS, "type": text()}),
    Method(verb="POST", path=f"{_S}/zones", handler=_new_zone, allow=on("/sdn/zones", "SDN.Allocate"), params=_ZONE),
    Method(
        verb="GET", path=f"{_S}/zones/{{zone}}", handler=_one_zone, allow=on("/sdn/zones/{zone}", "SDN.Allocate"),
        params=_FLAGS,
    ),
    Method(
        verb="DELETE", path=f"{_S}/zones/{{zone}}", handler=_drop_zone, allow=on("/sdn/zones/{zone}", "SDN.Allocate"),
    ),
    Method(verb="GET", path=f"{_S}/vnets", handler=_vnets, allow=everybody, params=_FLAGS),
    Method(
        verb="POST", path=f"{_S}/vnets", handler=_new_vnet, allow=on("/sdn/zones/{zone}", "SDN.Allocate"),
        params=_VNET,
    ),
    Method(verb="GET", path=f"{_S}/vnets/{{vnet}}", handler=_one_vnet, allow=everybody, params=_FLAGS),
    Method(verb="DELETE", path=f"{_S}/vnets/{{vnet}}", handler=_drop_vnet, allow=on("/sdn/zones", "SDN.Allocate")),
    Method(verb="GET", path=f"{_S}/vnets/{{vnet}}/subnets", handler=_subnets, allow=everybody, params=_FLAGS),
    Method(
        verb="POST", path=f"{_S}/vnets/{{vnet}}/subnets", handler=_new_subnet, allow=on("/sdn/zones", "SDN.Allocate"),
        params={
            "subnet": need(NETWORK), "type": need(one_of("subnet")), "gateway": ADDRESS, "snat": FLAG,
            "dhcp-range": WORDS, "dnszoneprefix": text(), "dhcp-dns-server": ADDRESS,
        },
    ),
    Method(
        verb="DELETE", path=f"{_S}/vnets/{{vnet}}/subnets/{{subnet}}", handler=_drop_subnet,
        allow=on("/sdn/zones", "SDN.Allocate"),
    ),
    Method(verb="GET", path="/nodes/{node}/sdn/zones", handler=_node_zones, allow=everybody),
)  # fmt: skip
