"""What the agent left in its repository, read without running git in it and without following its links."""

from __future__ import annotations

import os
import stat

from agentlab_guest.record import record

REF_BYTES_MAX = 4096
PACKED_REFS_BYTES_MAX = 16 << 20
REFS_MAX = 200
DEPTH_MAX = 5
ENTRIES_MAX = 5_000_000  # of the work tree; beyond it the walk stops looking for nested repositories
SHALLOW_BYTES_MAX = 1 << 20


@record
class Repository:
    """`heads` are local branches and the stash by name, `head` the commit that is checked out, if it can be told."""

    git_dir: str
    objects: str
    head: str | None
    heads: dict[str, str]
    shallow: tuple[str, ...]


def find_repository(work: str) -> Repository | None:
    """The repository of the work tree as it is now; None if the agent removed or broke it."""
    git_dir = _git_dir(work)
    if git_dir is None:
        return None
    common = git_dir
    if (named := _text(f"{git_dir}/commondir")) is not None:
        common = os.path.normpath(os.path.join(git_dir, named.strip()))
    objects = f"{common}/objects"
    if not os.path.isdir(objects) or any(letter in objects for letter in "\n\r") or objects.startswith(('"', "#")):
        return None
    refs = _packed(common) | _loose(common)
    heads = {name.removeprefix("refs/heads/"): at for name, at in refs.items() if name.startswith("refs/heads/")}
    if "refs/stash" in refs:
        heads["stash"] = refs["refs/stash"]
    shallow = (_text(f"{common}/shallow", SHALLOW_BYTES_MAX) or "").split()
    return Repository(
        git_dir=git_dir,
        objects=objects,
        head=_resolve(git_dir, refs),
        heads=heads,
        shallow=tuple(each for each in shallow if _is_commit(each)),
    )


@record
class Survey:
    """The work tree at a glance; paths are relative to it, in the file system's encoding."""

    nested: tuple[str, ...]  # directories below that have a .git of their own
    large: tuple[tuple[str, int], ...]  # files of more bytes than asked about
    complete: bool


def survey(work: str, bytes_max: int) -> Survey:
    """Walk the work tree, not following links."""
    nested, large, seen, pending = [], [], 0, [""]
    while pending and seen < ENTRIES_MAX:
        below = pending.pop()
        try:
            entries = list(os.scandir(f"{work}/{below}"))
        except OSError:
            continue  # not a directory any more, or not readable: git will say the same
        for entry in entries:
            seen += 1
            path = f"{below}{entry.name}"
            if entry.name == ".git":
                if below:
                    nested.append(below.rstrip("/"))
            elif entry.is_dir(follow_symlinks=False):
                pending.append(f"{path}/")
            elif (
                entry.is_file(follow_symlinks=False) and (size := entry.stat(follow_symlinks=False).st_size) > bytes_max
            ):
                large.append((path, size))
    return Survey(nested=tuple(sorted(nested)), large=tuple(sorted(large)), complete=not pending)


def _git_dir(work: str) -> str | None:
    path = f"{work}/.git"
    if os.path.isdir(path):  # also through a link: it is read as the agent's own user
        return path
    named = _text(path)
    if named is None or not named.startswith("gitdir:"):
        return None
    found = os.path.normpath(os.path.join(work, named[7:].strip()))
    return found if os.path.isdir(found) else None


def _resolve(git_dir: str, refs: dict[str, str]) -> str | None:
    raw = (_text(f"{git_dir}/HEAD") or "").strip()
    for _ in range(DEPTH_MAX):
        if not raw.startswith("ref:"):
            break
        name = raw[4:].strip()
        raw = refs.get(name) or "" if ".." not in name else ""
    return raw if _is_commit(raw) else None


def _packed(common: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (_text(f"{common}/packed-refs", PACKED_REFS_BYTES_MAX) or "").splitlines():
        commit, _, name = line.partition(" ")
        if _is_commit(commit) and name.startswith(("refs/heads/", "refs/stash")) and len(found) < REFS_MAX:
            found[name] = commit
    return found


def _loose(common: str) -> dict[str, str]:
    found = {}
    pending = ["refs/heads"]
    names = ["refs/stash"]
    while pending and len(names) < REFS_MAX:
        below = pending.pop()
        try:
            entries = sorted(os.scandir(f"{common}/{below}"), key=lambda each: each.name)
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{below}/{entry.name}")
            elif entry.is_file(follow_symlinks=False):
                names.append(f"{below}/{entry.name}")
    for name in names:
        commit = (_text(f"{common}/{name}") or "").strip()
        if _is_commit(commit):
            found[name] = commit
    return found


def _text(path: str, bytes_max: int = REF_BYTES_MAX) -> str | None:
    """A small regular file, not a link or a pipe, as text."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        return os.read(file, bytes_max).decode("utf-8", "surrogateescape")
    finally:
        os.close(file)


def _is_commit(text: str) -> bool:
    return len(text) in (40, 64) and all(letter in "0123456789abcdef" for letter in text)
