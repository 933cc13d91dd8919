"""The guest program as a real process against a real daemon's end: what a job brings back, and what survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentlab.testing.guest_peer import wait_until
from agentlab.testing.guest_world import GuestWorld, git


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GuestWorld]:
    world = GuestWorld(tmp_path)
    yield world
    world.close()


def test_a_job_brings_back_output_branch_patch_and_report(world: GuestWorld) -> None:
    peer = world.run("echo hello; echo more >> a.txt; echo new > b.txt; echo no > c.log")

    report = peer.report
    assert report is not None
    assert bytes(peer.output) == b"hello\n"
    assert peer.phases() == ["fetch", "prepare", "run", "collect", "report"]
    assert (report.outcome, report.exit_status, report.failure, report.skipped) == ("succeeded", 0, None, ())
    assert (report.base_commit, report.files_changed, report.lines_added) == (world.base, 2, 2)
    clone = world.apply(peer)
    assert git(clone, "rev-parse", "HEAD") == report.head_commit
    assert git(clone, "log", "--format=%an <%ae>", "-1") == "AgentLab <agentlab@localhost>"
    assert (clone / "b.txt").read_text() == "new\n"
    assert not (clone / "c.log").exists()
    assert git(clone, "status", "--porcelain") == ""


def test_output_is_redacted_across_writes_and_in_base64(world: GuestWorld) -> None:
    secret = "tok_3n-of/the+realm=42"
    task = 'printf "a %.8s" "$TOKEN"; sleep 0.5; echo "${TOKEN:8} b"; printf "x$TOKEN" | base64 -w0'

    peer = world.run(task, env={"TOKEN": secret}, redact=[secret])

    assert bytes(peer.output).startswith("a ••• b\n".encode())
    assert b"dG9r" not in bytes(peer.output)
    assert secret not in (world.state / "job.json").read_text()
    assert all(secret.encode() not in each.read_bytes() for each in world.state.rglob("*") if each.is_file())


def test_output_arrives_while_the_agent_runs(world: GuestWorld) -> None:
    with world.peer("echo first; until [ -e go ]; do sleep 0.05; done", redact=["some-long-secret-value"]) as peer:
        process = world.start(peer)
        peer.wait(lambda: bytes(peer.output) == b"first\n")
        (world.work / "go").touch()
        world.finish(peer, process)


def test_a_failing_agent_is_reported_with_its_status_and_its_work(world: GuestWorld) -> None:
    peer = world.run("echo half > done.txt; exit 7")

    assert peer.report is not None
    assert (peer.report.outcome, peer.report.exit_status, peer.report.failure) == ("failed", 7, None)
    assert (world.apply(peer) / "done.txt").exists()


def test_nothing_changed_brings_no_bundle(world: GuestWorld) -> None:
    peer = world.run("true")

    assert peer.report is not None
    assert peer.artifacts == {}
    assert "no changes" in peer.report.summary
    assert peer.report.head_commit == world.base


@pytest.mark.parametrize(
    ("prompt", "argv"),
    [("argument", ["bash", "-euc"]), ("stdin", ["bash", "-eu"]), ("file", ["bash", "-eu", "{task_file}"])],
)
def test_the_task_reaches_the_agent(world: GuestWorld, prompt: str, argv: list[str]) -> None:
    peer = world.run("echo got it", agent={"name": "x", "argv": argv, "prompt": prompt})

    assert bytes(peer.output) == b"got it\n"


def test_a_time_out_ends_everything_and_saves_the_work(world: GuestWorld) -> None:
    task = "echo early > early.txt; (setsid sleep 300 &) ; trap '' TERM; while :; do sleep 1; done"

    peer = world.run(task, timeout_s=1.5, stop_grace_s=0.5)

    assert peer.report is not None
    assert (peer.report.outcome, peer.report.exit_status) == ("timed_out", 137)
    assert (world.apply(peer) / "early.txt").exists()
    assert marked(world.job) == []


def test_cancelling_ends_the_agent_and_saves_the_work(world: GuestWorld) -> None:
    with world.peer("echo up; echo x > x.txt; sleep 300") as peer:
        process = world.start(peer)
        peer.wait(lambda: b"up\n" in peer.output)
        peer.stop("cancelled")
        world.finish(peer, process)

    assert peer.report is not None
    assert (peer.report.outcome, peer.report.exit_status) == ("cancelled", 143)
    assert (world.apply(peer) / "x.txt").exists()


def test_cancelling_before_the_agent_runs_runs_nothing(world: GuestWorld) -> None:
    with world.peer("echo never") as peer:
        peer.stop_reason = "cancelled"
        world.finish(peer, world.start(peer))

    assert peer.report is not None
    assert peer.report.outcome == "cancelled"
    assert bytes(peer.output) == b""


def test_daemonised_children_are_ended_with_the_agent(world: GuestWorld) -> None:
    task = "for n in 1 2 3; do (setsid env -i sleep 300 >/dev/null 2>&1 &); done; sleep 0.2; echo $$ > pid"

    peer = world.run(task)

    assert peer.report is not None
    assert "could not be ended" not in peer.report.summary
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert marked(world.job) == []
    assert "env -i sleep 300" not in listed


def test_an_empty_repository_becomes_a_self_contained_bundle(world: GuestWorld) -> None:
    world.origin.mkdir()
    git(world.origin, "init", "-q", "--bare")

    peer = world.run("echo a > a", repo={"url": None, "bundle": None, "bundle_bytes": 0, "ref": None})

    assert peer.report is not None
    assert peer.report.base_commit is None
    assert (world.apply(peer) / "a").read_text() == "a\n"


def test_a_url_is_cloned_at_a_ref(world: GuestWorld) -> None:
    world.sample()
    git(world.origin, "tag", "v1", "HEAD~1")

    peer = world.run(
        "cat a.txt; git log --oneline | wc -l",
        repo={"url": f"file://{world.origin}", "bundle": None, "bundle_bytes": 0, "ref": "v1"},
    )

    assert bytes(peer.output) == b"line 1\n1\n"


@pytest.mark.parametrize("ref", ["mian", "0" * 40, "-x", "refs/heads/nope"])
def test_a_missing_ref_fails_with_the_nearest_names(world: GuestWorld, ref: str) -> None:
    peer = world.run("true", ref=ref)

    assert peer.report is not None
    assert peer.report.failure is not None
    assert peer.report.failure.phase == "fetch"
    assert "main" in peer.report.failure.cause
    assert "main" in peer.report.failure.remedy
    assert peer.report.outcome == "failed"


@pytest.mark.parametrize("url", ["https://user:hunter22@127.0.0.1:1/x.git", "ext::sh -c true", "file:///nonexistent"])
def test_an_unreachable_repository_fails_with_cause_and_remedy(world: GuestWorld, url: str) -> None:
    peer = world.run("true", repo={"url": url, "bundle": None, "bundle_bytes": 0, "ref": None})

    assert peer.report is not None
    assert peer.report.failure is not None
    assert "cannot be cloned" in peer.report.failure.cause
    assert "hunter22" not in peer.report.failure.cause
    assert "protocols" in peer.report.failure.remedy


def test_a_bundle_the_daemon_does_not_have_fails_the_fetch(world: GuestWorld) -> None:
    repo = {"url": None, "bundle": "0" * 64, "bundle_bytes": 1, "ref": None}

    peer = world.run("true", repo=repo)

    assert peer.report is not None
    assert peer.report.failure is not None
    assert "did not arrive" in peer.report.failure.cause


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"user": "no-such-user"}, "no user"),
        ({"agent": {"name": "x", "argv": ["no-such-agent"], "prompt": "stdin"}}, "could not be started"),
        ({"agent": {"name": "x", "argv": ["echo"], "prompt": "argument"}, "task": "x" * 200_000}, "argument"),
    ],
)
def test_what_is_wrong_before_the_agent_is_said(world: GuestWorld, change: dict[str, Any], says: str) -> None:
    task = change.pop("task", "true")

    peer = world.run(task, **change)

    assert peer.report is not None
    assert peer.report.failure is not None
    assert says in peer.report.failure.cause
    assert peer.report.exit_status is None


def test_a_work_directory_with_something_in_it_is_not_touched(world: GuestWorld) -> None:
    world.work.mkdir()
    (world.work / "precious").write_text("x")

    peer = world.run("true")

    assert peer.report is not None
    assert peer.report.failure is not None
    assert "not empty" in peer.report.failure.cause
    assert (world.work / "precious").exists()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_the_agent_runs_as_its_user_and_cannot_reach_the_guest(world: GuestWorld) -> None:
    for path in (world.top, *world.top.parents):
        if path.stat().st_uid == 0 and path != path.parent and "pytest" in str(path):
            path.chmod(0o755)
    task = f"id -un; cat {world.run_dir}/session.json || echo closed; ls {world.state} || echo closed; echo x > x"

    peer = world.run(task, user="daemon", redact=[])

    assert peer.report is not None
    assert peer.report.outcome == "succeeded", peer.output
    lines = bytes(peer.output).decode().splitlines()
    assert lines[0] == "daemon"
    assert lines.count("closed") == 2
    assert (world.apply(peer) / "x").exists()


def test_a_second_guest_is_refused(world: GuestWorld) -> None:
    with world.peer("sleep 300") as peer:
        first = world.start(peer)
        peer.wait(lambda: "run" in peer.phases())
        first.send_signal(signal.SIGSTOP)
        peer.cut()
        second = world.start(peer)

        assert second.wait(20) == 3
        assert "grant-unknown" in world.stderr()


def test_a_restarted_guest_does_not_run_the_agent_twice(world: GuestWorld) -> None:
    with world.peer(f"echo run >> {world.top}/runs; echo kept > kept.txt; sleep 300") as peer:
        first = world.start(peer)
        wait_until(lambda: (world.work / "kept.txt").exists())
        first.kill()
        first.wait()
        world.finish(peer, world.start(peer, grant=False))

    assert peer.report is not None
    assert peer.report.outcome == "lost"
    assert (world.top / "runs").read_text() == "run\n"
    assert (world.apply(peer) / "kept.txt").exists()
    assert marked(world.job) == []


def test_a_rescue_sends_the_rest_of_the_output_and_the_work(world: GuestWorld) -> None:
    with world.peer("echo one; sleep 0.3; echo two; echo kept > kept.txt; sleep 300") as peer:
        first = world.start(peer)
        peer.wait(lambda: b"one\n" in peer.output)
        peer.deafen()
        wait_until(lambda: (world.work / "kept.txt").exists())
        time.sleep(0.5)
        first.kill()
        first.wait()
        peer.bootstrap = json.dumps(json.loads(peer.bootstrap) | {"mode": "collect", "env": {}, "redact": []}).encode()
        peer.grant, peer.credential, peer.accepted = "rescue", "rescue-credential", False
        peer.listen()
        world.finish(peer, world.start(peer))

    assert peer.report is not None
    assert peer.report.outcome == "lost"
    assert "lost while the agent ran" in peer.report.summary
    assert bytes(peer.output) == b"one\ntwo\n"
    assert (world.apply(peer) / "kept.txt").exists()
    assert marked(world.job) == []


def test_a_job_goes_on_without_its_daemon(world: GuestWorld) -> None:
    with world.peer("echo one; sleep 1; echo two") as peer:
        process = world.start(peer)
        peer.wait(lambda: b"one\n" in peer.output)
        peer.deafen()
        time.sleep(2)
        peer.listen()
        world.finish(peer, process)

    assert peer.report is not None
    assert peer.report.outcome == "succeeded"
    assert bytes(peer.output) == b"one\ntwo\n"
    assert [event.seq for event in peer.events] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(3))
def test_a_link_cut_at_any_byte_loses_and_repeats_nothing(world: GuestWorld, seed: int) -> None:
    rng = random.Random(seed)
    with world.peer("seq 1 20000; head -c 300000 /dev/zero > big.bin; seq 20001 30000", globs=["*.bin"]) as peer:
        cuts = [rng.choice((1, 5, 9, 40, 200, 300, 500, 1000, 9000, 40_000, 100_000)) for _ in range(14)]
        peer.cut_after = cuts
        world.finish(peer, world.start(peer), 90)

    assert bytes(peer.output).decode().split() == [str(n) for n in range(1, 30_001)]
    assert [event.seq for event in peer.events] == [1, 2, 3, 4, 5]
    assert peer.artifacts["big.bin"] == bytes(300_000)
    assert peer.connections == 15


def test_a_lost_welcome_is_answered_again_for_the_same_nonce(world: GuestWorld) -> None:
    with world.peer("true") as peer:
        peer.cut_after = [30, 300]
        world.finish(peer, world.start(peer))

    assert len({hello.nonce for hello in peer.hellos}) == 1


def test_huge_output_arrives_whole_while_the_link_is_up(world: GuestWorld) -> None:
    peer = world.run("head -c 100000000 /dev/zero | tr '\\0' x", redact=[f"secret-number-{n}" for n in range(100)])

    assert len(peer.output) == 100_000_000
    assert peer.output.count(b"x") == 100_000_000


def test_a_full_spool_without_a_daemon_is_truncated_with_a_note(world: GuestWorld) -> None:
    gate = world.state.parent / "deaf"  # a fixed wait would let output through on a busy machine
    flood = "head -c 300000000 /dev/zero | tr '\\0' x; echo end"
    with world.peer(f"echo one; until [ -e {gate} ]; do sleep 0.1; done; {flood}") as peer:
        process = world.start(peer)
        peer.wait(lambda: b"one\n" in peer.output)
        peer.deafen()
        gate.touch()
        wait_until(lambda: b'"phase":"collect"' in (world.state / "events").read_bytes())
        peer.listen()
        world.finish(peer, process)

    # A short piece may still have found room where a longer one before it had not.
    assert b"[agentlab: output truncated: " in peer.output[-200_000:]
    assert len(peer.output) < 270_000_000


def test_the_environment_is_the_jobs_and_nothing_of_the_guest(world: GuestWorld) -> None:
    peer = world.run("env; ls -l /proc/self/fd | wc -l; cat /proc/self/oom_score_adj", env={"COLOUR": "blue"})

    text = bytes(peer.output).decode()
    assert "COLOUR=blue\n" in text
    assert f"AGENTLAB_JOB={world.job}\n" in text
    assert text.endswith("500\n")


def marked(job: str) -> list[int]:
    """Processes that bear the job's mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"AGENTLAB_JOB={job}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a PID namespace")
