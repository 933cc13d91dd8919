"""Whom a command runs as, looked up in the guest's own files, which are not to be trusted."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from agentlab.backends.interface import Refused
from agentlab.backends.oci.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_inside

FILE_BYTES_MAX = 1 << 20
GROUPS_MAX = 64
_ID_MAX = 65535  # beyond it nothing is mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The ids inside the sandbox, and the home folder."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


ROOT = Account(name="root", uid=0, gid=0, home="/root")


def find(root: int, user: str) -> Account:
    """The account of `user`, a name or a number, in the file system whose `/` is the directory descriptor `root`.

    Raises Refused if the sandbox knows no such user.
    """
    if user in ("root", "0"):
        return ROOT
    for fields in _lines(root, "etc/passwd", 7):
        if user in (fields[0], fields[2]) and _is_id(fields[2]) and _is_id(fields[3]):
            name, gid = fields[0], int(fields[3])
            groups = _groups(root, name)
            return Account(name=name, uid=int(fields[2]), gid=gid, groups=groups, home=fields[5] or "/")
    if _is_id(user):
        return Account(name=user, uid=int(user), gid=int(user))
    raise Refused(f"the sandbox has no user {user!r}", "Name a user that the template has, such as root.")


def _groups(root: int, name: str) -> tuple[int, ...]:
    found = [
        int(fields[2]) for fields in _lines(root, "etc/group", 4) if name in fields[3].split(",") and _is_id(fields[2])
    ]
    return tuple(found[:GROUPS_MAX])


def _lines(root: int, path: str, fields_count: int) -> list[list[str]]:
    text = read_inside(root, path, FILE_BYTES_MAX).decode(errors="replace")
    return [fields for line in text.splitlines() if len(fields := line.split(":")) == fields_count]


def read_inside(root: int, path: str, bytes_max: int, *, tail: bool = False, links: bool = True) -> bytes:
    """The first (or last) bytes of a regular file below `root`; nothing if it is absent or something else.

    Links lead to places below `root` only; without `links`, nowhere.
    """
    resolve = RESOLVE_IN_ROOT | (RESOLVE_NO_MAGICLINKS if links else RESOLVE_NO_SYMLINKS)
    try:
        descriptor = open_inside(root, path, os.O_RDONLY, resolve)
    except OSError:
        return b""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return b""
        return os.pread(descriptor, bytes_max, max(0, found.st_size - bytes_max) if tail else 0)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= _ID_MAX
