"""The work tree is hostile: nothing in it runs while the work is collected, and no work is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.testing.guest_peer import GuestPeer
from agentlab.testing.guest_world import GuestWorld, git


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GuestWorld]:
    world = GuestWorld(tmp_path)
    yield world
    world.close()


def reasons(peer: GuestPeer) -> dict[str, str]:
    assert peer.report is not None
    return {each.name: each.reason for each in peer.report.skipped}


TRAPS = {
    "hooks": "mkdir -p .git/hooks; for h in pre-commit post-commit reference-transaction post-index-change; do "
    "printf '#!/bin/sh\\ntouch {trap}\\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done; "
    "git config core.hooksPath .git/hooks",
    "filter": "git config filter.x.clean 'touch {trap}; cat'; git config filter.x.smudge 'touch {trap}; cat'; "
    "git config filter.x.process 'touch {trap}'; git config filter.x.required true; echo '* filter=x' > .gitattributes",
    "fsmonitor": "git config core.fsmonitor 'touch {trap}; true'; git config core.fsmonitorHookVersion 2",
    "diff driver": "git config diff.x.command 'touch {trap}'; git config diff.x.textconv 'touch {trap}'; "
    "git config diff.external 'touch {trap}'; echo '* diff=x' > .gitattributes",
    "signing": "git config commit.gpgSign true; git config gpg.program /bin/false; git config gpg.format openpgp",
    "pager, editor, askpass": "git config core.pager 'touch {trap}'; git config core.sshCommand 'touch {trap}'; "
    "git config core.editor 'touch {trap}'; git config alias.add '!touch {trap}'; "
    "git config uploadpack.packObjectsHook 'touch {trap}'",
    "worktree elsewhere": "git config core.worktree /etc; git config core.bare true",
    "include": "git config include.path ../evil; printf '[core]\\n fsmonitor = touch {trap}\\n' > evil",
    "broken configuration": "echo '[[[' > .git/config",
    "info attributes": "git config filter.x.clean 'touch {trap}; cat'; mkdir -p .git/info; "
    "echo '* filter=x' > .git/info/attributes",
    "home configuration": "export HOME=$PWD/../home; mkdir -p $HOME; git config --global core.fsmonitor 'touch {trap}'",
    "a pipe as HEAD": "rm .git/HEAD; mkfifo .git/HEAD",
    "a lock left behind": "touch .git/index.lock .git/HEAD.lock .git/config.lock",
    "a damaged index": "echo broken > .git/index",
    "sparse index": "git sparse-checkout set nowhere 2>/dev/null || true",
}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS.keys())
def test_a_trap_in_the_repository_does_not_spring_and_the_work_comes_back(world: GuestWorld, trap: str) -> None:
    sprung = world.top / "sprung"

    peer = world.run("echo work > work.txt; " + trap.replace("{trap}", str(sprung)) + f"; rm -f {sprung}")

    assert not sprung.exists()
    assert peer.report is not None
    assert (peer.report.outcome, peer.report.failure) == ("succeeded", None)
    assert (world.apply(peer) / "work.txt").read_text() == "work\n"


LOSSES = {
    ".git deleted": "rm -rf .git",
    ".git deleted and made anew": "rm -rf .git; git init -q; git add -A; git commit -qm anew",
    ".git moved behind a link": "mv .git ../moved; ln -s ../moved .git",
    ".git moved behind a file": "mv .git ../moved; echo 'gitdir: ../moved' > .git",
    ".git is a file of noise": "rm -rf .git; head -c 1000 /dev/urandom > .git",
    "objects deleted": "rm -rf .git/objects; mkdir .git/objects",
    "objects damaged": "chmod -R u+w .git/objects; find .git/objects -type f -exec sh -c 'echo x > \"$1\"' _ {} \\;",
    "base pruned": "git checkout -q --orphan new; git add -A; git commit -qm new; git branch -D $AGENTLAB_BRANCH -q; "
    "git reflog expire --expire=now --all; git gc -q --prune=now",
    "detached": "git checkout -q --detach; git add -A; git commit -qm detached",
    "other branch": "git checkout -q -b other; git add -A; git commit -qm other",
    "amended": "git add -A; git commit -q --amend -m amended",
    "reset to the first commit": "git reset -q --soft HEAD~1; git add -A; git commit -qm rebased",
    "committed, then back on the base": "git add -A; git commit -qm work; git checkout -q --detach HEAD~1",
    "refs packed": "git add -A; git commit -qm work; git pack-refs --all",
    "HEAD points nowhere": "echo 'ref: refs/heads/nowhere' > .git/HEAD",
    "HEAD climbs out": "echo 'ref: ../../../etc/passwd' > .git/HEAD",
    "shallow": "git add -A; git commit -qm work; git rev-parse HEAD > .git/shallow",
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_work_survives_what_the_agent_does_to_its_repository(world: GuestWorld, loss: str) -> None:
    peer = world.run(f"echo work > work.txt; {loss}")

    assert peer.report is not None
    assert (peer.report.outcome, peer.report.failure) == ("succeeded", None), bytes(peer.output)
    clone = world.apply(peer)
    assert (clone / "work.txt").read_text() == "work\n"
    assert b"+work" in peer.artifacts["result.patch"]
    patched = subprocess.run(["git", "apply", "--check", "-"], cwd=world.origin, input=peer.artifacts["result.patch"])
    assert patched.returncode == 0


def test_a_deleted_work_tree_is_a_result_too(world: GuestWorld) -> None:
    peer = world.run("cd ..; rm -rf work")

    assert peer.report is not None
    assert peer.report.failure is None
    assert peer.report.files_changed == 2


def test_other_branches_with_work_travel_too(world: GuestWorld) -> None:
    task = (
        "git checkout -q -b side; echo s > s; git add s; git commit -qm s; git checkout -q $AGENTLAB_BRANCH; echo m > m"
    )

    peer = world.run(task)

    assert peer.report is not None
    assert "other branches with work: side" in peer.report.summary
    assert (world.apply(peer, "refs/agentlab/also/side") / "s").exists()


def test_nested_repositories_come_back_as_files_and_stay_as_they_were(world: GuestWorld) -> None:
    task = (
        "mkdir -p app/deep unborn; git -C app init -q; echo a > app/a; echo b > app/deep/b; git -C app add -A; "
        "git -C app commit -qm app; git -C unborn init -q; echo c > unborn/c; git add app; git commit -qm 'as a link'"
    )

    peer = world.run(task)

    clone = world.apply(peer)
    assert (clone / "app" / "deep" / "b").read_text() == "b\n"
    assert (clone / "unborn" / "c").read_text() == "c\n"
    assert git(world.work / "app", "log", "--format=%s") == "app"


def test_a_submodule_of_a_hostile_address_is_neither_fetched_nor_lost(world: GuestWorld) -> None:
    sprung = world.top / "sprung"
    task = (
        f"git init -q sub; git -C sub commit -q --allow-empty -m s; git add sub; "
        f"printf '[submodule \"sub\"]\\n path = sub\\n url = ext::sh -c touch%% {sprung}\\n' "
        "> .gitmodules; git config submodule.sub.update '!touch x'; git config submodule.recurse true; echo w > w"
    )

    peer = world.run(task)

    assert not sprung.exists()
    assert (world.apply(peer) / "w").exists()


def test_special_files_in_the_tree_do_not_stop_the_commit(world: GuestWorld) -> None:
    task = (
        "mkfifo pipe; rm a.txt; mkfifo a.txt; ln -s /etc/passwd link; ln -s loop loop; echo ok > ok; "
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\"; echo x > 'git~1'; "
        "printf x > $(printf 'bad\\377name'); truncate -s 300M big ignored.log"
    )

    peer = world.run(task)

    clone = world.apply(peer)
    assert (clone / "ok").exists()
    assert os.readlink(clone / "link") == "/etc/passwd"
    assert os.path.exists(os.fsencode(clone) + b"/bad\xffname")
    assert "COMMIT_FILE_BYTES_MAX" in reasons(peer)["big"]
    assert "ignored.log" not in reasons(peer)
    assert any("git~1" in reason for reason in reasons(peer).values())


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make devices")
def test_only_regular_files_of_the_tree_become_artifacts(world: GuestWorld) -> None:
    task = (
        "mkdir -p out/sub ../outside; echo good > out/good; echo deep > out/sub/deep; echo s > ../outside/secret; "
        "ln -s /etc/passwd out/link; ln -s ../../outside out/dir; mkfifo out/pipe; mknod out/null c 1 3; "
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('out/sock')\"; "
        "ln out/good out/hard; printf x > $(printf 'out/bad\\377name'); printf x > \"$(printf 'out/new\\nline')\"; "
        "printf x > 'out/back\\slash'; echo s > out/hunter2000.txt; echo r > result.patch; "
        "head -c 5000 /dev/zero > out/big"
    )

    peer = world.run(
        task, globs=["out/**", "result.patch", "../outside/*", "/etc/*", "no*such"],
        file_bytes_max=4000, redact=["hunter2000"],
    )  # fmt: skip

    files = {name for name, kind in peer.kinds.items() if kind == "file"}
    assert files == {"out/good", "out/hard", "out/sub/deep"}
    why = reasons(peer)
    assert why["out/link"] == why["out/dir"] == "a symbolic link"
    assert why["out/pipe"] == "a pipe"
    assert why["out/null"] == "a device"
    assert why["out/sock"] == "not a regular file"
    assert why["out/bad\\udcffname"] == "its name is not UTF-8"
    assert why["out/new\\nline"] == "its name has control characters"
    assert "file_bytes_max" in why["out/big"]
    assert why["out/•••.txt"] == "its name contains a secret"
    assert why["../outside/*"] == why["no*such"] == "no file matches"
    assert "reserved" in why["result.patch"]


def test_a_thousand_artifacts_arrive_and_the_limits_say_what_does_not(world: GuestWorld) -> None:
    task = "mkdir d; for n in $(seq -w 1 1000); do echo $n > d/$n; done"

    peer = world.run(task, globs=["d/*"], count_max=990)

    assert sum(kind == "file" for kind in peer.kinds.values()) == 990
    assert "count_max = 990" in reasons(peer)["d/1000"]


def test_the_total_limit_leaves_out_what_is_too_much(world: GuestWorld) -> None:
    task = "head -c 600 /dev/zero > a; head -c 600 /dev/zero > b; head -c 300 /dev/zero > c"

    peer = world.run(task, globs=["?"], total_bytes_max=1000)

    assert {name for name, kind in peer.kinds.items() if kind == "file"} == {"a", "c"}
    assert "total_bytes_max" in reasons(peer)["b"]


def test_an_artifact_the_daemon_refuses_is_named_in_the_report(world: GuestWorld) -> None:
    with world.peer("head -c 3000000 /dev/zero > big; echo x > small", globs=["big", "small"]) as peer:
        peer.refuse_artifact = lambda offer: "no room" if offer.name == "big" else None
        world.finish(peer, world.start(peer))

    assert reasons(peer) == {"big": "no room"}
    assert "small" in peer.artifacts


def test_a_refused_bundle_is_a_failure(world: GuestWorld) -> None:
    with world.peer("echo x > x") as peer:
        peer.refuse_artifact = lambda offer: "no room" if offer.kind == "bundle" else None
        world.finish(peer, world.start(peer))

    assert peer.report is not None
    assert peer.report.outcome == "failed"
    assert peer.report.failure is not None
    assert "no room" in peer.report.failure.cause


def test_a_collection_that_takes_too_long_is_a_failure_that_names_its_limit(world: GuestWorld) -> None:
    peer = world.run("head -c 200000000 /dev/urandom > big; echo x > x", collect_s_max=0.5, globs=["x"])

    assert peer.report is not None
    assert peer.report.outcome == "failed"
    assert peer.report.failure is not None
    assert "collect_s_max = 0.5 s" in peer.report.failure.cause
    assert "x" in peer.artifacts
