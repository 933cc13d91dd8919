"""Collect: the agent's work as a commit, a bundle and a patch.  The work tree is hostile input.

All git commands run as the agent's user in a fresh repository whose configuration is ours; the agent's repository is
only an alternate store of objects, so that its hooks, filters, configuration and attributes programs never count.
"""

from __future__ import annotations

import os

from agentlab_guest.account import Account
from agentlab_guest.area import copy_tree, fresh_area
from agentlab_guest.bootstrap import Bootstrap
from agentlab_guest.git import Git, GitFailed, Patience, TimeUp
from agentlab_guest.machine import Harvest
from agentlab_guest.record import record, replaced
from agentlab_guest.repo import BASE
from agentlab_guest.report import Failure, Skipped
from agentlab_guest.worktree import Repository, Survey, find_repository, survey

COMMIT_FILE_BYTES_MAX = 256 << 20  # larger files stay out of the commit; declare them as artifacts
ALSO_MAX = 20


@record
class Work:
    """`bundle` and `patch` are files in the area, or None if there is nothing to bring back."""

    harvest: Harvest
    bundle: str | None
    patch: str | None


def collect_work(job: Bootstrap, account: Account, state: str, base: str | None, patience: Patience) -> Work:
    """Commit what is uncommitted and pack it.  Never raises: what could not be done is `harvest.failure`."""
    try:
        return _Collection(job, account, state, base, patience).work()
    except TimeUp as error:
        return _failed(base, f"bringing back the work took longer than {error}", "Raise collect_s_max.")
    except GitFailed as error:
        return _failed(base, str(error), "The sandbox's disk may be full; files declared as artifacts are kept.")
    except OSError as error:
        cause = f"{error.filename or 'the disk'}: {error.strerror}"
        return _failed(base, cause, "Give the sandbox more disk.")


def _failed(base: str | None, cause: str, remedy: str) -> Work:
    failure = Failure(phase="collect", cause=cause[:900], remedy=remedy)
    return Work(harvest=Harvest(base_commit=base, failure=failure), bundle=None, patch=None)


