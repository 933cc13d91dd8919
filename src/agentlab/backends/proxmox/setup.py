"""Which steps set a cluster up for AgentLab, by what an administrator wants and sees.  Pure.

What is there and right is left alone and said.  A role that holds less is extended, never reduced; nothing that is not
AgentLab's own is changed, except what was asked for by name: a storage's content and the datacenter's firewall.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from agentlab.backends.proxmox import setup_steps as step
from agentlab.backends.proxmox.privileges import ROLES, Grantee, Where, held, role_privileges
from agentlab.backends.proxmox.setup_seen import Seen
from agentlab.backends.proxmox.setup_steps import Step
from agentlab.model.finding import Finding

IMPORT_TYPES = frozenset({"dir", "nfs", "cifs", "cephfs", "btrfs"})  # storages that can hold images as files


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for.  `zone` None: the one that the bridge is found in.

    `token_works`: the secret at hand is accepted.  `minimal`: without what AgentLab can do without.
    `access_assured`: somebody answers for it that the nodes can still be reached once the datacenter's firewall is on.
    """

    grantee: Grantee
    zone: str | None = None
    token_works: bool = False
    regenerate: bool = False
    minimal: bool = False
    enable_import: bool = False
    enable_firewall: bool = False
    access_assured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupPlan:
    """`grantee` with the version and zone that were found; `kept` is what is right already.

    Findings are what a person has to see to: with a fatal one nothing should be begun.
    """

    grantee: Grantee
    steps: tuple[Step, ...]
    kept: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """What must be put right first."""
        return tuple(each for each in self.findings if each.fatal)


Part = Iterator[Step | str | Finding]  # to do, right already, for a person


def plan(wanted: Wanted, seen: Seen) -> SetupPlan:
    """What is to be done.  ValueError for a version that is not supported."""
    zone = wanted.zone or seen.vnets.get(wanted.grantee.bridge) or wanted.grantee.zone
    grantee = replace(wanted.grantee, version=seen.major, zone=zone)
    wanted = replace(wanted, grantee=grantee)
    parts = [
        *_administrator(grantee, seen),
        *_places(grantee, seen),
        *_storages(wanted, seen),
        *_bridge(wanted, seen),
        *_templates(grantee, seen),
        *_roles(wanted, seen),
        *_subject(wanted, seen),
        *_grants(wanted, seen),
        *_firewall(wanted, seen),
    ]
    return SetupPlan(
        grantee=grantee,
        steps=tuple(each for each in parts if isinstance(each, Step)),
        kept=tuple(each for each in parts if isinstance(each, str)),
        findings=tuple(each for each in parts if isinstance(each, Finding)),
    )


def fresh(grantee: Grantee, now: float = 0) -> Seen:
    """What would be seen of a cluster that has all that set-up does not make, and nothing that it makes."""
    return Seen(
        version=f"{grantee.version}.0",
        now=now,
        permissions={"/": dict.fromkeys(("Permissions.Modify", "Sys.Modify", "Pool.Allocate", "User.Modify"), 1)},
    )


def _administrator(grantee: Grantee, seen: Seen) -> Part:
    """Whether whoever logged in may do it at all: half a set-up would help nobody."""
    needs = [("/access", "Sys.Modify"), ("/access/groups", "User.Modify"), (f"/pool/{grantee.pool}", "Pool.Allocate")]
    needs += [(path, "Permissions.Modify") for where in Where for path in grantee.paths(where)]
    missing = sorted({name for path, name in needs if not held(seen.permissions, path, name)})
    if missing:
        remedy = "Log in as root@pam, or as somebody with the role Administrator on /."
        yield _bad("administrator", f"this user lacks {', '.join(missing)}", remedy)


def _places(grantee: Grantee, seen: Seen) -> Part:
    if grantee.pool in seen.pools:
        yield f"the pool {grantee.pool} is there"
    else:
        yield step.make_pool(grantee.pool)


