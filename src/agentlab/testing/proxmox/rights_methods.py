"""Methods of /access about rights: roles, access control lists, what one may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentlab.testing.proxmox.access import ACL_PATH, SUBJECT, Access, Caller
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.formats import ROLE, words
from agentlab.testing.proxmox.kinds import FLAG, Kind, Malformed, need, text
from agentlab.testing.proxmox.method import Call, Method, everybody, on
from agentlab.testing.proxmox.refusal import Refused, invalid


def _privileges(access: Access, given: str) -> frozenset[str]:
    found = frozenset(words(given))
    for each in sorted(found):
        if each not in access.known:
            raise invalid({"privs": f"invalid format - invalid privilege '{each}'\n"})
    return found


async def _permissions(call: Call) -> Any:
    access = call.cluster.access
    whom = call.caller
    if "userid" in call.values:
        user, _, token = call.values["userid"].partition("!")
        if user != call.caller.user:
            call.check("/access", "Sys.Audit")
        whom = Caller(user=user, token=token or None)
    found = access.all_rights(whom)
    path = call.values.get("path")
    if path is not None:
        return {path: access.rights(whom, path)}
    return {each: dict.fromkeys(sorted(rights), 1) for each, rights in found.items()}


async def _roles(call: Call) -> Any:
    access = call.cluster.access
    return [
        {"roleid": name, "privs": ",".join(sorted(privileges)), "special": int(name in access.builtin)}
        for name, privileges in access.roles.items()
    ]


async def _role(call: Call) -> Any:
    name = call.values["roleid"]
    if name not in call.cluster.access.roles:
        raise Refused(f"role '{name}' does not exist")
    return dict.fromkeys(sorted(call.cluster.access.roles[name]), 1)


async def _new_role(call: Call) -> Any:
    access, name = call.cluster.access, call.values["roleid"]
    if name.lower().startswith("pve"):
        raise invalid({"roleid": "cannot use role ID starting with the (case-insensitive) 'PVE' namespace"})
    found = _privileges(access, call.values.get("privs", ""))
    if name in access.roles:
        raise Refused(f"create role failed: role '{name}' already exists")
    access.roles[name] = found


async def _change_role(call: Call) -> Any:
    access, name = call.cluster.access, call.values["roleid"]
    found = _privileges(access, call.values.get("privs", ""))
    if name in access.builtin:
        raise Refused(f"auto-generated role '{name}' cannot be modified")
    if name not in access.roles:
        raise Refused(f"update role failed: role '{name}' does not exist")
    access.roles[name] = access.roles[name] | found if call.values.get("append") else found


async def _drop_role(call: Call) -> Any:
    access, name = call.cluster.access, call.values["roleid"]
    if name in access.builtin:
        raise Refused(f"auto-generated role '{name}' cannot be deleted")
    if access.roles.pop(name, None) is None:
        raise Refused(f"delete role failed: role '{name}' does not exist")
    for path, entries in list(access.acl.items()):
        for kind, whom in list(entries):
            access.unset_acl(path, kind, whom, name)


def _may_change_acl(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
    path = _path(values)
    cluster.access.check(caller, path, *cluster.access.may_change_rights(caller, path))


def _path(values: Mapping[str, Any]) -> str:
    return "/" + str(values.get("path", "")).strip("/")


async def _acl(call: Call) -> Any:
    access = call.cluster.access
    rows = []
    for path, entries in sorted(access.acl.items()):
        if not call.has(path, *access.may_change_rights(call.caller, path)) and not call.has("/access", "Sys.Audit"):
            continue
        for (kind, whom), roles in sorted(entries.items(), key=lambda entry: (SUBJECT[entry[0][0]], entry[0])):
            rows += [
                {"path": path, "propagate": flag, "roleid": role, "type": kind, "ugid": whom}
                for role, flag in roles.items()
            ]
    return rows


async def _change_acl(call: Call) -> Any:
    access, values, path = call.cluster.access, call.values, _path(call.values)
    subjects = [(kind, whom) for kind in ("user", "group", "token") for whom in words(values.get(f"{kind}s", ""))]
    if not subjects:
        names = ("users", "groups", "tokens")
        raise invalid(dict.fromkeys(names, "either 'users', 'groups' or 'tokens' is required."))
    if not ACL_PATH.fullmatch(path):
        raise invalid({"path": f"invalid ACL path '{path}'"})
    propagate = values.get("propagate", 1)
    for role in words(values["roles"]):
        if role not in access.roles:
            raise Refused(f"ACL update failed: role '{role}' does not exist")
        _may_give(call, role, path, bool(propagate))
        for kind, whom in subjects:
            _exists(access, kind, whom)
            if values.get("delete"):
                access.unset_acl(path, kind, whom, role)
            else:
                access.set_acl(path, kind, whom, role, propagate)


def _may_give(call: Call, role: str, path: str, propagate: bool) -> None:
    access = call.cluster.access
    rights = access.rights(call.caller, path)
    if "Permissions.Modify" in rights:
        return
    needs = "requires 'Permissions.Modify' or"
    given = access.roles[role]
    refused = f"Cannot add role '{role}' - {needs} superset of privileges." if given - rights.keys() else None
    if refused is None and propagate and any(not rights[each] for each in given):
        refused = f"Cannot add role '{role}' with propagation - {needs} propagated superset of privileges."
    if refused is not None:
        raise invalid({"role": refused}).prefixed("ACL update failed")


def _exists(access: Access, kind: str, whom: str) -> None:
    user, _, token = whom.partition("!")
    if kind == "group":
        raise Refused(f"ACL update failed: group '{whom}' does not exist")
    if user not in access.users:
        raise Refused(f"ACL update failed: user '{user}' does not exist")
    if kind == "token" and token not in access.users[user].tokens:
        raise Refused(f"ACL update failed: no such token '{token}' for user '{user}'")


def _known_privileges(given: str) -> None:
    if any(not each.replace(".", "").isalnum() for each in words(given)):
        raise Malformed(f"invalid privilege '{given}'")


_MODIFY = on("/access", "Sys.Modify")
_PRIVILEGES = Kind(check=_known_privileges)


METHODS = (
    Method(verb="GET", path="/access/permissions", handler=_permissions, allow=everybody, params={
        "path": text(), "userid": text(),
    }),
    Method(verb="GET", path="/access/roles", handler=_roles, allow=everybody),
    Method(verb="POST", path="/access/roles", handler=_new_role, allow=_MODIFY, params={
        "roleid": need(ROLE), "privs": _PRIVILEGES,
    }),
    Method(verb="GET", path="/access/roles/{roleid}", handler=_role, allow=everybody),
    Method(verb="PUT", path="/access/roles/{roleid}", handler=_change_role, allow=_MODIFY, params={
        "privs": _PRIVILEGES, "append": FLAG,
    }),
    Method(verb="DELETE", path="/access/roles/{roleid}", handler=_drop_role, allow=_MODIFY),
    Method(verb="GET", path="/access/acl", handler=_acl, allow=everybody),
    Method(verb="PUT", path="/access/acl", handler=_change_acl, allow=_may_change_acl, params={
        "path": need(text()), "roles": need(text()), "users": text(), "groups": text(), "tokens": text(),
        "propagate": FLAG, "delete": FLAG,
    }),
)  # fmt: skip
