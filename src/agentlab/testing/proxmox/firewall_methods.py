"""Methods of the firewall about rules: options, rules, groups, macros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentlab.testing.proxmox.formats import (
    CONFIG_IDS,
    GROUP_NAME,
    POSITION,
    words,
)
from agentlab.testing.proxmox.kinds import FLAG, Kind, integer, matching, need, one_of, text
from agentlab.testing.proxmox.macros import MACROS
from agentlab.testing.proxmox.method import VM, Call, Method, Rule, everybody, on
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.units import stamp

_LEVELS = one_of("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "nolog")
_POLICY = one_of("ACCEPT", "REJECT", "DROP")
_DIGEST = text(64)
_RULE = {
    "action": matching(r"[A-Za-z][A-Za-z0-9\-_]+", 20, 2), "type": one_of("in", "out", "forward", "group"),
    "comment": text(), "dest": text(512), "source": text(512), "dport": text(), "sport": text(), "proto": text(),
    "enable": integer(0), "icmp-type": text(), "iface": matching(r"[a-zA-Z][\w.:-]+", 20, 2), "log": _LEVELS,
    "macro": text(128), "digest": _DIGEST, "pos": POSITION,
}  # fmt: skip
_NEW_RULE = _RULE | {"action": need(_RULE["action"]), "type": need(_RULE["type"])}
_CHANGED_RULE = _RULE | {"delete": CONFIG_IDS, "moveto": POSITION}
_NOT_KEPT = ("pos", "digest", "delete", "moveto", "node", "vmid", "group")
_VM_OPTIONS = {
    "enable": FLAG, "dhcp": FLAG, "ipfilter": FLAG, "macfilter": FLAG, "ndp": FLAG, "radv": FLAG, "policy_in": _POLICY,
    "policy_out": _POLICY, "log_level_in": _LEVELS, "log_level_out": _LEVELS, "delete": CONFIG_IDS, "digest": _DIGEST,
}  # fmt: skip
_RATE = Kind(
    default_key="enable",
    fields={
        "enable": Kind(type="boolean", required=True),
        "burst": integer(0),
        "rate": matching(r"[1-9][0-9]*/(second|minute|hour|day)"),
    },
)
_DC_OPTIONS = {
    "enable": integer(0), "ebtables": FLAG, "log_ratelimit": _RATE, "policy_in": _POLICY, "policy_out": _POLICY,
    "policy_forward": one_of("ACCEPT", "DROP"), "delete": CONFIG_IDS, "digest": _DIGEST,
}  # fmt: skip


def _check(stated: str | None, values: object) -> None:
    if stated and stated != stamp(values):
        raise Refused("detected modified configuration - file changed by other user? Try again.")


async def _options(call: Call) -> Any:
    options = call.firewall().options
    return options | {"digest": stamp(options)}


async def _change_options(call: Call) -> Any:
    options, values = call.firewall().options, call.values
    _check(values.get("digest"), options)
    for name in words(values.get("delete", "")):
        options.pop(name, None)
    known = _VM_OPTIONS if "vmid" in values else _DC_OPTIONS
    options |= {name: value for name, value in values.items() if name in known and name not in ("delete", "digest")}


def _list(call: Call) -> list[dict[str, Any]]:
    """The list of rules that the path is about."""
    firewall = call.firewall()
    if "group" not in call.values:
        return firewall.rules
    found = firewall.groups.get(call.values["group"])
    if found is None:
        raise Refused(f"no such security group '{call.values['group']}'")
    return found


def _checked(call: Call, values: Mapping[str, Any]) -> dict[str, Any]:
    rule = {name: value for name, value in values.items() if name not in _NOT_KEPT}
    errors = {}
    if rule.get("type") == "group":
        if rule["action"] not in call.cluster.firewall.groups:
            errors["action"] = f"security group '{rule['action']}' does not exist"
    elif rule.get("action") not in ("ACCEPT", "DROP", "REJECT"):
        errors["action"] = f"unknown action '{rule.get('action')}'"
    if "macro" in rule and rule["macro"] not in MACROS:
        errors["macro"] = f"unknown macro '{rule['macro']}'"
    for name in ("dport", "sport"):
        if name in rule and rule.get("proto") not in ("tcp", "udp", "udplite", "sctp", "dccp"):
            errors[name] = (
                f"proto '{rule.get('proto', '')}' does not support ports"
                if "proto" in rule
                else "missing property - 'proto'"
            )
    if errors:
        raise invalid({name: f"{text_}\n" if name == "dport" else text_ for name, text_ in errors.items()})
    return rule


async def _rules(call: Call) -> Any:
    rules = _list(call)
    return [rule | {"pos": at, "digest": stamp(rules)} for at, rule in enumerate(rules)]


async def _new_rule(call: Call) -> Any:
    rules = _list(call)
    _check(call.values.get("digest"), rules)
    rules.insert(min(call.values.get("pos", 0), len(rules)), _checked(call, call.values))


def _at(call: Call, rules: list[dict[str, Any]]) -> int:
    _check(call.values.get("digest"), rules)
    if call.values["pos"] >= len(rules):
        raise Refused(f"no rule at position {call.values['pos']}")
    return int(call.values["pos"])


async def _one_rule(call: Call) -> Any:
    rules = _list(call)
    at = _at(call, rules)
    return rules[at] | {"pos": at, "digest": stamp(rules)}


async def _change_rule(call: Call) -> Any:
    rules, values = _list(call), call.values
    at = _at(call, rules)
    if "moveto" in values:
        rule = rules.pop(at)
        rules.insert(values["moveto"] - (1 if values["moveto"] > at else 0), rule)
        return
    kept = {name: value for name, value in rules[at].items() if name not in words(values.get("delete", ""))}
    rules[at] = _checked(call, kept | values)


async def _drop_rule(call: Call) -> Any:
    rules = _list(call)
    del rules[_at(call, rules)]


async def _groups(call: Call) -> Any:
    firewall = call.cluster.firewall
    if not call.has("/", "Sys.Audit"):
        return []
    rows = []
    for name, rules in firewall.groups.items():
        row = {"group": name, "digest": stamp((name, rules))}
        if name in firewall.group_comments:
            row["comment"] = firewall.group_comments[name]
        rows.append(row)
    return rows


async def _new_group(call: Call) -> Any:
    firewall, name = call.cluster.firewall, call.values["group"]
    if name in firewall.groups:
        raise Refused(f"Security group '{name}' already exists")
    firewall.groups[name] = []
    if "comment" in call.values:
        firewall.group_comments[name] = call.values["comment"]


async def _drop_group(call: Call) -> Any:
    name = call.values["group"]
    if call.cluster.firewall.groups.get(name):
        raise Refused(f"Security group '{name}' is not empty")
    if call.cluster.firewall.groups.pop(name, None) is None:
        raise Refused(f"Security group '{name}' does not exist")


async def _macros(call: Call) -> Any:
    return [{"macro": name, "descr": f"{name} traffic"} for name in MACROS]


async def _log(call: Call) -> Any:
    call.vm()
    return [{"n": 1, "t": "no content"}]


def _shared(base: str, see: Rule, change: Rule, options: Mapping[str, Kind]) -> tuple[Method, ...]:
    """What a VM and the datacenter both have."""
    position = {"pos": need(POSITION)}
    return (
        Method(verb="GET", path=f"{base}/options", handler=_options, allow=see),
        Method(verb="PUT", path=f"{base}/options", handler=_change_options, allow=change, params=options),
        Method(verb="GET", path=f"{base}/rules", handler=_rules, allow=see),
        Method(verb="POST", path=f"{base}/rules", handler=_new_rule, allow=change, params=_NEW_RULE),
        Method(verb="GET", path=f"{base}/rules/{{pos}}", handler=_one_rule, allow=see, params=position),
        Method(
            verb="PUT", path=f"{base}/rules/{{pos}}", handler=_change_rule, allow=change,
            params=_CHANGED_RULE | position,
        ),
        Method(
            verb="DELETE", path=f"{base}/rules/{{pos}}", handler=_drop_rule, allow=change,
            params={**position, "digest": _DIGEST},
        ),
    )  # fmt: skip


_DC, _AUDIT, _MODIFY = "/cluster/firewall", on("/", "Sys.Audit"), on("/", "Sys.Modify")
_GROUP = {"group": need(GROUP_NAME)}
_ONE = {**_GROUP, "pos": need(POSITION)}
METHODS = (
    *_shared(f"{VM}/firewall", on("/vms/{vmid}", "VM.Audit"), on("/vms/{vmid}", "VM.Config.Network"), _VM_OPTIONS),
    Method(verb="GET", path=f"{VM}/firewall/log", handler=_log, allow=on("/vms/{vmid}", "VM.Console"), params={
        "limit": integer(0), "start": integer(0), "since": integer(0), "until": integer(0),
    }),
    *_shared(_DC, _AUDIT, _MODIFY, _DC_OPTIONS),
    Method(verb="GET", path=f"{_DC}/macros", handler=_macros, allow=everybody),
    Method(verb="GET", path=f"{_DC}/groups", handler=_groups, allow=everybody),
    Method(verb="POST", path=f"{_DC}/groups", handler=_new_group, allow=_MODIFY, params={
        **_GROUP, "comment": text(), "rename": GROUP_NAME, "digest": _DIGEST,
    }),
    Method(verb="GET", path=f"{_DC}/groups/{{group}}", handler=_rules, allow=_AUDIT, params=_GROUP),
    Method(verb="POST", path=f"{_DC}/groups/{{group}}", handler=_new_rule, allow=_MODIFY, params=_NEW_RULE | _GROUP),
    Method(verb="DELETE", path=f"{_DC}/groups/{{group}}", handler=_drop_group, allow=_MODIFY, params=_GROUP),
    Method(verb="GET", path=f"{_DC}/groups/{{group}}/{{pos}}", handler=_one_rule, allow=_AUDIT, params=_ONE),
    Method(
        verb="PUT", path=f"{_DC}/groups/{{group}}/{{pos}}", handler=_change_rule, allow=_MODIFY,
        params=_CHANGED_RULE | _ONE,
    ),
    Method(verb="DELETE", path=f"{_DC}/groups/{{group}}/{{pos}}", handler=_drop_rule, allow=_MODIFY, params={
        **_ONE, "digest": _DIGEST,
    }),
)  # fmt: skip