def _roles(wanted: Wanted, seen: Seen) -> Part:
    grantee = wanted.grantee
    for where in Where:
        if not grantee.paths(where):
            continue
        name, needed = ROLES[where], role_privileges(where, grantee.version, grantee if wanted.minimal else None)
        found = seen.roles.get(name)
        if found is None:
            yield step.make_role(name, needed)
        elif missing := [each for each in needed if each not in found]:
            yield step.extend_role(name, missing)
        else:
            more = sorted(found - set(needed))
            yield f"the role {name} is there" + (f"; it holds more, which stays: {' '.join(more)}" if more else "")


def _subject(wanted: Wanted, seen: Seen) -> Part:
    """The user and its token."""
    grantee = wanted.grantee
    user, _, name = grantee.token.partition("!")
    if user not in seen.users:
        yield step.make_user(user)
    elif seen.users[user]:
        yield f"the user {user} is there"
    else:
        remedy = f"As root on a node: pveum user modify {user} --enable 1 --expire 0"
        yield _bad("user", f"{user} is disabled or has expired, and its tokens with it", remedy)
    token = seen.tokens.get(name)
    if token is None:
        yield step.make_token(grantee.token)
    elif wanted.regenerate:
        yield step.make_token(grantee.token, again=True)
    elif 0 < token.expire < seen.now:
        remedy = f"As root on a node: pveum user token modify {user} {name} --expire 0"
        yield _bad("token", f"{grantee.token} has expired", remedy)
    elif not wanted.token_works:
        remedy = (
            "Give the file that holds it with --token-file; or let it be made anew with --regenerate, which shuts out "
            "whoever uses the old one; or choose another name with --token."
        )
        yield _bad("token", f"{grantee.token} exists, and its secret cannot be read again", remedy)
    else:
        yield f"the token {grantee.token} is there, and its secret is at hand"
    if token is not None and not token.separated and not wanted.regenerate:
        remedy = f"As root on a node: pveum user token modify {user} {name} --privsep 1"
        yield _weak("token", f"{grantee.token} has all rights of its user", remedy)


def _grants(wanted: Wanted, seen: Seen) -> Part:
    """Both the user and the token need each: a token has what both have."""
    grantee = wanted.grantee
    name = grantee.token.partition("!")[2]
    kept = name in seen.tokens and not wanted.regenerate  # the entries of a token go with it
    for where in Where:
        for path in grantee.paths(where):
            role = ROLES[where]
            user = (path, grantee.user, role) in seen.entries
            token = kept and (path, grantee.token, role) in seen.entries
            if user and token:
                yield f"{role} is given on {path}"
            else:
                yield step.grant(path, role, grantee, user=not user, token=not token)


def _storages(wanted: Wanted, seen: Seen) -> Part:
    if not seen.storages:
        return
    names = ", ".join(sorted(seen.storages))
    for name in wanted.grantee.storages:
        found = seen.storages.get(name)
        if found is None:
            yield _bad("storage", f"there is no storage {name}", f"Choose with --storage; there are: {names}.")
        elif "images" not in found.content:
            content = ",".join([*found.content, "images"])
            remedy = f"Choose another with --storage, or as root on a node: pvesm set {name} --content {content}"
            yield _bad("storage", f"{name} does not take disks of VMs", remedy)
        else:
            yield f"the storage {name} ({found.type}) takes disks of VMs"
    for name in wanted.grantee.uploads:
        found = seen.storages.get(name)
        if found is None:
            yield _bad("uploads", f"there is no storage {name}", f"Choose with --uploads; there are: {names}.")
        elif "import" in found.content:
            yield f"the storage {name} ({found.type}) takes images"
        elif found.type not in IMPORT_TYPES:
            usable = ", ".join(sorted(each for each, row in seen.storages.items() if row.type in IMPORT_TYPES))
            remedy = f"Choose one that holds files with --uploads: {usable or 'a directory or NFS storage'}."
            yield _bad("uploads", f"{name} ({found.type}) cannot hold images as files", remedy)
        elif wanted.enable_import:
            yield step.allow_import(name, found.content, found.digest)
        else:
            command = f"pvesm set {name} --content {','.join([*found.content, 'import'])}"
            remedy = f"Run this again with --enable-import, or as root on a node: {command}"
            yield _weak("uploads", f"{name} does not take images (content `import`): templates cannot go there", remedy)


