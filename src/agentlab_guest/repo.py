"""Fetch: the work tree on its own branch, and a pristine copy of its base that the agent cannot reach."""

from __future__ import annotations

import os

from agentlab_guest.account import Account, StepFailed
from agentlab_guest.area import fresh_area, remove
from agentlab_guest.bootstrap import Bootstrap
from agentlab_guest.git import PROTOCOLS, Git, GitFailed, Patience, TimeUp

BASE = "base.git"  # in the state directory: the base commit alone, without its history
REFS_SHOWN_MAX = 5


def fetch(job: Bootstrap, account: Account, state: str, bundle: str | None, patience: Patience) -> str | None:
    """Make the work tree; the base commit, or None if the repository has no commit yet.

    `bundle` is the file that arrived over the link.  What a former, unfinished fetch left is removed first.
    Raises StepFailed with cause and remedy, and Aborted.
    """
    git = Git(account, patience, trust_system=True)
    _clear(job, account, state)
    try:
        base = _checkout(job, account, git, state, bundle)
        _configure(job, git)
        remove(f"{state}/{BASE}")
        if base is not None:
            _keep_base(job, account, git, state)
    except GitFailed as error:
        remedy = "The output above names git's reason; see that the repository can be cloned and is not damaged."
        raise StepFailed("fetch", f"git {error.action}: {_reason(error)}", remedy) from None
    except TimeUp as error:
        remedy = "Try again, send a local clone instead of a URL, or use a smaller repository."
        raise StepFailed("fetch", f"the repository took longer than {error}", remedy) from None
    except OSError as error:
        remedy = "Give the sandbox more disk, or correct the template."
        raise StepFailed("fetch", f"{error.filename or job.work_dir}: {error.strerror}", remedy) from None
    return base


def _clear(job: Bootstrap, account: Account, state: str) -> None:
    """See to it that the work directory exists, belongs to the user, and is empty.

    Only what an unfinished fetch of this job left is removed: anything else may be somebody's workspace.
    """
    mark = f"{state}/fetching"
    os.makedirs(job.work_dir, exist_ok=True)
    try:
        os.rmdir(f"{job.work_dir}/lost+found")  # of a file system of its own; git wants an empty directory
    except OSError:
        pass
    if found := os.listdir(job.work_dir):
        if not os.path.exists(mark):
            cause = f"{job.work_dir} is not empty: it holds {found[0]!a} and {len(found) - 1} more"
            raise StepFailed("fetch", cause, "Use a sandbox or workspace whose work directory is empty.")
        for name in found:
            remove(f"{job.work_dir}/{name}")
    os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    account.own(job.work_dir)


def _checkout(job: Bootstrap, account: Account, git: Git, state: str, bundle: str | None) -> str | None:
    work, source = job.work_dir, job.repo.url
    if bundle is not None:
        source = f"{fresh_area(state, account)}/repo.bundle"
        os.rename(bundle, source)
        account.own(source)
    if source is None:
        git.run("init", "-q", "-b", job.branch, cwd=work)
        return None
    _clone(job, git, source)
    base = _resolve(job, git)
    if bundle is not None:
        git.run("remote", "remove", "origin", cwd=work)
        remove(os.path.dirname(source))
    if base is None:
        git.run("symbolic-ref", "HEAD", f"refs/heads/{job.branch}", cwd=work)
        return None
    for name in git.line("for-each-ref", "--format=%(refname)", "refs/heads", cwd=work).splitlines():
        git.run("update-ref", "--no-deref", "-d", name, cwd=work)
    git.run("checkout", "-q", "-f", "--no-track", "-B", job.branch, base, cwd=work)
    return base


def _clone(job: Bootstrap, git: Git, source: str) -> None:
    try:
        git.run("clone", "-q", "--no-checkout", "--origin", "origin", "--", source, job.work_dir, cwd=job.work_dir)
    except GitFailed as error:
        shown = "the bundle" if job.repo.url is None else without_credentials(source)
        remedy = (
            f"See that the address is right and reachable from a sandbox (protocols: {PROTOCOLS}); a private "
            "repository is best sent from a local clone: `--repo PATH`."
        )
        raise StepFailed("fetch", f"{shown} cannot be cloned: {_reason(error)}", remedy) from None


