"""Who calls, and what that one may do."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from agentlab.errors import Forbidden


class Role(enum.StrEnum):
    """`admin` may do everything to everything; `user` works on what is its own; `viewer` reads everything."""

    ADMIN = "admin"
    USER = "user"
    VIEWER = "viewer"


_READ = frozenset(
    {"sandbox:read", "job:read", "template:read", "profile:read", "event:read", "daemon:read"},
)
GRANTS: Mapping[Role, frozenset[str]] = {
    Role.VIEWER: _READ,
    Role.USER: _READ | {"sandbox:write", "job:write", "blob:write"},
    Role.ADMIN: _READ | {"sandbox:write", "job:write", "blob:write", "template:write", "daemon:admin"},
}
assert GRANTS.keys() == set(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process at the other end of the socket, as the kernel told when it connected."""

    uid: int
    gid: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A caller.  `name` is what the rows of the store bear as owner."""

    name: str
    role: Role

    @property
    def owner(self) -> str | None:
        """Whose things are visible: one's own for a user, None (everybody's) for the others."""
        return self.name if self.role is Role.USER else None

    def may(self, permission: str) -> bool:
        """Whether the role has this permission."""
        return permission in GRANTS[self.role]


def identify(
    peer: Peer, own_uid: int, roles: Mapping[int, Role] | None = None, *, only_user: int | None = None
) -> Identity:
    """The peer's identity: root and the daemon's own user are admin, others what `roles` says, else user.

    The socket's mode decides who can connect at all.  `only_user` is set where the kernel cannot tell other users
    apart, in a user namespace: the host's name for our own user, the only one who is served.  Forbidden to all others.
    """
    if only_user is not None:
        if peer.uid != own_uid:
            raise Forbidden(identity="another user of the host", permission="to be the user who runs this daemon")
        return Identity(name=f"uid:{only_user}", role=Role.ADMIN)
    name = f"uid:{peer.uid}"
    if peer.uid in (0, own_uid):
        return Identity(name=name, role=Role.ADMIN)
    return Identity(name=name, role=(roles or {}).get(peer.uid, Role.USER))
