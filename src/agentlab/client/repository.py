"""A local repository as a git bundle, made without changing the repository or running its hooks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.process import Completed, ProgramFailed, run
from agentlab.base.text import did_you_mean, one_line
from agentlab.errors import RefMissing, RepositoryUnreadable

GIT_TIMEOUT_S = 600.0
BRANCH = "agentlab-base"  # the bundle's branch where the commit is no branch's tip
# Nothing of a repository's own choosing is started on our behalf.
QUIET = (
    "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0", "-c", "maintenance.auto=false",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A finished bundle."""

    file: Path
    digest: str
    bytes_count: int
    commit: str
    branch: str
    origin: str  # the repository's absolute path
    uncommitted: int  # how many changed files were added to it; 0 where none were wanted


class GitFailed(Exception):
    """git said no; the text is its own."""


async def git(where: Path, *arguments: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> Completed:
    """Run git in `where`.  Raises GitFailed."""
    program = shutil.which("git")
    if program is None:
        raise GitFailed("git is not installed")
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8", "GIT_OPTIONAL_LOCKS": "0", **(env or {})}
    try:
        return await run([program, *QUIET, "-C", str(where), *arguments], env=own, stdin=stdin, timeout_s=GIT_TIMEOUT_S)
    except ProgramFailed as error:
        raise GitFailed(one_line(error.detail, 400)) from None


def pack(repository: Path, ref: str | None, include_uncommitted: bool, scratch: Path) -> Pack:
    """Bundle the history of `ref` (default: what is checked out) into the folder `scratch`.

    With `include_uncommitted`, the work tree's changes, untracked files included, become one more commit on top.
    Raises RepositoryUnreadable, RefMissing.
    """
    return asyncio.run(_pack(repository, ref, include_uncommitted, scratch))


async def _pack(repository: Path, ref: str | None, include_uncommitted: bool, scratch: Path) -> Pack:
    where = repository.absolute()
    if not where.is_dir():
        raise RepositoryUnreadable(path=repository, cause="there is no such folder")
    try:
        common = Path(await _text(where, "rev-parse", "--path-format=absolute", "--git-common-dir"))
        await _check(where, repository)
        commit = await _resolve(where, ref, repository)
        own = scratch / "pack.git"
        await borrow(where, common, own)
        uncommitted = 0
        if include_uncommitted:
            commit, uncommitted = await _with_changes(where, commit, ref, own, repository)
        branch = await _branch(where, ref)
        await git(own, "update-ref", f"refs/heads/{branch}", commit)
        await git(own, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
        file = scratch / "repository.bundle"
        await git(own, "bundle", "create", "--quiet", str(file), "HEAD", f"refs/heads/{branch}")
    except GitFailed as error:
        raise RepositoryUnreadable(path=repository, cause=str(error)) from None
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Pack(
        file=file,
        digest=digest,
        bytes_count=file.stat().st_size,
        commit=commit,
        branch=branch,
        origin=str(where),
        uncommitted=uncommitted,
    )


async def _text(where: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    return (await git(where, *arguments, env=env)).out.decode(errors="surrogateescape").rstrip("\n")


async def _check(where: Path, repository: Path) -> None:
    if await _text(where, "rev-parse", "--is-shallow-repository") == "true":
        raise RepositoryUnreadable(
            path=repository, cause="it is a shallow clone, whose history ends in nothing; `git fetch --unshallow` helps"
        )


async def _resolve(where: Path, ref: str | None, repository: Path) -> str:
    try:
        return await _text(
            where, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref or 'HEAD'}^{{commit}}"
        )  # fmt: skip
    except GitFailed:
        if ref is None:
            raise RepositoryUnreadable(path=repository, cause="it has no commit yet") from None
        names = (await _text(where, "for-each-ref", "--format=%(refname:short)")).splitlines()
        raise RefMissing(repo=repository, ref=ref, hint=did_you_mean(ref, names)) from None


async def borrow(where: Path, common: Path, own: Path) -> None:
    """A repository of our own that reads the user's objects and writes to neither them nor the user's refs."""
    form = await _text(where, "rev-parse", "--show-object-format")
    own.mkdir()
    await git(own, "init", "--quiet", "--bare", "--template=", f"--object-format={form}", ".")
    (own / "objects" / "info").mkdir(exist_ok=True)
    (own / "objects" / "info" / "alternates").write_bytes(os.fsencode(common / "objects") + b"\n")


async def _with_changes(where: Path, commit: str, ref: str | None, own: Path, repository: Path) -> tuple[str, int]:
    head = await _text(where, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if await _text(where, "rev-parse", "--is-inside-work-tree") != "true":
        raise RepositoryUnreadable(path=repository, cause="it is bare: there are no uncommitted changes to include")
    if head != commit:
        raise RepositoryUnreadable(
            path=repository, cause=f"uncommitted changes belong to what is checked out, not to {ref!r}: leave one out"
        )
    index = own / "index"
    actual = Path(await _text(where, "rev-parse", "--path-format=absolute", "--git-path", "index"))
    if actual.exists():
        shutil.copyfile(actual, index)
    top = Path(await _text(where, "rev-parse", "--path-format=absolute", "--show-toplevel"))
    objects = await _text(where, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    env = {
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(own / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        "GIT_AUTHOR_NAME": "AgentLab",
        "GIT_AUTHOR_EMAIL": "agentlab@localhost",
        "GIT_COMMITTER_NAME": "AgentLab",
        "GIT_COMMITTER_EMAIL": "agentlab@localhost",
    }
    await git(top, "add", "--all", env=env)
    tree = await _text(top, "write-tree", env=env)
    changed = await git(top, "diff-tree", "-r", "-z", "--name-only", commit, tree, env=env)
    count = changed.out.count(b"\0")
    if count == 0:
        return commit, 0
    return await _text(top, "commit-tree", "-p", commit, "-m", "Uncommitted changes", tree, env=env), count


async def _branch(where: Path, ref: str | None) -> str:
    try:
        name = await _text(where, "rev-parse", "--symbolic-full-name", "--end-of-options", ref or "HEAD")
    except GitFailed:
        return BRANCH
    name = name.splitlines()[-1] if name else ""
    return name.removeprefix("refs/heads/") if name.startswith("refs/heads/") else BRANCH
