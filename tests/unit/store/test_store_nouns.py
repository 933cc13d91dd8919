"""The smaller nouns of the store: meta, steps, artifacts, templates, idempotency keys, progress."""

from __future__ import annotations

import pytest
from tests.unit.store.store_rows import NOW, digest, job

from agentlab import errors
from agentlab.base.entropy import SeededEntropy
from agentlab.model.artifact import Artifact
from agentlab.model.failure import Failure
from agentlab.model.job import RepoSource
from agentlab.model.sandbox import StepRecord
from agentlab.model.template import Template
from agentlab.store import artifacts, idempotency, jobs, meta, progress, steps, templates
from agentlab.store.connection import Tx

# Meta


def test_a_value_is_put_and_replaced(tx: Tx) -> None:
    assert meta.get(tx, "key") is None

    meta.put(tx, "key", "one")
    meta.put(tx, "key", "two")

    assert meta.get(tx, "key") == "two"


def test_the_installation_is_made_once(tx: Tx) -> None:
    first = meta.installation(tx, SeededEntropy(1))

    assert len(first) == 8
    assert meta.installation(tx, SeededEntropy(2)) == first


# Steps


def test_steps_are_told_in_order_with_their_times(tx: Tx) -> None:
    first = steps.begin(tx, "sb-1", "provision", "create", NOW)
    steps.begin(tx, "sb-2", "provision", "create", NOW)
    steps.finish(tx, first, "done", NOW + 1)
    steps.begin(tx, "sb-1", "provision", "connected", NOW + 1, "waits for the guest to call")

    assert steps.of(tx, "sb-1") == [
        StepRecord(
            subject="sb-1", operation="provision", step="create", started_at=NOW, ended_at=NOW + 1, outcome="done"
        ),
        StepRecord(
            subject="sb-1",
            operation="provision",
            step="connected",
            started_at=NOW + 1,
            detail="waits for the guest to call",
        ),
    ]


def test_a_step_ends_once(tx: Tx) -> None:
    row = steps.begin(tx, "sb-1", "provision", "create", NOW)
    steps.finish(tx, row, "failed", NOW + 1, "no space")

    steps.finish(tx, row, "done", NOW + 2)

    assert steps.of(tx, "sb-1")[0].outcome == "failed"
    assert steps.of(tx, "sb-1")[0].detail == "no space"


def test_steps_that_an_earlier_daemon_left_running_were_interrupted(tx: Tx) -> None:
    done = steps.begin(tx, "sb-1", "provision", "create", NOW)
    steps.finish(tx, done, "done", NOW)
    steps.begin(tx, "sb-1", "provision", "policy", NOW)

    assert steps.abandon_running(tx, NOW + 9) == 1
    assert steps.abandon_running(tx, NOW + 9) == 0

    assert [(each.outcome, each.ended_at) for each in steps.of(tx, "sb-1")] == [("done", NOW), ("interrupted", NOW + 9)]


# Artifacts


def artifact(name: str, content: str = "x") -> Artifact:
    return Artifact(
        job=job(1).id, name=name, kind="file", bytes_count=len(content), digest=digest(content), created_at=NOW
    )


def test_artifacts_are_listed_by_name_and_summed(tx: Tx) -> None:
    jobs.insert(tx, job(1), b"")
    artifacts.insert(tx, artifact("b", "four"))
    artifacts.insert(tx, artifact("a/ä", "x"))

    assert artifacts.of(tx, job(1).id) == [artifact("a/ä"), artifact("b", "four")]
    assert artifacts.get(tx, job(1).id, "b") == artifact("b", "four")
    assert artifacts.get(tx, job(1).id, "c") is None
    assert artifacts.total_bytes(tx, job(1).id) == 5
    assert artifacts.total_bytes(tx, "job-99999999") == 0


def test_an_artifact_of_the_same_name_replaces_the_earlier(tx: Tx) -> None:
    jobs.insert(tx, job(1), b"")
    artifacts.insert(tx, artifact("a", "old"))

    artifacts.insert(tx, artifact("a", "newer"))

    assert artifacts.of(tx, job(1).id) == [artifact("a", "newer")]


def test_an_artifact_whose_name_was_not_checked_is_not_recorded(tx: Tx) -> None:
    jobs.insert(tx, job(1), b"")

    with pytest.raises(AssertionError, match="not checked"):
        artifacts.insert(tx, artifact("../etc/passwd"))