def _resolve(job: Bootstrap, git: Git) -> str | None:
    """The commit that `ref` names; without one, the remote's HEAD; None in a repository without commits."""
    work, ref = job.work_dir, job.repo.ref
    if ref is None:
        found = _commit(git, work, "refs/remotes/origin/HEAD") or _commit(git, work, "HEAD")
        names = _names(git, work)
        if found is None and names:
            raise _missing("HEAD", names)
        return found
    places: tuple[str, ...] = ("refs/remotes/origin/{}", "refs/tags/{}", "refs/heads/{}", "{}")
    if ref.startswith("refs/heads/"):
        places = (f"refs/remotes/origin/{ref[11:]}", *places)
    for place in places:
        if not ref.startswith("-") and (found := _commit(git, work, place.format(ref))):
            return found
    if _looks_like_a_commit(ref):
        try:
            git.run("fetch", "-q", "origin", ref, cwd=work)
            return _commit(git, work, "FETCH_HEAD")
        except GitFailed:
            pass
    raise _missing(ref, _names(git, work))


def _commit(git: Git, work: str, name: str) -> str | None:
    try:
        return git.line("rev-parse", "-q", "--verify", "--end-of-options", f"{name}^{{commit}}", cwd=work) or None
    except GitFailed:
        return None


def _looks_like_a_commit(ref: str) -> bool:
    return len(ref) in (40, 64) and all(letter in "0123456789abcdef" for letter in ref)


def _names(git: Git, work: str) -> list[str]:
    raw = git.line("for-each-ref", "--format=%(refname)", "refs/remotes/origin", "refs/tags", "refs/heads", cwd=work)
    known = {name.removeprefix("refs/remotes/origin/").removeprefix("refs/tags/") for name in raw.splitlines()}
    return sorted(name.removeprefix("refs/heads/") for name in known if name != "HEAD")


def _missing(ref: str, names: list[str]) -> StepFailed:
    import difflib  # only on this way out

    near = difflib.get_close_matches(ref, names, REFS_SHOWN_MAX, 0.5) or names[:REFS_SHOWN_MAX]
    hint = f"; nearest: {', '.join(near)}" if near else "; it has none at all"
    remedy = f"Choose one with `--ref`: {', '.join(near)}." if near else "Push a branch first, or leave `--ref` out."
    return StepFailed("fetch", f"the repository has no branch, tag or commit {ref!r}{hint}", remedy)


def _configure(job: Bootstrap, git: Git) -> None:
    git.run("config", "user.name", job.git_name, cwd=job.work_dir)
    git.run("config", "user.email", job.git_email, cwd=job.work_dir)


def _keep_base(job: Bootstrap, account: Account, git: Git, state: str) -> None:
    area = fresh_area(state, account)
    wide = "--object-format=" + git.line("rev-parse", "--show-object-format", cwd=job.work_dir)
    git.run("init", "-q", "--bare", wide, BASE, cwd=area)
    source = f"file://{job.work_dir}"
    git.run("fetch", "-q", "--depth=1", "--no-tags", source, f"refs/heads/{job.branch}:refs/base", cwd=f"{area}/{BASE}")
    os.rename(f"{area}/{BASE}", f"{state}/{BASE}")
    remove(area)


def _reason(error: GitFailed) -> str:
    lines = [line.removeprefix("fatal: ").removeprefix("error: ") for line in error.detail.splitlines() if line.strip()]
    return without_credentials(" / ".join(lines[-3:])) or f"status {error.status}"


def without_credentials(url: str) -> str:
    """A URL, or a text with URLs, without user names and passwords in them."""
    parts = url.split("://")
    for number in range(1, len(parts)):
        host, slash, rest = parts[number].partition("/")
        if "@" in host:
            parts[number] = host.rpartition("@")[2] + slash + rest
    return "://".join(parts)
