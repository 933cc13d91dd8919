"""Users, tokens, roles, pools and access control lists; what one may do where."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agentlab.base.entropy import Entropy
from agentlab.testing.proxmox.privileges import builtin_roles, privileges
from agentlab.testing.proxmox.refusal import Refused, denied, unauthenticated
from agentlab.testing.proxmox.units import new_uuid

ROOT = "root@pam"
SUBJECT = {"user": 0, "group": 1, "token": 2}
ACL_PATH = re.compile(
    r"/|/access(/groups(/[\w.-]+)?|/realm(/[\w.-]+)?)?|/nodes(/[\w.-]+)?|/pool(/[\w.-]+){0,3}|/mapping(/[\w.-]+){0,2}"
    r"|/sdn(/zones(/[\w.-]+){0,3}|/[\w.-]+){0,2}|/storage(/[\w.-]+)?|/vms(/[1-9][0-9]{2,8})?"
)
TOP = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: a user, by a token or not."""

    user: str
    token: str | None = None

    @property
    def authid(self) -> str:
        """`user@realm` or `user@realm!token`."""
        return self.user if self.token is None else f"{self.user}!{self.token}"

    @property
    def is_root(self) -> bool:
        """Whether this is root@pam itself, logged in; a token of root is not."""
        return self.authid == ROOT


@dataclass(slots=True, kw_only=True)
class Token:
    """A token of a user.  `privsep`: it has the rights that both it and its user have."""

    secret: str
    privsep: int = 1
    expire: int = 0
    comment: str | None = None


@dataclass(slots=True, kw_only=True)
class User:
    """An account; `expire` 0 is never."""

    enable: int = 1
    expire: int = 0
    password: str | None = None
    second_factor: bool = False  # its password alone gives half a ticket
    facts: dict[str, str] = field(default_factory=dict)  # comment, email, firstname, lastname, keys
    tokens: dict[str, Token] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Pool:
    """A set of VMs and storages; who may do something on the pool may do it on its members."""

    comment: str | None = None
    vms: set[int] = field(default_factory=set)
    storages: set[str] = field(default_factory=set)


