"""Whom a command runs as: looked up in the machine's own files, without the C library's plug-ins."""

from __future__ import annotations

import os

from agentlab_guest.record import record

GROUPS_MAX = 64
KNOWN_MAX = 64


class UnknownUser(ValueError):
    """The machine has no such user."""


@record
class Person:
    """The ids, and what a login would set."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


ROOT = Person(name="root", uid=0, gid=0, home="/root")


class People:
    """Accounts by name or number, looked up anew when the files have changed."""

    def __init__(self) -> None:
        self._state: tuple[object, ...] = ()
        self._known: dict[str, Person] = {}

    def find(self, user: str) -> Person:
        """See `find_person`.  To read the files takes longer than to start the command, when that is emulated."""
        if user in ("root", "0"):
            return ROOT
        if (state := (_stamp("/etc/passwd"), _stamp("/etc/group"))) != self._state or len(self._known) >= KNOWN_MAX:
            self._state = state
            self._known.clear()
        if user not in self._known:
            self._known[user] = find_person(user)
        return self._known[user]


def find_person(user: str) -> Person:
    """The account of a name or a number; a number without an account is allowed.  Raises UnknownUser."""
    if user in ("root", "0"):
        return ROOT
    for row in _rows("/etc/passwd", 7):
        if user in (row[0], row[2]) and row[2].isdigit() and row[3].isdigit():
            return Person(name=row[0], uid=int(row[2]), gid=int(row[3]), groups=_groups(row[0]), home=row[5] or "/")
    if user.isascii() and user.isdigit() and int(user) < 1 << 31:
        return Person(name=user, uid=int(user), gid=int(user))
    raise UnknownUser(f"the sandbox has no user {user!r}")


def _groups(name: str) -> tuple[int, ...]:
    rows = _rows("/etc/group", 4)
    return tuple(int(row[2]) for row in rows if row[2].isdigit() and name in row[3].split(","))[:GROUPS_MAX]


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _rows(path: str, columns: int) -> list[list[str]]:
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 20).decode(errors="replace")
    except OSError:
        return []
    return [row for line in text.splitlines() if len(row := line.split(":")) == columns]
