"""A local repository as a bundle, and a job's bundle as a branch of a clone: with real git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agentlab.client.apply import apply
from agentlab.client.repository import pack
from agentlab.errors import ApplyFailed, RefMissing, RepositoryUnreadable

ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(where), *arguments], env=ENV, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    where = tmp_path / "repository"
    where.mkdir()
    git(where, "init", "-q", "-b", "main")
    (where / "a.txt").write_text("one\n")
    git(where, "add", "-A")
    git(where, "commit", "-q", "-m", "one")
    return where


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def snapshot(where: Path) -> dict[str, bytes]:
    """Every file of a repository with its content."""
    return {str(each.relative_to(where)): each.read_bytes() for each in sorted(where.rglob("*")) if each.is_file()}


def clone_of(bundle: Path, where: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(bundle), str(where)], env=ENV, check=True, capture_output=True)
    return where


def test_a_bundle_clones_to_the_commit_that_is_checked_out(repository: Path, scratch: Path) -> None:
    packed = pack(repository, None, False, scratch)
    clone = clone_of(packed.file, scratch / "clone")
    assert git(clone, "rev-parse", "HEAD") == packed.commit == git(repository, "rev-parse", "HEAD")
    assert git(clone, "rev-parse", "--abbrev-ref", "HEAD") == "main"


@pytest.mark.parametrize("ref", ["side", "v1", "HEAD~1", "full"])
def test_any_ref_can_be_packed_and_is_what_a_clone_checks_out(repository: Path, scratch: Path, ref: str) -> None:
    git(repository, "branch", "side")
    git(repository, "tag", "-a", "v1", "-m", "v1")
    wanted = git(repository, "rev-parse", "HEAD")
    (repository / "b.txt").write_text("two\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "two")
    packed = pack(repository, wanted if ref == "full" else ref, False, scratch)
    assert git(clone_of(packed.file, scratch / "clone"), "rev-parse", "HEAD") == wanted


def test_uncommitted_changes_become_one_more_commit_and_the_repository_stays_as_it_is(
    repository: Path, scratch: Path
) -> None:
    (repository / ".gitignore").write_text("ignored\n")
    (repository / "a.txt").write_text("changed\n")
    (repository / "new.txt").write_text("new\n")
    (repository / "staged.txt").write_text("staged\n")
    (repository / "ignored").write_text("secret\n")
    git(repository, "add", "staged.txt")
    before = snapshot(repository)

    packed = pack(repository, None, True, scratch)

    assert snapshot(repository) == before
    clone = clone_of(packed.file, scratch / "clone")
    assert packed.uncommitted == 4
    assert (clone / "a.txt").read_text() == "changed\n"
    assert (clone / "new.txt").exists()
    assert (clone / "staged.txt").exists()
    assert not (clone / "ignored").exists()
    assert git(clone, "rev-parse", "HEAD~1") == git(repository, "rev-parse", "HEAD")


def test_packing_runs_no_hook_and_no_file_system_monitor(repository: Path, scratch: Path) -> None:
    trace = scratch / "ran"
    for name in ("pre-commit", "post-commit", "reference-transaction", "post-index-change", "fsmonitor"):
        hook = repository / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\necho {name} >> {trace}\n")
        hook.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(repository / ".git" / "hooks" / "fsmonitor"))
    (repository / "a.txt").write_text("changed\n")
    pack(repository, None, True, scratch)
    assert not trace.exists()


def test_a_linked_work_tree_can_be_packed(repository: Path, scratch: Path) -> None:
    git(repository, "worktree", "add", "-q", str(scratch / "linked"), "-b", "linked")
    (scratch / "linked" / "a.txt").write_text("in the linked tree\n")
    packed = pack(scratch / "linked", None, True, scratch)
    assert (clone_of(packed.file, scratch / "clone") / "a.txt").read_text() == "in the linked tree\n"


def test_a_bare_repository_can_be_packed(repository: Path, scratch: Path) -> None:
    subprocess.run(["git", "clone", "-q", "--bare", str(repository), str(scratch / "bare")], env=ENV, check=True)
    assert pack(scratch / "bare", "main", False, scratch).commit == git(repository, "rev-parse", "HEAD")


def test_a_missing_ref_is_told_with_the_nearest_name(repository: Path, scratch: Path) -> None:
    with pytest.raises(RefMissing, match="Did you mean 'main'"):
        pack(repository, "mian", False, scratch)


@pytest.mark.parametrize("ref", ["--output=x", "-h", "HEAD; rm -rf /"])
def test_a_ref_that_looks_like_an_option_is_only_a_missing_ref(repository: Path, scratch: Path, ref: str) -> None:
    with pytest.raises(RefMissing):
        pack(repository, ref, False, scratch)


def test_what_is_no_repository_is_told(tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(RepositoryUnreadable, match="no such folder"):
        pack(tmp_path / "nowhere", None, False, scratch)
    with pytest.raises(RepositoryUnreadable, match="not a git repository"):
        pack(scratch, None, False, scratch)


def test_a_repository_without_a_commit_is_told(tmp_path: Path, scratch: Path) -> None:
    git(scratch, "init", "-q", "empty")
    with pytest.raises(RepositoryUnreadable, match="no commit yet"):
        pack(scratch / "empty", None, False, scratch)


def test_a_shallow_clone_is_refused_with_what_helps(repository: Path, scratch: Path) -> None:
    (repository / "b.txt").write_text("two\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "two")
    subprocess.run(
        ["git", "clone", "-q", "--depth=1", f"file://{repository}", str(scratch / "shallow")], env=ENV, check=True
    )
    with pytest.raises(RepositoryUnreadable, match="unshallow"):
        pack(scratch / "shallow", None, False, scratch)


@pytest.fixture
def result(repository: Path, tmp_path: Path) -> Path:
    """A job's bundle: one commit on top of the repository's HEAD."""
    worker = tmp_path / "worker"
    subprocess.run(["git", "clone", "-q", str(repository), str(worker)], env=ENV, check=True)
    (worker / "a.txt").write_text("repaired\n")
    git(worker, "checkout", "-q", "-b", "agentlab/job")
    git(worker, "commit", "-q", "-a", "-m", "repair")
    git(worker, "bundle", "create", "-q", str(tmp_path / "result.bundle"), "main..agentlab/job")
    return tmp_path / "result.bundle"


def test_the_work_comes_in_as_a_branch_and_nothing_is_checked_out(repository: Path, result: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")

    applied = apply(result, repository, "agentlab/job-1", job="job-1")

    assert git(repository, "log", "-1", "--format=%s", "agentlab/job-1") == "repair"
    assert (applied.commits, applied.summary) == (1, "1 file changed, 1 insertion(+), 1 deletion(-)")
    assert git(repository, "rev-parse", "HEAD") == head
    assert (repository / "a.txt").read_text() == "one\n"
    assert git(repository, "status", "--porcelain") == ""
    assert not (repository / ".git" / "FETCH_HEAD").exists()


def test_no_hook_of_the_clone_runs(repository: Path, result: Path, tmp_path: Path) -> None:
    hook = repository / ".git" / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    hook.chmod(0o755)
    apply(result, repository, "work", job="job-1")
    assert not (tmp_path / "ran").exists()


def test_an_existing_branch_is_kept_unless_it_is_to_be_replaced(repository: Path, result: Path) -> None:
    git(repository, "branch", "work")
    with pytest.raises(ApplyFailed, match="the branch work exists"):
        apply(result, repository, "work", job="job-1")
    assert git(repository, "rev-parse", "work") == git(repository, "rev-parse", "main")
    apply(result, repository, "work", job="job-1", force=True)
    assert git(repository, "log", "-1", "--format=%s", "work") == "repair"


def test_the_branch_that_is_checked_out_is_never_replaced(repository: Path, result: Path) -> None:
    before = snapshot(repository)
    with pytest.raises(ApplyFailed, match="checked out"):
        apply(result, repository, "main", job="job-1", force=True)
    assert git(repository, "rev-parse", "HEAD")
    assert {**snapshot(repository)}.keys() >= before.keys()
    assert (repository / "a.txt").read_text() == "one\n"


def test_a_clone_without_the_base_is_told_and_left_alone(result: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q", "-b", "main")
    before = snapshot(other)
    with pytest.raises(ApplyFailed) as caught:
        apply(result, other, "work", job="job-1")
    assert "commit that the job began with" in caught.value.advice
    assert snapshot(other) == before


def test_a_damaged_bundle_changes_nothing(repository: Path, result: Path) -> None:
    content = bytearray(result.read_bytes())
    content[-40] ^= 0xFF
    result.write_bytes(content)
    before = git(repository, "for-each-ref")
    with pytest.raises(ApplyFailed):
        apply(result, repository, "work", job="job-1")
    assert git(repository, "for-each-ref") == before


def test_objects_that_git_finds_dangerous_do_not_come_in(repository: Path, tmp_path: Path) -> None:
    worker = tmp_path / "evil"
    subprocess.run(["git", "clone", "-q", str(repository), str(worker)], env=ENV, check=True)
    blob = git(worker, "hash-object", "-w", "a.txt")
    listing = f"100644 blob {blob}\t.git\n".encode()
    made = subprocess.run(["git", "-C", str(worker), "mktree"], input=listing, env=ENV, check=True, capture_output=True)
    commit = git(worker, "commit-tree", made.stdout.decode().strip(), "-p", "HEAD", "-m", "evil")
    git(worker, "update-ref", "refs/heads/evil", commit)
    git(worker, "bundle", "create", "-q", str(tmp_path / "evil.bundle"), "main..evil")
    with pytest.raises(ApplyFailed, match="hasDotgit"):
        apply(tmp_path / "evil.bundle", repository, "work", job="job-1")
    assert "work" not in git(repository, "for-each-ref")


@pytest.mark.parametrize("branch", ["", "-x", "a..b", "a b", "a.lock", "refs/../x"])
def test_a_branch_name_that_git_does_not_take_is_refused(repository: Path, result: Path, branch: str) -> None:
    with pytest.raises(ApplyFailed, match="not a branch name"):
        apply(result, repository, branch, job="job-1")


def test_what_is_no_clone_is_told(result: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(ApplyFailed, match="not a git repository"):
        apply(result, tmp_path / "plain", "work", job="job-1")