class _Collection:
    def __init__(self, job: Bootstrap, account: Account, state: str, base: str | None, patience: Patience) -> None:
        self._job, self._account, self._state, self._base = job, account, state, base
        self._git = Git(account, patience)
        self._skipped: list[Skipped] = []
        # A name that the agent cannot have taken.
        self._aside = f".git-agentlab-{os.urandom(8).hex()}"
        self._area = fresh_area(state, account)
        self._repo = f"{self._area}/harvest.git"

    def work(self) -> Work:
        if not os.path.isdir(self._job.work_dir):
            os.mkdir(f"{self._area}/empty")  # the agent removed it: everything in it is deleted
            self._work_dir = f"{self._area}/empty"
        else:
            self._work_dir = self._job.work_dir
        repository = find_repository(self._work_dir)
        if repository is not None:
            try:
                return self._attempt(repository)
            except GitFailed as error:
                self._skip(".git", f"the agent's repository cannot be read ({error.action}); its files are kept")
        return self._attempt(None)

    def _attempt(self, repository: Repository | None) -> Work:
        self._set_up(repository)
        head = self._head(repository)
        also = self._also(repository, head)
        harvest = Harvest(base_commit=self._base, head_commit=head, skipped=tuple(self._skipped), also=tuple(also))
        if head is None or (head == self._base and not also):
            return Work(harvest=harvest, bundle=None, patch=None)
        bundle = self._bundle(head, also)
        patch, harvest = self._patch(head, harvest)
        return Work(harvest=harvest, bundle=bundle, patch=patch)

    def _run(self, *argv: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> bytes:
        return self._git.run(*argv, cwd=self._area, env=self._env | (env or {}), stdin=stdin)

    def _line(self, *argv: str) -> str:
        return self._run(*argv).decode(errors="replace").strip()

    def _set_up(self, repository: Repository | None) -> None:
        """A repository of ours that sees the objects of the agent's and of the pristine base."""
        self._area = fresh_area(self._state, self._account)
        if not os.path.isdir(self._job.work_dir):
            os.mkdir(self._work_dir)
        sha256 = len(self._base or "") == 64
        self._env: dict[str, str] = {}
        self._run("init", "-q", "--bare", f"--object-format={'sha256' if sha256 else 'sha1'}", self._repo)
        self._env = {
            "GIT_DIR": self._repo,
            "GIT_WORK_TREE": self._work_dir,
            "GIT_INDEX_FILE": f"{self._area}/index",
            "GIT_AUTHOR_NAME": self._job.git_name,
            "GIT_AUTHOR_EMAIL": self._job.git_email,
            "GIT_COMMITTER_NAME": self._job.git_name,
            "GIT_COMMITTER_EMAIL": self._job.git_email,
        }
        stores = [] if repository is None else [repository.objects]
        if os.path.isdir(f"{self._state}/{BASE}"):
            copy_tree(f"{self._state}/{BASE}", f"{self._area}/{BASE}", self._account)
            stores.append(f"{self._area}/{BASE}/objects")
        self._write(f"{self._repo}/objects/info/alternates", "".join(f"{each}\n" for each in stores))
        self._write(f"{self._repo}/info/exclude", f"{self._aside}\n")
        shallow = set() if repository is None else set(repository.shallow)
        if self._base is not None and not self._has_parents(self._base):
            shallow.add(self._base)
        if shallow:
            self._write(f"{self._repo}/shallow", "".join(f"{each}\n" for each in sorted(shallow)))

    def _write(self, path: str, content: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._account.own(os.path.dirname(path))
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(content)
        self._account.own(path)

    def _has_parents(self, commit: str) -> bool:
        head = self._run("cat-file", "commit", commit).partition(b"\n\n")[0]
        parents = [line[7:].decode() for line in head.split(b"\n") if line.startswith(b"parent ")]
        return all(self._is_commit(each) for each in parents)

    def _is_commit(self, name: str) -> bool:
        asked = self._run("cat-file", "--batch-check=%(objecttype)", stdin=name.encode() + b"\n")
        return asked.strip() == b"commit"

    def _is_ancestor(self, first: str, then: str) -> bool:
        self._git.run("merge-base", "--is-ancestor", first, then, cwd=self._area, env=self._env, statuses=(0, 1))
        return self._git.status == 0

    def _head(self, repository: Repository | None) -> str | None:
        """The commit that holds all work: what is checked out, with what is not committed on top of it."""
        if repository is None:
            return self._snapshot(self._base)
        head, ours = repository.head, repository.heads.get(self._job.branch)
        head = head if head is not None and self._is_commit(head) else None
        ours = ours if ours is not None and self._is_commit(ours) else None
        if head is None:
            return self._snapshot(ours or self._base)
        if ours is not None and head != ours and self._is_ancestor(head, ours) and self._clean(head):
            return ours  # the agent committed to its branch, then looked at an older commit and changed nothing there
        return self._snapshot(head)

    def _clean(self, commit: str) -> bool:
        return self._tree(commit, note=False) == self._line("rev-parse", f"{commit}^{{tree}}")

    def _snapshot(self, tip: str | None) -> str | None:
        """The tip, or a new commit on it with everything that is not committed."""
        tree = self._tree(tip, note=True)
        if tip is None:
            if tree == self._empty_tree():
                return None
            return self._commit(tree, ())
        if tree == self._line("rev-parse", f"{tip}^{{tree}}"):
            return tip
        return self._commit(tree, ("-p", tip))

    def _commit(self, tree: str, parents: tuple[str, ...]) -> str:
        message = f"Work of {self._job.job} that was not committed\n"
        return self._run("commit-tree", *parents, tree, stdin=message.encode()).decode().strip()

    def _empty_tree(self) -> str:
        return self._line("hash-object", "-t", "tree", "-w", "--stdin")

    def _tree(self, tip: str | None, *, note: bool) -> str:
        """The work tree as a tree object, on top of the index of `tip`."""
        kept = list(self._skipped)
        self._run("read-tree", *(("--empty",) if tip is None else (tip,)))
        seen = survey(self._work_dir, COMMIT_FILE_BYTES_MAX)
        ours, theirs = self._submodules(seen)
        aside: list[str] = []
        try:
            for directory in theirs:
                path = f"{self._work_dir}/{directory}"
                try:
                    os.rename(f"{path}/.git", f"{path}/{self._aside}")
                except OSError as error:
                    self._skip(directory, f"a nested repository that cannot be read: {error.strerror}")
                    ours.append(directory)
                else:
                    aside.append(path)
            self._add(seen, ours)
        finally:
            for path in aside:
                os.rename(f"{path}/{self._aside}", f"{path}/.git")
        if not note:
            self._skipped = kept
        return self._line("write-tree")

    def _submodules(self, seen: Survey) -> tuple[list[str], list[str]]:
        """Nested repositories: submodules of the base, which stay links, and the agent's own, taken as plain files."""
        links = self._links("ls-files", "-s", "-z")
        known = self._links("ls-tree", "-r", "-z", self._base) if self._base is not None else set()
        theirs = [each for each in seen.nested if each not in known]
        for directory in sorted(known.intersection(seen.nested)):
            self._skip(directory, "a submodule: commits made inside it are not brought back")
        if gone := sorted(links.intersection(theirs)):
            stdin = b"".join(os.fsencode(each) + b"\0" for each in gone)
            self._run("update-index", "--force-remove", "-z", "--stdin", stdin=stdin)
        return sorted(known), theirs

    def _links(self, *listing: str) -> set[str]:
        rows = (row.partition(b"\t") for row in self._run(*listing).split(b"\0") if row.startswith(b"160000 "))
        return {os.fsdecode(path) for _, _, path in rows}

    def _add(self, seen: Survey, links: list[str]) -> None:
        large = self._not_ignored(seen.large)
        for path, size in large:
            limit = f"COMMIT_FILE_BYTES_MAX = {COMMIT_FILE_BYTES_MAX}"
            self._skip(path, f"not committed: it has {size} bytes, {limit}; declare it as an artifact")
        left_out = [path for path, _ in large] + links
        paths = [b".", *(b":(top,literal,exclude)" + os.fsencode(path) for path in left_out)]
        argv = ("add", "-A", "--ignore-errors", "--pathspec-from-file=-", "--pathspec-file-nul")
        stdin = b"".join(path + b"\0" for path in paths)
        self._git.run(*argv, cwd=self._work_dir, env=self._env, stdin=stdin, statuses=(0, 1))
        if self._git.status:
            lines = [line.removeprefix("error: ") for line in self._git.complaints.splitlines()]
            for line in [line for line in lines if not line.startswith(("unable to add", "warning:", "hint:"))][:20]:
                self._skip("git add", line)

    def _not_ignored(self, files: tuple[tuple[str, int], ...]) -> list[tuple[str, int]]:
        """Those that would be committed."""
        if not files:
            return []
        stdin = b"".join(os.fsencode(path) + b"\0" for path, _ in files)
        argv = ("check-ignore", "-z", "--stdin")
        found = self._git.run(*argv, cwd=self._work_dir, env=self._env, stdin=stdin, statuses=(0, 1))
        ignored = {os.fsdecode(path) for path in found.split(b"\0")}
        return [(path, size) for path, size in files if path not in ignored]

    def _also(self, repository: Repository | None, head: str | None) -> list[str]:
        """Other branches with commits that neither the result nor the base contains, put under refs/agentlab/also/."""
        if repository is None:
            return []
        known = [each for each in (head, self._base) if each is not None]
        found: list[str] = []
        for name, commit in sorted(repository.heads.items()):
            if commit in known or not self._is_commit(commit) or len(found) >= ALSO_MAX:
                continue
            if self._line("rev-list", "--count", commit, "--not", *known) in ("0", ""):
                continue
            target = f"refs/agentlab/also/{name}"
            try:
                self._run("check-ref-format", target)
                self._run("update-ref", target, commit)
            except GitFailed:
                self._skip(name.encode("ascii", "backslashreplace").decode(), "a branch whose name git refuses")
                continue
            found.append(name)
        return found

    def _bundle(self, head: str, also: list[str]) -> str | None:
        branch = f"refs/heads/{self._job.branch}"
        self._run("update-ref", branch, head)
        wanted = [] if head == self._base else [branch]
        wanted += [f"refs/agentlab/also/{name}" for name in also]
        without = [] if self._base is None else [f"^{self._base}"]
        path = f"{self._area}/result.bundle"
        self._run("bundle", "create", "-q", path, *wanted, *without)
        return path

    def _patch(self, head: str, harvest: Harvest) -> tuple[str | None, Harvest]:
        if head == self._base:
            return None, harvest
        sides = (self._base or self._empty_tree(), head)
        plain = ("--no-ext-diff", "--no-textconv", "--no-renames", "--no-color")
        files = added = removed = 0
        for row in self._run("diff", "--numstat", "-z", *plain, *sides).split(b"\0"):
            plus, _, rest = row.partition(b"\t")
            if rest:
                minus = rest.partition(b"\t")[0]
                files += 1
                added += int(plus) if plus.isdigit() else 0
                removed += int(minus) if minus.isdigit() else 0
        path = f"{self._area}/result.patch"
        with open(path, "wb") as file:
            look = ("--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/")
            self._git.run("diff", *look, *plain, *sides, cwd=self._area, env=self._env, stdout=file)
        counted = replaced(harvest, files_changed=files, lines_added=added, lines_removed=removed)
        return (path if os.path.getsize(path) else None), counted

    def _skip(self, name: str, reason: str) -> None:
        entry = Skipped(name=printable(name), reason=printable(reason))
        if entry not in self._skipped:
            self._skipped.append(entry)


def printable(text: str, length_max: int = 500) -> str:
    """Foreign text on one line, everything that is not plainly printable escaped."""
    safe = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return safe if len(safe) <= length_max else safe[: length_max - 1] + "…"
