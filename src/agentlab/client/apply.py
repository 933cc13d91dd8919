"""A job's commits into a clone, as a branch: nothing is checked out, no hook runs, and a failure changes nothing."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.text import printable
from agentlab.client.repository import GitFailed, borrow, git
from agentlab.errors import ApplyFailed

# The bundle is hostile until git has checked every object in it.
STRICT = (
    "-c", "transfer.fsckObjects=true", "-c", "fetch.fsckObjects=true", "-c", "receive.fsckObjects=true",
    "-c", "protocol.allow=never", "-c", "protocol.file.allow=always",
    "-c", "fetch.recurseSubmodules=false", "-c", "submodule.recurse=false", "-c", "fetch.writeCommitGraph=false",
)  # fmt: skip


SOURCE = "refs/heads/quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What has come into the clone."""

    branch: str
    commit: str
    commits: int  # that the branch has beyond what was checked out
    summary: str  # of the change against what was checked out, for people


def apply(bundle: Path, clone: Path, branch: str, *, job: str, force: bool = False) -> Applied:
    """Fetch the bundle's branch into `clone` as `branch`.

    Raises ApplyFailed: no repository there, missing base, broken objects, or the branch exists and not `force`.
    """
    return asyncio.run(_apply(bundle, clone, branch, job, force))


async def _apply(bundle: Path, clone: Path, branch: str, job: str, force: bool) -> Applied:
    where = clone.absolute()

    def failed(cause: str, what_to_do: str) -> ApplyFailed:
        return ApplyFailed(job=job, clone=clone, cause=cause, what_to_do=what_to_do)

    if not where.is_dir():
        raise failed("there is no such folder", "Name a clone of the job's repository: --to CLONE.")
    try:
        await git(where, "rev-parse", "--git-dir")
    except GitFailed as error:
        raise failed(str(error), "Name a clone of the job's repository: --to CLONE.") from None
    target = await _target(where, branch, failed)
    if not force and await _exists(where, target):
        raise failed(f"the branch {branch} exists", "Choose another with --branch, or replace it with --force.")
    with tempfile.TemporaryDirectory(prefix="agentlab-quarantine-") as scratch:
        own = Path(scratch) / "quarantine.git"
        try:
            source = await _quarantined(where, bundle, own)
        except GitFailed as error:
            advice = "The clone must contain the commit that the job began with: `git fetch` may get it."
            raise failed(printable(str(error)), advice) from None
        try:
            await git(
                where, *STRICT, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
                "--no-auto-maintenance", "--no-prune", "--atomic", str(own),
                f"{'+' if force else ''}{source}:{target}",
            )  # fmt: skip
        except GitFailed as error:
            advice = "The clone is as it was; `agentlab job diff` shows the work."
            raise failed(printable(str(error)), advice) from None
    return await _tell(where, branch, target)


async def _quarantined(where: Path, bundle: Path, own: Path) -> str:
    """Unpack the bundle beside the clone and return the ref that holds its one branch there.

    git checks objects that it fetches from a repository, but not those that it fetches from a bundle.
    """
    common = Path((await git(where, "rev-parse", "--path-format=absolute", "--git-common-dir")).out.decode().strip())
    await borrow(where, common, own)
    env = {
        "GIT_OBJECT_DIRECTORY": str(own / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(common / "objects"),
    }
    heads = (await git(where, "bundle", "unbundle", str(bundle.absolute()), env=env)).out.decode(errors="replace")
    named = {name: commit for commit, _, name in (line.partition(" ") for line in heads.splitlines())}
    commit = next((named[name] for name in named if name.startswith("refs/heads/")), named.get("HEAD"))
    if commit is None:
        raise GitFailed("the bundle has no branch")
    await git(own, "update-ref", SOURCE, commit)
    return SOURCE


async def _target(where: Path, branch: str, failed: object) -> str:
    try:
        await git(where, "check-ref-format", "--branch", branch)
    except GitFailed:
        assert callable(failed)
        raise failed(f"{branch!r} is not a branch name", "Choose another with --branch.") from None
    return f"refs/heads/{branch}"


async def _exists(where: Path, ref: str) -> bool:
    try:
        await git(where, "show-ref", "--verify", "--quiet", ref)
    except GitFailed:
        return False
    return True


async def _tell(where: Path, branch: str, target: str) -> Applied:
    commit = (await git(where, "rev-parse", "--verify", target)).out.decode().strip()
    try:
        count = int((await git(where, "rev-list", "--count", f"HEAD..{commit}")).out)
        stat = (await git(where, "diff", "--no-ext-diff", "--no-textconv", "--shortstat", f"HEAD...{commit}")).out
    except GitFailed:  # nothing is checked out, or there is no common history
        return Applied(branch=branch, commit=commit, commits=0, summary="")
    return Applied(
        branch=branch, commit=commit, commits=count, summary=printable(stat.decode(errors="replace")).strip()
    )
