"""Jobs, end to end, in real sandboxes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from tests.e2e.support import Lab, git, until

from agentlab.errors import NotFound, TaskInvalid

pytestmark = [pytest.mark.root]

REPAIR = "echo working; echo repaired > README; echo new > added.txt; git add -A; git commit -qm 'Repair'\n"


def test_a_job_brings_back_its_commits_as_patch_and_bundle_and_leaves_nothing(each_lab: Lab, tmp_path: Path) -> None:
    repository = each_lab.repository("applied")

    job = each_lab.job(REPAIR, repository)
    row = each_lab.ended(job)

    assert row["state"] == "succeeded", row
    assert "working" in each_lab.output(job)
    assert "+repaired" in each_lab.patch(job)
    assert row["result"]["files_changed"] == 2
    bundle = tmp_path / "result.bundle"
    with bundle.open("wb") as file:
        each_lab.client.download("jobs.bundle", file, job=job)
    git(repository, "fetch", "-q", str(bundle), f"agentlab/{job}:work")
    assert git(repository, "show", "work:README") == "repaired"
    until(lambda: not any(each["id"] == row["sandbox"] for each in each_lab.living()), "the sandbox to go", 30)


def test_uncommitted_work_of_the_agent_is_committed_for_it(each_lab: Lab) -> None:
    job = each_lab.job("echo changed > README\n", each_lab.repository("uncommitted"))

    row = each_lab.ended(job)

    assert row["state"] == "succeeded"
    assert "+changed" in each_lab.patch(job)


def test_a_failing_agent_fails_the_job_with_its_status_and_keeps_its_work(each_lab: Lab) -> None:
    job = each_lab.job("echo half > README; exit 7\n", each_lab.repository("failing"))

    row = each_lab.ended(job)

    assert row["state"] == "failed"
    assert row["result"]["exit_status"] == 7
    assert "7" in row["failure"]["cause"]
    assert "+half" in each_lab.patch(job)


def test_a_job_that_exceeds_its_time_is_stopped_and_its_work_harvested(each_lab: Lab) -> None:
    task = "echo slow > README; sleep 300\n"

    job = each_lab.job(task, each_lab.repository("timeout"), timeout_s=2)
    row = each_lab.ended(job)

    assert row["state"] == "timed_out"
    assert "+slow" in each_lab.patch(job)


def test_a_cancelled_job_is_harvested_too(each_lab: Lab) -> None:
    job = each_lab.job("echo begun > README; sleep 300\n", each_lab.repository("cancel"))
    sandbox = each_lab.running(job)["sandbox"]
    until(lambda: each_lab.execute(sandbox, "grep", "begun", "/work/README")[0] == 0, "the agent's first write")

    each_lab.client.call("jobs.cancel", job=job)
    row = each_lab.ended(job)

    assert row["state"] == "cancelled"
    assert "+begun" in each_lab.patch(job)


def test_destroying_the_sandbox_of_a_running_job_brings_its_work_back_first(each_lab: Lab) -> None:
    job = each_lab.job("echo kept > README; sleep 300\n", each_lab.repository("destroyed"))
    sandbox = each_lab.running(job)["sandbox"]
    until(lambda: each_lab.execute(sandbox, "grep", "kept", "/work/README")[0] == 0, "the agent's first write")

    each_lab.client.call("sandboxes.destroy", sandbox=sandbox)
    row = each_lab.ended(job)

    assert row["state"] == "cancelled"
    assert "+kept" in each_lab.patch(job)
    until(lambda: not any(each["id"] == sandbox for each in each_lab.living()), "the sandbox to go", 30)


def test_a_guest_program_that_is_killed_is_rescued_and_its_work_brought_back(each_lab: Lab) -> None:
    job = each_lab.job("echo rescued > README; sleep 300\n", each_lab.repository("rescue"))
    sandbox = each_lab.running(job)["sandbox"]
    until(lambda: each_lab.execute(sandbox, "grep", "rescued", "/work/README")[0] == 0, "the agent's first write")

    each_lab.execute(sandbox, "pkill", "-9", "-f", "guest.pyz --link")
    row = each_lab.ended(job)

    assert row["state"] == "lost"
    assert row["failure"]["cause"]
    assert "+rescued" in each_lab.patch(job)


def test_a_sandbox_that_dies_is_started_again_to_save_its_work(each_lab: Lab) -> None:
    job = each_lab.job("echo saved > README; sync; sleep 300\n", each_lab.repository("dies"))
    sandbox = each_lab.running(job)["sandbox"]
    until(lambda: each_lab.execute(sandbox, "grep", "saved", "/work/README")[0] == 0, "the agent's first write")

    each_lab.client.call("sandboxes.stop", sandbox=sandbox)
    row = each_lab.ended(job)

    assert row["state"] == "lost"
    assert "+saved" in each_lab.patch(job)


def test_jobs_beyond_the_limit_queue_and_start_in_order(each_lab: Lab) -> None:
    jobs = [each_lab.job("sleep 1\n") for _ in range(6)]

    rows = [each_lab.ended(job) for job in jobs]

    assert {row["state"] for row in rows} == {"succeeded"}
    started = [row["started_at"] for row in rows]
    assert started == sorted(started)


def test_declared_artifacts_come_back_with_their_digest(each_lab: Lab) -> None:
    task = "mkdir -p out/deep; head -c 3000000 /dev/urandom > out/deep/big.bin\n"
    task += "echo x > out/small.txt; ln -s /etc/passwd out/link\n"

    job = each_lab.job(task, artifact_globs=["out/**"])
    row = each_lab.ended(job)

    found = {each["name"]: each for each in each_lab.client.call("jobs.artifacts", job=job)["items"]}
    assert {"out/deep/big.bin", "out/small.txt"} <= found.keys()
    assert "out/link" not in found
    assert any("out/link" in line for line in row["result"]["skipped"])
    content = io.BytesIO()
    each_lab.client.download("jobs.artifact", content, job=job, name="out/deep/big.bin")
    assert hashlib.sha256(content.getvalue()).hexdigest() == found["out/deep/big.bin"]["digest"]


def test_a_thousand_artifacts_all_come_back(each_lab: Lab) -> None:
    task = "mkdir out; for i in $(seq 1000); do echo $i > out/$i; done\n"

    job = each_lab.job(task, artifact_globs=["out/*"])
    each_lab.ended(job)

    names = {each["name"] for each in each_lab.client.call("jobs.artifacts", job=job)["items"]}
    assert len([name for name in names if name.startswith("out/")]) == 1000


def test_an_artifact_beyond_the_quota_is_skipped_with_its_reason_and_the_rest_comes(each_lab: Lab) -> None:
    task = "mkdir out; truncate -s 20G out/huge; echo x > out/small\n"

    job = each_lab.job(task, artifact_globs=["out/*"])
    row = each_lab.ended(job)

    names = {each["name"] for each in each_lab.client.call("jobs.artifacts", job=job)["items"]}
    assert "out/small" in names
    assert "out/huge" not in names
    assert any("out/huge" in line for line in row["result"]["skipped"])


def test_values_of_the_environment_are_delivered_and_redacted_from_output(each_lab: Lab) -> None:
    secret = "s3cr3t-value-of-the-test"

    job = each_lab.job(
        'echo "it is $TOKEN"; printf %s "$TOKEN" | base64; test "$TOKEN" = s3cr3t-value-of-the-"test"\n',
        env={"TOKEN": secret},
    )
    row = each_lab.ended(job)

    assert row["state"] == "succeeded"
    assert secret not in each_lab.output(job)
    assert "it is •••" in each_lab.output(job)
    assert row["env_names"] == ["TOKEN"]
    assert secret not in each_lab.daemon.log()
    raw = b"".join(path.read_bytes() for path in (each_lab.folder / "state").glob("agentlab.db*"))
    assert secret.encode() not in raw


def test_an_unreachable_repository_fails_the_job_with_cause_and_remedy(each_lab: Lab) -> None:
    repo = {"url": "https://repository.invalid/nothing.git"}

    job = each_lab.client.call("jobs.create", task="true", repo=repo, agent="shell")["id"]
    row = each_lab.ended(job)

    assert row["state"] == "failed"
    assert row["failure"]["step"] == "fetch"
    assert row["failure"]["remedy"]


def test_a_missing_ref_fails_the_job_and_names_it(each_lab: Lab) -> None:
    repo = each_lab.upload(each_lab.repository("ref")) | {"ref": "no-such-branch"}

    job = each_lab.client.call("jobs.create", task="true", repo=repo, agent="shell")["id"]
    row = each_lab.ended(job)

    assert row["state"] == "failed"
    assert "no-such-branch" in row["failure"]["cause"]


def test_a_task_of_ten_megabytes_is_refused_with_the_limit(each_lab: Lab) -> None:
    with pytest.raises(Exception, match=r"(?i)larger|limit|at most"):
        each_lab.client.call("jobs.create", task="x" * 10_000_000, repo={}, agent="shell")


def test_an_empty_task_and_unknown_names_are_refused_with_the_nearest(each_lab: Lab) -> None:
    with pytest.raises(TaskInvalid):
        each_lab.client.call("jobs.create", task="  ", repo={}, agent="shell")
    with pytest.raises(NotFound, match="shell"):
        each_lab.client.call("jobs.create", task="true", repo={}, agent="shel")
    with pytest.raises(NotFound, match="yolo-ephemeral"):
        each_lab.client.call("jobs.create", task="true", repo={}, profile="yolo-ephemera")


def test_a_kept_sandbox_stays_after_its_job(each_lab: Lab) -> None:
    job = each_lab.job("echo here > /work/kept\n", keepalive=True)
    row = each_lab.ended(job)

    status, out = each_lab.execute(row["sandbox"], "cat", "/work/kept")

    assert (status, out) == (0, "here\n")
    each_lab.client.call("sandboxes.destroy", sandbox=row["sandbox"])
