"""The least that the token must be allowed, by version: the one definition of which set-up, doctor and docs are made.

Each row was found by taking one privilege away at a time (9.2), or from the published schema (8.4).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

VERSIONS = (8, 9)  # major versions that are supported


class Where(enum.Enum):
    """The places in the tree of objects at which something is granted."""

    POOL = "/pool/{pool}"
    TEMPLATE = "/vms/{template}"
    STORAGE = "/storage/{storage}"
    UPLOADS = "/storage/{uploads}"
    NETWORK = "/sdn/zones/{zone}/{bridge}"
    NODES = "/nodes"


# One role for each place, so that what is granted at one place is not granted at another: with VM.Allocate by a direct
# entry on a template, a token could hand rights on it to others.
ROLES: Mapping[Where, str] = {
    Where.POOL: "AgentLabSandboxes",
    Where.TEMPLATE: "AgentLabTemplates",
    Where.STORAGE: "AgentLabStorage",
    Where.UPLOADS: "AgentLabUploads",
    Where.NETWORK: "AgentLabNetwork",
    Where.NODES: "AgentLabNodes",
}
assert ROLES.keys() == set(Where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Privilege:
    """One privilege at one place, and what fails without it."""

    name: str
    where: Where
    needed_for: str
    optional: bool = False  # AgentLab works without, less well; `needed_for` says how
    builds: bool = False  # an optional one that is needed after all where AgentLab builds its templates itself
    versions: tuple[int, ...] = VERSIONS

    def essential(self, grantee: Grantee) -> bool:
        """Whether no sandbox can be made without it."""
        return not self.optional or (self.builds and not grantee.templates)


def _at(where: Where, *rows: tuple[str, str], optional: bool = False, builds: bool = False) -> tuple[Privilege, ...]:
    return tuple(
        Privilege(name=name, where=where, needed_for=why, optional=optional, builds=builds) for name, why in rows
    )


PRIVILEGES: tuple[Privilege, ...] = (
    *_at(
        Where.POOL,
        ("Pool.Audit", "seeing what is in the pool"),
        ("VM.Allocate", "making and destroying sandboxes"),
        ("VM.Audit", "seeing sandboxes and reading their marks"),
        ("VM.Config.CPU", "the number of cores"),
        ("VM.Config.Disk", "the size of the disk, and workspaces"),
        ("VM.Config.HWType", "the identity by SMBIOS, which marks a sandbox as ours"),
        ("VM.Config.Memory", "the amount of memory"),
        ("VM.Config.Network", "the network card and the sandbox's firewall"),
        ("VM.Config.Options", "name, description, tags and agent"),
        ("VM.PowerMgmt", "starting, stopping, pausing"),
        ("VM.Snapshot", "snapshots and going back to them"),
    ),
    Privilege(
        name="VM.GuestAgent.Unrestricted",
        where=Where.POOL,
        needed_for="what a machine that did not call home can still say",
        optional=True,
        versions=(9,),
    ),
    Privilege(
        name="VM.Monitor",
        where=Where.POOL,
        needed_for="what a machine that did not call home can still say",
        optional=True,
        versions=(8,),
    ),
    *_at(
        Where.POOL,
        ("VM.Clone", "cloning templates that AgentLab itself built in the pool"),
        optional=True,
        builds=True,
    ),
    *_at(
        Where.TEMPLATE,
        ("VM.Audit", "seeing the template and what it lacks"),
        ("VM.Clone", "making sandboxes of it"),
    ),
    *_at(
        Where.STORAGE,
        ("Datastore.AllocateSpace", "the disks of sandboxes"),
        ("Datastore.Audit", "seeing how much space is left"),
    ),
    *_at(
        Where.UPLOADS,
        ("Datastore.AllocateTemplate", "bringing templates to the cluster"),
        ("Datastore.Audit", "seeing which of them are there"),
        optional=True,
        builds=True,
    ),
    *_at(Where.UPLOADS, ("Datastore.Allocate", "removing uploaded images again"), optional=True),
    *_at(Where.NETWORK, ("SDN.Use", "connecting sandboxes to the bridge")),
    *_at(Where.NODES, ("Sys.Audit", "the load of nodes, and the tasks of others")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grantee:
    """Who gets the privileges, and the names of the places."""

    token: str  # user@realm!name
    pool: str
    version: int = VERSIONS[-1]  # of Proxmox VE, major
    templates: tuple[int, ...] = ()
    storages: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()
    bridge: str = "vmbr0"
    zone: str = "localnetwork"
    extra_paths: Mapping[Where, tuple[str, ...]] = field(default_factory=dict)

    @property
    def user(self) -> str:
        """Whose token it is: with privilege separation both need every entry."""
        return self.token.partition("!")[0]

    def paths(self, where: Where) -> tuple[str, ...]:
        """The paths of a place here; none if nothing of the kind is used."""
        made = {
            Where.POOL: (self.pool,),
            Where.TEMPLATE: self.templates,
            Where.STORAGE: self.storages,
            Where.UPLOADS: self.uploads,
            Where.NETWORK: (self.bridge,),
            Where.NODES: ("",),
        }[where]
        named = [
            where.value.format(pool=each, template=each, storage=each, uploads=each, bridge=each, zone=self.zone)
            for each in made
        ]
        return (*named, *self.extra_paths.get(where, ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """A privilege that is not there, and the command that grants it."""

    privilege: Privilege
    path: str
    command: str


def of_version(version: int) -> tuple[Privilege, ...]:
    """The rows that apply.  ValueError for a version that is not supported."""
    if version < VERSIONS[0]:
        raise ValueError(f"Proxmox VE {version} is not supported; {VERSIONS[0]} or newer is needed")
    known = min(version, VERSIONS[-1])  # a newer one is taken for the newest that we know
    return tuple(each for each in PRIVILEGES if known in each.versions)


def role_privileges(where: Where, version: int, least: Grantee | None = None) -> tuple[str, ...]:
    """What the role of a place holds, in order; with `least`, only what is essential for that grantee."""
    rows = [each for each in of_version(version) if each.where is where]
    return tuple(sorted({each.name for each in rows if least is None or each.essential(least)}))


def grant(path: str, role: str, grantee: Grantee) -> str:
    """The command that gives a role at a path to both the user and the token."""
    return f"pveum acl modify {path} --roles {role} --users '{grantee.user}' --tokens '{grantee.token}'"


def set_up(grantee: Grantee) -> list[str]:
    """All commands for roles and entries, for people who would rather run them themselves."""
    used = [where for where in Where if grantee.paths(where)]
    roles = [
        f'pveum role add {ROLES[where]} --privs "{" ".join(role_privileges(where, grantee.version))}"' for where in used
    ]
    return roles + [grant(path, ROLES[where], grantee) for where in used for path in grantee.paths(where)]


def remedy(path: str, names: Sequence[str], grantee: Grantee) -> str:
    """What to run when the cluster said that one of the privileges `names` is missing at `path`.

    A sandbox's rights come from its pool; so those are granted there, and never on the VM itself.
    """
    where, at = _place(path, names, grantee)
    if where is None:
        return f"pveum role add AgentLabMore --privs {names[0]} && {grant(at, 'AgentLabMore', grantee)}"
    wanted = next((each for each in names if each in role_privileges(where, grantee.version)), names[0])
    role = ROLES[where]
    return f"pveum role modify {role} --append 1 --privs {wanted} && {grant(at, role, grantee)}"


def lacking(permissions: Mapping[str, object], grantee: Grantee) -> list[Lack]:
    """What is missing of the table, by what `GET /access/permissions` told the token about itself."""
    return [
        Lack(privilege=row, path=path, command=remedy(path, [row.name], grantee))
        for row in of_version(grantee.version)
        for path in grantee.paths(row.where)
        if not held(permissions, path, row.name)
    ]


def held(permissions: Mapping[str, object], path: str, name: str) -> bool:
    """Whether `permissions`, as `GET /access/permissions` tells them, hold a privilege at a path.

    By the most specific entry that there is; one further up counts only if it is handed down.
    """
    at = path
    while True:
        entry = permissions.get(at or "/")
        if isinstance(entry, Mapping):
            flag = entry.get(name)
            return flag is not None and (at == path or str(flag) == "1")
        if not at:
            return False
        at = at.rpartition("/")[0]


def _place(path: str, names: Sequence[str], grantee: Grantee) -> tuple[Where | None, str]:
    """The place whose role ought to hold one of the privileges, and the path to grant it at."""
    for where in Where:
        if path in grantee.paths(where) and any(each in role_privileges(where, grantee.version) for each in names):
            return where, path
    known = role_privileges(Where.POOL, grantee.version)
    if path.startswith("/vms/") and any(each in known for each in names):
        return Where.POOL, grantee.paths(Where.POOL)[0]
    kinds = {"/storage/": Where.STORAGE, "/sdn/zones/": Where.NETWORK, "/nodes": Where.NODES, "/vms/": Where.TEMPLATE}
    for prefix, where in kinds.items():
        if path.startswith(prefix):
            fitting = [each for each in (where, Where.UPLOADS) if prefix == "/storage/" or each is where]
            for each in fitting:
                if any(name in role_privileges(each, grantee.version) for name in names):
                    return each, path if where is not Where.NODES else "/nodes"
    return None, path