class Access:
    """The state of /access and /pools, with the questions that are asked of it."""

    def __init__(self, major: int, entropy: Entropy) -> None:
        self.known = privileges(major)
        self.builtin = builtin_roles(major)
        self.roles: dict[str, frozenset[str]] = dict(self.builtin)
        self.users: dict[str, User] = {ROOT: User(password=entropy.token(8))}
        self.pools: dict[str, Pool] = {}
        self.acl: dict[str, dict[tuple[str, str], dict[str, int]]] = {}  # path → (type, whom) → role → propagates
        self.tickets: dict[str, tuple[str, str]] = {}  # ticket → user, CSRF token
        self._entropy = entropy

    def new_secret(self) -> str:
        """The value of a new token."""
        return new_uuid(self._entropy)

    def by_token(self, given: str, now: float) -> Caller:
        """Whoever presents `user@realm!id=secret`.  Raises Refused (401), always with the same words."""
        found = re.fullmatch(r"([^!\s]+)!([^=\s]+)=(\S+)", given)
        user = self.users.get(found[1]) if found else None
        token = user.tokens.get(found[2]) if user and found else None
        if found is None or user is None or token is None or token.secret != found[3] or not _valid(user, now):
            raise unauthenticated("Authentication failed!")
        if token.expire and token.expire < now:
            raise unauthenticated("Authentication failed!")
        return Caller(user=found[1], token=found[2])

    def by_password(self, name: str, password: str, now: float) -> Caller:
        """Whoever knows the password.  Raises Refused (401)."""
        user = self.users.get(name)
        if user is None or user.password is None or user.password != password or not _valid(user, now):
            raise Refused("authentication failure", status=401, delay_s=3.0)
        return Caller(user=name)

    def set_acl(self, path: str, kind: str, whom: str, role: str, propagate: int) -> None:
        """Give a role to a user, group or token."""
        self.acl.setdefault(path, {}).setdefault((kind, whom), {})[role] = propagate

    def unset_acl(self, path: str, kind: str, whom: str, role: str) -> None:
        """Take it away; nothing happens if it was not given."""
        entries = self.acl.get(path, {})
        entries.get((kind, whom), {}).pop(role, None)
        if not entries.get((kind, whom)):
            entries.pop((kind, whom), None)
        if not entries:
            self.acl.pop(path, None)

    def pool_of(self, vmid: int) -> str | None:
        """The pool that a VM is a member of."""
        return next((name for name, pool in self.pools.items() if vmid in pool.vms), None)

    def forget_vm(self, vmid: int) -> None:
        """What the destruction of a VM takes along: its membership and its own access control list."""
        self.acl.pop(f"/vms/{vmid}", None)
        for pool in self.pools.values():
            pool.vms.discard(vmid)

    def rights(self, caller: Caller, path: str) -> dict[str, int]:
        """The privileges of `caller` on `path`, each with whether it propagates."""
        if caller.user == ROOT and (caller.token is None or not self._separated(caller)):
            return dict.fromkeys(self.known, 1)
        if caller.token is None or not self._separated(caller):
            return self._rights(("user", caller.user), path)
        users = dict.fromkeys(self.known, 1) if caller.user == ROOT else self._rights(("user", caller.user), path)
        tokens = self._rights(("token", caller.authid), path)
        return {name: propagates & users[name] for name, propagates in tokens.items() if name in users}

    def has(self, caller: Caller, path: str, *wanted: str) -> bool:
        """Whether any of the privileges is there."""
        rights = self.rights(caller, path)
        return any(each in rights for each in wanted)

    def check(self, caller: Caller, path: str, *wanted: str) -> None:
        """Raise Refused (403) unless one of the privileges is there."""
        if not self.has(caller, path, *wanted):
            raise denied(path, "|".join(wanted))

    def all_rights(self, caller: Caller) -> dict[str, dict[str, int]]:
        """Every path that means something to `caller`."""
        paths = set(TOP)
        for path in self.acl:
            paths.update(_prefixes(path))
        for pool in self.pools.values():
            paths.update(f"/vms/{vmid}" for vmid in pool.vms)
            paths.update(f"/storage/{name}" for name in pool.storages)
        found = {path: self.rights(caller, path) for path in sorted(paths)}
        return {path: rights for path, rights in found.items() if rights}

    def may_change_rights(self, caller: Caller, path: str) -> tuple[str, ...]:
        """The privileges of which one lets somebody change the access control list of `path`."""
        for prefix, privilege in (
            ("/storage/", "Datastore.Allocate"),
            ("/vms/", "VM.Allocate"),
            ("/pool/", "Pool.Allocate"),
        ):
            if path.startswith(prefix):
                return ("Permissions.Modify", privilege)
        return ("Permissions.Modify",)

    def _separated(self, caller: Caller) -> bool:
        assert caller.token is not None
        return bool(self.users[caller.user].tokens[caller.token].privsep)

    def _rights(self, subject: tuple[str, str], path: str) -> dict[str, int]:
        roles = self._roles(subject, path)
        for pool in self._pools_with(path):
            for role in self._roles(subject, f"/pool/{pool}"):
                roles.setdefault(role, 0)
        found: dict[str, int] = {}
        for role, propagates in roles.items():
            for name in self.roles.get(role, frozenset()):
                found[name] = max(found.get(name, 0), propagates)
        return found

    def _roles(self, subject: tuple[str, str], path: str) -> dict[str, int]:
        """What is said nearer to the path replaces what is said above it."""
        roles: dict[str, int] = {}
        for prefix in _prefixes(path):
            said = self.acl.get(prefix, {}).get(subject, {})
            holds = {role: propagates for role, propagates in said.items() if propagates or prefix == path}
            if holds:
                roles = {"NoAccess": holds["NoAccess"]} if "NoAccess" in holds else holds
        return dict(roles)

    def _pools_with(self, path: str) -> Iterable[str]:
        kind, _, name = path[1:].partition("/")
        for pool, members in self.pools.items():
            if (kind == "vms" and name.isdigit() and int(name) in members.vms) or (
                kind == "storage" and name in members.storages
            ):
                yield pool


def _valid(user: User, now: float) -> bool:
    return bool(user.enable) and not (user.expire and user.expire < now)


def _prefixes(path: str) -> Iterator[str]:
    yield "/"
    parts = [each for each in path.split("/") if each]
    for end in range(1, len(parts) + 1):
        yield "/" + "/".join(parts[:end])