def test_an_artifact_belongs_to_a_job(tx: Tx) -> None:
    with pytest.raises(Exception, match="FOREIGN KEY"):
        artifacts.insert(tx, artifact("a"))


def test_blobs_in_use_are_those_of_artifacts_and_of_repositories(tx: Tx) -> None:
    jobs.insert(tx, job(1, repo=RepoSource(bundle=digest("bundle"))), b"")
    artifacts.insert(tx, artifact("a"))
    artifacts.insert(tx, artifact("b"))

    assert artifacts.digests_in_use(tx) == {digest("bundle"), digest("x")}


# Templates


def build(content: str, **changes: object) -> Template:
    values: dict[str, object] = {
        "name": "base",
        "digest": digest(content),
        "recipe_digest": digest("recipe"),
        "state": "ready",
        "bytes_count": 1,
        "built_at": NOW,
        "build_s": 1.5,
    }
    return Template(**{**values, **changes})  # type: ignore[arg-type]


def test_a_template_comes_back_with_every_field(tx: Tx) -> None:
    full = build(
        "a",
        state="failed",
        packages=(("git", "1:2.39"), ("python3", "3.11")),
        step="packages",
        failure=Failure(code="c", step="s", cause="e", remedy="r", at=NOW),
    )

    templates.put(tx, full)

    assert templates.by_digest(tx, full.digest) == full
    assert templates.by_digest(tx, digest("b")) is None
    assert templates.get(tx, "other") is None


def test_the_newest_ready_build_goes_before_newer_ones_that_are_not_ready(tx: Tx) -> None:
    templates.put(tx, build("new", built_at=NOW + 5))
    templates.put(tx, build("old"))
    templates.put(tx, build("building", state="building", built_at=None, build_s=None))

    assert templates.get(tx, "base") == build("new", built_at=NOW + 5)


def test_without_a_ready_build_the_newest_is_told(tx: Tx) -> None:
    templates.put(tx, build("a", state="failed", built_at=None))
    templates.put(tx, build("b", state="failed", built_at=None))
    templates.put(tx, build("a", state="building", built_at=None))

    assert templates.get(tx, "base") == build("a", state="building", built_at=None)


def test_templates_are_listed_and_removed(tx: Tx) -> None:
    templates.put(tx, build("b", name="agents"))
    templates.put(tx, build("a"))
    assert [each.name for each in templates.list(tx)] == ["agents", "base"]

    templates.remove(tx, digest("a"))
    templates.remove(tx, digest("a"))

    assert [each.name for each in templates.list(tx)] == ["agents"]


# Idempotency keys


def test_a_repeated_request_gets_the_first_response(tx: Tx) -> None:
    assert idempotency.recall(tx, "uid:0", "k", "print") is None

    idempotency.remember(tx, "uid:0", "k", "print", '{"id":1}', NOW)

    assert idempotency.recall(tx, "uid:0", "k", "print") == '{"id":1}'
    assert idempotency.recall(tx, "uid:1", "k", "print") is None


def test_a_key_with_another_request_is_refused(tx: Tx) -> None:
    idempotency.remember(tx, "uid:0", "k", "print", "{}", NOW)

    with pytest.raises(errors.IdempotencyConflict, match="k"):
        idempotency.recall(tx, "uid:0", "k", "another")


def test_old_keys_are_forgotten(tx: Tx) -> None:
    idempotency.remember(tx, "uid:0", "old", "print", "{}", NOW)
    idempotency.remember(tx, "uid:0", "new", "print", "{}", NOW + 10)

    idempotency.prune(tx, NOW + 5)

    assert idempotency.recall(tx, "uid:0", "old", "print") is None
    assert idempotency.recall(tx, "uid:0", "new", "print") == "{}"


# Progress


def test_progress_never_goes_back(tx: Tx) -> None:
    jobs.insert(tx, job(1), b"")
    assert progress.get(tx, job(1).id) == progress.Progress()

    progress.output(tx, job(1).id, 100)
    progress.output(tx, job(1).id, 50)
    progress.event(tx, job(1).id, 7)
    progress.event(tx, job(1).id, 6)
    progress.reported(tx, job(1).id)
    progress.reported(tx, job(1).id)

    assert progress.get(tx, job(1).id) == progress.Progress(output_acked=100, event_acked=7, reported=True)
