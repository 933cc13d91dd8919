"""Methods of /access about who one is: log-in, users, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentlab.testing.proxmox.access import ROOT, Access, Caller, Token, User
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.formats import CONFIG_IDS, TOKEN, USER, words
from agentlab.testing.proxmox.kinds import FLAG, integer, need, newer, text
from agentlab.testing.proxmox.method import Call, Method, everybody, existing_user, on
from agentlab.testing.proxmox.refusal import Refused, invalid

REALMS = ("pam", "pve")
_ABOUT = {
    "comment": text(2048), "email": text(254), "enable": FLAG, "expire": integer(0), "firstname": text(1024),
    "lastname": text(1024), "groups": text(), "keys": text(4096),
}  # fmt: skip
_TOKEN = {"comment": text(), "expire": integer(0), "privsep": FLAG, "tokenid": need(TOKEN)}
_CAPABILITIES = {
    "vms": "/vms", "storage": "/storage", "access": "/access", "nodes": "/nodes", "dc": "/", "sdn": "/sdn",
    "mapping": "/mapping",
}  # fmt: skip


async def _ticket(call: Call) -> Any:
    access, cluster = call.cluster.access, call.cluster
    name = call.values["username"]
    if "realm" in call.values and "@" not in name:
        name = f"{name}@{call.values['realm']}"
    caller = access.by_password(name, call.values["password"], cluster.clock.now())
    stamp = f"{int(cluster.clock.now()):08X}"
    if access.users[caller.user].second_factor:
        half = "PVE:!tfa!%7B%22totp%22%3Atrue%7D:" + access.new_secret()
        return {"NeedTFA": 1, "CSRFPreventionToken": f"{stamp}:x", "ticket": half, "username": name}
    ticket, csrf = f"PVE:{name}:{stamp}::{cluster.entropy.token(48)}==", f"{stamp}:{cluster.entropy.token(21)}"
    access.tickets[ticket] = (name, csrf)
    return {"CSRFPreventionToken": csrf, "cap": _cap(access, caller), "ticket": ticket, "username": name}


def _cap(access: Access, caller: Caller) -> dict[str, dict[str, int]]:
    """What the web interface shows menus by: every right in an area, wherever it holds."""
    found: dict[str, dict[str, int]] = {area: {} for area in _CAPABILITIES}
    for path, rights in access.all_rights(caller).items():
        for name in rights:
            family = name.partition(".")[0]
            for area, prefix in _CAPABILITIES.items():
                if path.startswith(prefix) and prefix != "/" and _FAMILY.get(area) == family:
                    found[area][name] = 1
            if path == "/" and family in ("Sys", "Pool"):
                found["dc"][name] = 1
    return found


_FAMILY = {"vms": "VM", "storage": "Datastore", "nodes": "Sys", "sdn": "SDN", "mapping": "Mapping", "access": "User"}


def _may_create_user(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
    name = str(values.get("userid", ""))
    if len(name) < 3:
        raise Refused(f"user name '{name}' is too short")
    cluster.access.check(caller, f"/access/realm/{name.rpartition('@')[2]}", "Realm.AllocateUser")
    cluster.access.check(caller, "/access/groups", "User.Modify")


def _user(call: Call) -> User:
    name = call.values["userid"]
    found = call.cluster.access.users.get(name)
    if found is None:
        raise Refused(f"no such user ('{name}')")
    return found


def _facts(user: User) -> dict[str, Any]:
    return {"enable": user.enable, "expire": user.expire, **user.facts}


def _set_facts(user: User, values: Mapping[str, Any]) -> None:
    user.enable, user.expire = values.get("enable", user.enable), values.get("expire", user.expire)
    for name in ("comment", "email", "firstname", "lastname", "keys"):
        if name in values:
            user.facts[name] = values[name]


async def _users(call: Call) -> Any:
    rows = []
    for name, user in call.cluster.access.users.items():
        if not call.has("/access/groups", "User.Modify", "Sys.Audit") and call.caller.authid != name:
            continue
        row: dict[str, Any] = {"userid": name, **_facts(user)}
        realm = name.rpartition("@")[2]
        if realm in REALMS:
            row["realm-type"] = realm
        if "comment" in user.facts:
            row.setdefault("email", "")  # the file of users has a column for it
        if call.values.get("full"):
            row |= {"groups": "", "tokens": [_token_row(each, token) for each, token in user.tokens.items()] or None}
        rows.append(row)
    return rows


async def _one_user(call: Call) -> Any:
    user = _user(call)
    tokens = {each: {"expire": t.expire, "privsep": t.privsep} for each, t in user.tokens.items()}
    return _facts(user) | {"groups": [], "tokens": tokens or None}


async def _new_user(call: Call) -> Any:
    access, name = call.cluster.access, call.values["userid"]
    if name in access.users:
        raise Refused(f"create user failed: user '{name}' already exists")
    user = User(password=call.values.get("password"))
    _set_facts(user, call.values)
    access.users[name] = user


async def _change_user(call: Call) -> Any:
    _set_facts(_user(call), call.values)


async def _drop_user(call: Call) -> Any:
    access, name = call.cluster.access, call.values["userid"]
    if name == ROOT:
        raise Refused("delete user failed: cannot delete root@pam")
    user = _user(call)
    for token in list(user.tokens):
        _forget(access, "token", f"{name}!{token}")
    _forget(access, "user", name)
    del access.users[name]


async def _password(call: Call) -> Any:
    _user(call).password = call.values["password"]


def _forget(access: Access, kind: str, whom: str) -> None:
    for path, entries in list(access.acl.items()):
        for role in list(entries.get((kind, whom), {})):
            access.unset_acl(path, kind, whom, role)


def _token_row(name: str, token: Token) -> dict[str, Any]:
    return {"tokenid": name, **_token_facts(token)}


def _token_facts(token: Token) -> dict[str, Any]:
    comment = {} if token.comment is None else {"comment": token.comment}
    return {"expire": token.expire, "privsep": token.privsep, **comment}


def _token(call: Call) -> Token:
    name, user = call.values["tokenid"], call.values["userid"]
    found = _user(call).tokens.get(name)
    if found is None:
        raise Refused(f"no such token '{name}' for user '{user}'")
    return found


async def _tokens(call: Call) -> Any:
    return [_token_row(name, token) for name, token in _user(call).tokens.items()]


async def _one_token(call: Call) -> Any:
    return _token_facts(_token(call))


async def _new_token(call: Call) -> Any:
    access, values = call.cluster.access, call.values
    user, name = _user(call), values["tokenid"]
    if name in user.tokens:
        raise invalid({"tokenid": "Token already exists."})
    token = Token(
        secret=access.new_secret(),
        privsep=values.get("privsep", 1),
        expire=values.get("expire", user.expire),
        comment=values.get("comment"),
    )
    user.tokens[name] = token
    info: dict[str, Any] = {"privsep": str(token.privsep)}
    info |= {key: values[key] for key in ("comment", "expire") if key in values}
    return {"full-tokenid": f"{values['userid']}!{name}", "info": info, "value": token.secret}


async def _change_token(call: Call) -> Any:
    token, values = _token(call), call.values
    token.privsep, token.expire = values.get("privsep", token.privsep), values.get("expire", token.expire)
    token.comment = values.get("comment", token.comment)
    for name in words(values.get("delete", "")):
        if name == "comment":
            token.comment = None
    answer = _token_facts(token)
    answer |= {key: str(values[key]) for key in ("expire", "privsep") if key in values}
    if values.get("regenerate"):
        token.secret = call.cluster.access.new_secret()
        answer |= {"full-tokenid": f"{values['userid']}!{values['tokenid']}", "value": token.secret}
    return answer


async def _drop_token(call: Call) -> Any:
    _token(call)
    name, user = call.values["tokenid"], call.values["userid"]
    del _user(call).tokens[name]
    _forget(call.cluster.access, "token", f"{user}!{name}")


async def _domains(call: Call) -> Any:
    return [{"realm": realm, "type": realm, "comment": f"realm {realm}"} for realm in REALMS]


_U, _T = "/access/users/{userid}", "/access/users/{userid}/token/{tokenid}"

METHODS = (
    Method(verb="POST", path="/access/ticket", handler=_ticket, allow=everybody, writes=False, params={
        "username": need(text(64)), "password": need(text()), "realm": text(32), "new-format": FLAG, "otp": text(),
        "path": text(64), "privs": text(64), "tfa-challenge": text(),
    }),
    Method(verb="PUT", path="/access/password", handler=_password, allow=existing_user, params={
        "userid": need(USER), "password": need(text(64, 8)), "confirmation-password": text(64, 5),
    }),
    Method(verb="GET", path="/access/users", handler=_users, allow=everybody, params={"full": FLAG, "enabled": FLAG}),
    Method(verb="POST", path="/access/users", handler=_new_user, allow=_may_create_user, params={
        "userid": need(USER), "password": text(64, 8), **_ABOUT,
    }),
    Method(verb="GET", path=_U, handler=_one_user, allow=on("/access/groups", "User.Modify", "Sys.Audit")),
    Method(verb="PUT", path=_U, handler=_change_user, allow=existing_user, params={**_ABOUT, "append": FLAG}),
    Method(verb="DELETE", path=_U, handler=_drop_user, allow=existing_user),
    Method(verb="GET", path=f"{_U}/token", handler=_tokens, allow=existing_user),
    Method(verb="GET", path=_T, handler=_one_token, allow=existing_user, params={"tokenid": need(TOKEN)}),
    Method(verb="POST", path=_T, handler=_new_token, allow=existing_user, params=_TOKEN),
    Method(verb="PUT", path=_T, handler=_change_token, allow=existing_user, params={
        **_TOKEN, "regenerate": newer(FLAG), "delete": newer(CONFIG_IDS),
    }),
    Method(verb="DELETE", path=_T, handler=_drop_token, allow=existing_user, params={"tokenid": need(TOKEN)}),
    Method(verb="GET", path="/access/domains", handler=_domains, allow=everybody),
)  # fmt: skip
