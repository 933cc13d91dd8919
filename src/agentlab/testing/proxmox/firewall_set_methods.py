"""Methods of the firewall about addresses: sets, aliases, what can be referred to."""

from __future__ import annotations

from typing import Any

from agentlab.testing.proxmox.formats import (
    FIREWALL_NAME,
    NETWORK,
    NETWORK_OR_ALIAS,
)
from agentlab.testing.proxmox.kinds import FLAG, need, one_of, text
from agentlab.testing.proxmox.method import VM, Call, Method, Rule, on
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.units import stamp


async def _sets(call: Call) -> Any:
    firewall = call.firewall()
    rows = []
    for name, entries in firewall.ipsets.items():
        row = {"name": name, "digest": stamp((name, entries))}
        if name in firewall.set_comments:
            row["comment"] = firewall.set_comments[name]
        rows.append(row)
    return rows


async def _new_set(call: Call) -> Any:
    firewall, values = call.firewall(), call.values
    name, rename = values["name"], values.get("rename")
    if rename is not None:
        if rename not in firewall.ipsets:
            raise Refused(f"no such IPSet '{rename}'")
        firewall.ipsets[name] = firewall.ipsets.pop(rename)
    elif name in firewall.ipsets:
        raise Refused(f"IPSet '{name}' already exists")
    else:
        firewall.ipsets[name] = {}
    if "comment" in values:
        firewall.set_comments[name] = values["comment"]


def _set(call: Call) -> dict[str, dict[str, Any]]:
    found = call.firewall().ipsets.get(call.values["name"])
    if found is None:
        raise Refused(f"no such IPSet '{call.values['name']}'")
    return found


async def _drop_set(call: Call) -> Any:
    if _set(call) and not call.values.get("force"):
        raise Refused(f"IPSet '{call.values['name']}' is not empty")
    del call.firewall().ipsets[call.values["name"]]


async def _entries(call: Call) -> Any:
    found = _set(call)
    return [entry | {"cidr": cidr, "digest": stamp(found)} for cidr, entry in found.items()]


async def _new_entry(call: Call) -> Any:
    found, cidr = _set(call), call.values["cidr"]
    if cidr in found:
        raise invalid({"cidr": f"address '{cidr}' already exists"})
    found[cidr] = {name: call.values[name] for name in ("comment", "nomatch") if name in call.values}


def _entry(call: Call) -> dict[str, Any]:
    found = _set(call).get(call.values["cidr"])
    if found is None:
        raise invalid({"cidr": "no such IP/Network"})
    return found


async def _one_entry(call: Call) -> Any:
    return _entry(call) | {"cidr": call.values["cidr"], "digest": stamp(_set(call))}


async def _change_entry(call: Call) -> Any:
    entry = _entry(call)
    entry |= {name: call.values[name] for name in ("comment", "nomatch") if name in call.values}


async def _drop_entry(call: Call) -> Any:
    _entry(call)
    del _set(call)[call.values["cidr"]]


async def _aliases(call: Call) -> Any:
    found = call.firewall().aliases
    return [
        {"name": name, "digest": stamp(found), "ipversion": 6 if ":" in each["cidr"] else 4, **each}
        for name, each in found.items()
    ]


async def _new_alias(call: Call) -> Any:
    found, name = call.firewall().aliases, call.values["name"]
    if name in found:
        raise invalid({"name": f"alias '{name}' already exists"})
    found[name] = {key: call.values[key] for key in ("cidr", "comment") if key in call.values}


async def _drop_alias(call: Call) -> Any:
    if call.firewall().aliases.pop(call.values["name"], None) is None:
        raise invalid({"name": f"no such alias '{call.values['name']}'"})


async def _refs(call: Call) -> Any:
    kind, rows = call.values.get("type"), []
    scopes = [("dc", call.cluster.firewall)] + ([("guest", call.vm().firewall)] if "vmid" in call.values else [])
    for scope, firewall in scopes:
        named = [("ipset", name, f"+{scope}/{name}") for name in firewall.ipsets]
        named += [("alias", name, f"{scope}/{name}") for name in firewall.aliases]
        for what, name, reference in named:
            if kind in (None, what):
                bare = reference if "vmid" in call.values else reference.replace(f"{scope}/", "")
                rows.append({"name": name, "ref": bare, "scope": scope, "type": what})
    return rows


def _shared(base: str, see: Rule, change: Rule) -> tuple[Method, ...]:
    """What a VM and the datacenter both have."""
    name, cidr = {"name": need(FIREWALL_NAME)}, {"cidr": need(NETWORK_OR_ALIAS)}
    about = {"comment": text(), "nomatch": FLAG}
    one = f"{base}/ipset/{{name}}/{{cidr}}"
    return (
        Method(verb="GET", path=f"{base}/ipset", handler=_sets, allow=see),
        Method(verb="POST", path=f"{base}/ipset", handler=_new_set, allow=change, params={
            **name, "comment": text(), "rename": FIREWALL_NAME, "digest": _DIGEST,
        }),
        Method(verb="GET", path=f"{base}/ipset/{{name}}", handler=_entries, allow=see, params=name),
        Method(
            verb="POST", path=f"{base}/ipset/{{name}}", handler=_new_entry, allow=change,
            params={**name, **cidr, **about},
        ),
        Method(
            verb="DELETE", path=f"{base}/ipset/{{name}}", handler=_drop_set, allow=change,
            params={**name, "force": FLAG},
        ),
        Method(verb="GET", path=one, handler=_one_entry, allow=see, params={**name, **cidr}),
        Method(
            verb="PUT", path=one, handler=_change_entry, allow=change,
            params={**name, **cidr, **about, "digest": _DIGEST},
        ),
        Method(verb="DELETE", path=one, handler=_drop_entry, allow=change, params={**name, **cidr, "digest": _DIGEST}),
        Method(verb="GET", path=f"{base}/aliases", handler=_aliases, allow=see),
        Method(verb="POST", path=f"{base}/aliases", handler=_new_alias, allow=change, params={
            **name, "cidr": need(NETWORK), "comment": text(),
        }),
        Method(
            verb="DELETE", path=f"{base}/aliases/{{name}}", handler=_drop_alias, allow=change,
            params={**name, "digest": _DIGEST},
        ),
        Method(verb="GET", path=f"{base}/refs", handler=_refs, allow=see, params={"type": one_of("alias", "ipset")}),
    )  # fmt: skip


_DIGEST = text(64)
METHODS = (
    *_shared(f"{VM}/firewall", on("/vms/{vmid}", "VM.Audit"), on("/vms/{vmid}", "VM.Config.Network")),
    *_shared("/cluster/firewall", on("/", "Sys.Audit"), on("/", "Sys.Modify")),
)