def _bridge(wanted: Wanted, seen: Seen) -> Part:
    name, zone = wanted.grantee.bridge, wanted.grantee.zone
    if not seen.bridges:
        return
    if name in seen.vnets:
        if wanted.zone not in (None, seen.vnets[name]):
            yield _bad(
                "bridge", f"the vnet {name} is in the zone {seen.vnets[name]}, not {wanted.zone}", "Leave --zone out."
            )
        else:
            yield f"{name} is a vnet of the SDN zone {zone}"
        return
    without = sorted(node for node, bridges in seen.bridges.items() if name not in bridges)
    if not without:
        yield f"the bridge {name} is on every node: {', '.join(sorted(seen.bridges))}"
        return
    known = sorted(set[str]().union(*seen.bridges.values(), seen.vnets))
    detail = f"{name} is not to be seen on {', '.join(without)}"
    remedy = (
        f"Choose with --bridge{': ' + ', '.join(known) if known else ''}; or make it: `agentlab setup host-network` on "
        "the node, or Datacenter → SDN; or leave these nodes out by `placement.nodes`."
    )
    yield _weak("bridge", detail, remedy)


def _templates(grantee: Grantee, seen: Seen) -> Part:
    for vmid in grantee.templates:
        if seen.vms.get(vmid):
            yield f"VM {vmid} is a template"
        elif seen.version and seen.bridges:
            detail = f"VM {vmid} is no template" if vmid in seen.vms else f"there is no VM {vmid}"
            yield _bad("template", detail, f"Correct --template, or on its node: qm template {vmid}")


def _firewall(wanted: Wanted, seen: Seen) -> Part:
    """Without it no sandbox has walls.  To enable it must not lock anybody out of the nodes."""
    firewall = seen.firewall
    if firewall.enabled:
        yield "the datacenter's firewall is enabled"
        return
    open_anyway = firewall.policy_in == "ACCEPT"
    if not wanted.enable_firewall:
        remedy = (
            "Run this again with --enable-firewall; or: Datacenter → Firewall → Options → Firewall, after allowing "
            "your own access to ports 8006 and 22."
        )
        yield _weak("datacenter firewall", "it is off, so that no sandbox would have walls", remedy)
    elif firewall.lets_in or open_anyway or wanted.access_assured:
        yield step.enable_firewall(accepting=False, digest=firewall.digest)
    elif not firewall.policy_in:
        yield step.enable_firewall(accepting=True, digest=firewall.digest)
    else:
        remedy = (
            "Put your own addresses into the set `management` (Datacenter → Firewall → IPSet) first.  If you are sure "
            "to get in all the same, from the nodes' own network for example: --i-have-access."
        )
        detail = f"with policy_in {firewall.policy_in} and nobody let in, enabling it may lock you out of the nodes"
        yield _bad("datacenter firewall", detail, remedy)


def script(wanted: Wanted) -> list[str]:
    """The same as lines for a shell on a node, for a fresh cluster; remarks begin with `#`."""
    grantee = wanted.grantee
    made = plan(replace(wanted, enable_firewall=False), fresh(grantee))
    lines = ["# As root on any node of the cluster.  A line that says `already exists` has nothing left to do."]
    for each in made.steps:
        if each.makes_token:
            lines.append(f"# Its secret is shown once.  Write one line, {grantee.token}=SECRET, into the token file.")
        lines.append(each.command)
    for name in grantee.uploads:
        lines += [
            f"# The storage {name} must take images.  `pvesm set` replaces the list, so name what it has, too:",
            f"pvesh get /storage/{name}",
            f"# pvesm set {name} --content WHAT,IT,HAS,import",
        ]
    enable = step.enable_firewall(accepting=True, digest="").command
    lines += [
        "# Without the datacenter's firewall no sandbox has walls.  VMs whose own firewall is enabled get it, too.",
        "# With this line the nodes go on to accept everything; without policy_in it may lock you out of 8006 and 22.",
        enable if wanted.enable_firewall else f"# {enable}",
    ]
    return lines


def _weak(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name=name, ok=False, fatal=False, detail=detail, remedy=remedy)


def _bad(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name=name, ok=False, fatal=True, detail=detail, remedy=remedy)
