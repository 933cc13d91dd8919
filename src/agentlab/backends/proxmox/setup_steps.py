"""What set-up by an administrator consists of: steps as data, each for people, for the API, and for a shell.  Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentlab.backends.proxmox import encode, privileges
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.privileges import Grantee

POOL_COMMENT = "sandboxes of AgentLab"
USER_COMMENT = "AgentLab: acts by its token alone"
TOKEN_COMMENT = "AgentLab: its daemon"  # noqa: S105 - a remark beside the token


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call; `path` begins behind `/api2/json`."""

    method: str
    path: str
    params: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change: a sentence, the calls that make it, and the line that does the same on a node."""

    does: str
    calls: tuple[Call, ...]
    command: str
    makes_token: bool = False  # the last call's answer holds the token's secret, which is told only once


def make_pool(name: str) -> Step:
    """A pool; one within another needs that first."""
    return Step(
        does=f"make the pool {name}, which all sandboxes belong to",
        calls=(Call(method="POST", path="/pools", params={"poolid": name, "comment": POOL_COMMENT}),),
        command=_line("pveum", "pool", "add", name, "--comment", POOL_COMMENT),
    )


def make_role(name: str, held: Sequence[str]) -> Step:
    """A role."""
    return Step(
        does=f"make the role {name}: {' '.join(held)}",
        calls=(Call(method="POST", path="/access/roles", params={"roleid": name, "privs": ",".join(held)}),),
        command=_line("pveum", "role", "add", name, "--privs", " ".join(held)),
    )


def extend_role(name: str, missing: Sequence[str]) -> Step:
    """Add to a role; what it holds stays."""
    return Step(
        does=f"add to the role {name}: {' '.join(missing)}",
        calls=(
            Call(
                method="PUT",
                path=encode.path("access", "roles", name),
                params={"privs": ",".join(missing), "append": True},
            ),
        ),
        command=_line("pveum", "role", "modify", name, "--append", "1", "--privs", " ".join(missing)),
    )


def make_user(name: str) -> Step:
    """A user who cannot log in, for it has no password."""
    return Step(
        does=f"make the user {name}, without a password",
        calls=(Call(method="POST", path="/access/users", params={"userid": name, "comment": USER_COMMENT}),),
        command=_line("pveum", "user", "add", name, "--comment", USER_COMMENT),
    )


def make_token(token: str, *, again: bool = False) -> Step:
    """A token that has only what it is given itself.  `again`: in the place of one whose secret is not known.

    That one is removed and made anew, for only some versions can give a token another secret.
    """
    user, _, name = token.partition("!")
    path = encode.path("access", "users", user, "token", name)
    add = Call(method="POST", path=path, params={"privsep": True, "comment": TOKEN_COMMENT})
    words = _line("pveum", "user", "token", "add", user, name, "--privsep", "1", "--comment", TOKEN_COMMENT)
    if not again:
        does = f"make the token {token}, with rights of its own only"
        return Step(does=does, calls=(add,), command=words, makes_token=True)
    return Step(
        does=f"make the token {token} anew: whoever uses its old secret is shut out",
        calls=(Call(method="DELETE", path=path), add),
        command=f"{_line('pveum', 'user', 'token', 'delete', user, name)} && {words}",
        makes_token=True,
    )


def grant(path: str, role: str, grantee: Grantee, *, user: bool = True, token: bool = True) -> Step:
    """An entry for the user, the token or both; other entries of the path stay."""
    assert user or token
    whom = " and ".join([grantee.user] * user + [grantee.token] * token)
    params: dict[str, encode.Value] = {"path": path, "roles": role, "propagate": True}
    params |= {"users": grantee.user} if user else {}
    params |= {"tokens": grantee.token} if token else {}
    return Step(
        does=f"give {whom} the role {role} on {path}",
        calls=(Call(method="PUT", path="/access/acl", params=params),),
        command=privileges.grant(path, role, grantee),
    )


def allow_import(storage: str, content: Sequence[str], digest: str) -> Step:
    """Let a storage take images, beside what it takes already."""
    kept = ",".join([*content, "import"])
    return Step(
        does=f"let the storage {storage} take images of templates (content `import`)",
        calls=(
            Call(
                method="PUT",
                path=encode.path("storage", storage),
                params={"content": kept, "digest": digest or None},
            ),
        ),
        command=_line("pvesm", "set", storage, "--content", kept),
    )


def enable_firewall(*, accepting: bool, digest: str) -> Step:
    """Turn the datacenter's firewall on; with `accepting`, the nodes go on to let in what they let in now."""
    params: dict[str, encode.Value] = {"enable": True, "digest": digest or None}
    does = "enable the datacenter's firewall: VMs whose own firewall is enabled get it in earnest"
    words = ["pvesh", "set", "/cluster/firewall/options", "--enable", "1"]
    if accepting:
        params["policy_in"] = "ACCEPT"
        does += "; the nodes themselves go on to accept everything, so that nobody is locked out"
        words += ["--policy_in", "ACCEPT"]
    return Step(
        does=does,
        calls=(Call(method="PUT", path="/cluster/firewall/options", params=params),),
        command=_line(*words),
    )


def _line(*words: str) -> str:
    return shlex.join(words)