def test_a_rescue_in_a_sandbox_of_its_own_ends_even_what_hides_its_mark(world: GuestWorld) -> None:
    script = world.top / "inside.sh"
    guest = f"{sys.executable} -I -S {world.pyz} --link unix:{world.top}/guest.sock --own-pids"
    guest += f" --run-dir {world.run_dir} --state-dir {world.state}"
    script.write_text(
        f"echo $GRANT | {guest} & until [ -e {world.work}/hidden ]; do sleep 0.05; done; kill -9 $!; "
        f"until [ -e {world.top}/go ]; do sleep 0.05; done; echo rescue | {guest}; ls /proc | grep -c '^[0-9]'"
    )
    with world.peer("(setsid env -i sleep 301 &); sleep 0.3; touch hidden; sleep 302") as peer:
        argv = ["unshare", "--pid", "--fork", "--mount-proc", "sh", str(script)]
        outside = subprocess.Popen(argv, env={**os.environ, "GRANT": peer.grant}, stdout=subprocess.PIPE)
        world.processes.append(outside)
        wait_until(lambda: (world.work / "hidden").exists())
        peer.bootstrap = json.dumps(json.loads(peer.bootstrap) | {"mode": "collect"}).encode()
        peer.grant, peer.credential, peer.accepted = "rescue", "rescue-credential", False
        (world.top / "go").touch()
        out, _ = outside.communicate(timeout=40)

    assert peer.report is not None
    assert peer.report.outcome == "lost"
    assert int(out) <= 4  # the shell, ls and grep, and nothing of the agent
