"""Jobs in the store: the queue and the record."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store.store_rows import ALPHABET, NOW, digest, fresh, job

from agentlab import errors
from agentlab.model.failure import Failure
from agentlab.model.ids import JobId, SandboxId
from agentlab.model.job import TASK_BYTES_MAX, Job, JobResult, RepoSource
from agentlab.model.machine import JOB_FINAL, JobState
from agentlab.store import events, jobs
from agentlab.store.connection import Tx
from agentlab.store.database import Database

J = JobState


def insert(tx: Tx, *rows: Job) -> None:
    for row in rows:
        jobs.insert(tx, row, b"sealed")


def test_a_job_comes_back_with_every_field(tx: Tx) -> None:
    full = job(
        7,
        state=J.FAILED,
        task="zeile\n" * 3,
        repo=RepoSource(bundle=digest("bundle"), ref="HEAD", origin="/home/me/r"),
        keepalive=True,
        sandbox=SandboxId("sb-22222223"),
        phase="run",
        started_at=NOW + 1,
        running_at=NOW + 2,
        collecting_at=NOW + 3,
        ended_at=NOW + 4,
        stop_reason="timed_out",
        stop_at=NOW + 2.5,
        result=JobResult(
            outcome="timed_out",
            exit_status=-9,
            summary="3 tests fail",
            base_commit="a" * 40,
            head_commit="b" * 40,
            files_changed=1,
            lines_added=2,
            lines_removed=3,
            skipped=("big.bin: too large",),
        ),
        failure=Failure(code="x/y", step="run", cause="c", remedy="r", at=NOW + 4),
        output_bytes=12345,
        rescues=2,
        backend="oci",
    )

    insert(tx, full)

    assert jobs.get(tx, full.id) == full
    assert jobs.get(tx, "job-99999999") is None


def test_the_largest_task_is_kept(tx: Tx) -> None:
    insert(tx, job(1, task="x" * TASK_BYTES_MAX))

    found = jobs.get(tx, job(1).id)
    assert found is not None
    assert len(found.task) == TASK_BYTES_MAX


def test_the_sealed_environment_is_beside_the_job_until_forgotten(tx: Tx) -> None:
    jobs.insert(tx, job(1), b"\x00sealed\xff")
    assert jobs.sealed_env(tx, job(1).id) == b"\x00sealed\xff"

    jobs.forget_env(tx, job(1).id)

    assert jobs.sealed_env(tx, job(1).id) is None
    assert jobs.get(tx, job(1).id) == job(1)
    assert jobs.sealed_env(tx, "job-99999999") is None


def test_a_job_is_found_by_id_and_prefix(tx: Tx) -> None:
    row = job(1, id=JobId("job-abcd2345"))
    insert(tx, row, job(2, id=JobId("job-xyz22222")))

    for text in ("job-abcd2345", "abcd2345", "job-a", "a"):
        assert jobs.find(tx, text) == row


def test_an_ambiguous_or_unknown_job_is_an_error(tx: Tx) -> None:
    insert(tx, job(1, id=JobId("job-abcd2345"), owner="uid:1"), job(2, id=JobId("job-abce2345"), owner="uid:2"))

    with pytest.raises(errors.Ambiguous, match="job-abcd2345, job-abce2345"):
        jobs.find(tx, "abc")
    assert jobs.find(tx, "abc", owner="uid:1").id == "job-abcd2345"
    with pytest.raises(errors.NotFound, match="Did you mean 'job-abcd2345'"):
        jobs.find(tx, "job-abcd2344", owner="uid:1")
    for text in ("", "job-", "%", "sb-abcd2345"):
        with pytest.raises(errors.NotFound):
            jobs.find(tx, text)


def test_the_queue_is_served_in_order_up_to_the_limit(tx: Tx) -> None:
    insert(tx, job(3), job(1), job(2), job(4, queued_at=NOW + 2))

    claimed = [jobs.claim_next(tx, NOW + 50, running_max=3) for _ in range(4)]

    assert [each and each.id for each in claimed] == [job(1).id, job(2).id, job(4).id, None]
    assert claimed[0] == job(1, state=J.STARTING, started_at=NOW + 50)
    facts = [(each.subject, each.data["before"], each.data["after"]) for each in events.since(tx, 0)]
    assert facts == [(number, "queued", "starting") for number in (job(1).id, job(2).id, job(4).id)]


def test_a_place_is_free_again_once_a_job_has_ended(tx: Tx) -> None:
    insert(tx, job(1, state=J.COLLECTING), job(2))
    assert jobs.claim_next(tx, NOW, running_max=1) is None

    jobs.transition(tx, job(1).id, J.SUCCEEDED, NOW, ended_at=NOW)

    claimed = jobs.claim_next(tx, NOW, running_max=1)
    assert claimed is not None
    assert claimed.id == job(2).id


def test_an_empty_queue_gives_nothing(tx: Tx) -> None:
    assert jobs.claim_next(tx, NOW, running_max=5) is None


def test_queued_jobs_know_their_position(tx: Tx) -> None:
    insert(tx, job(3), job(1), job(2), job(0, state=J.RUNNING))

    assert [jobs.queue_position(tx, job(number).id) for number in range(5)] == [0, 1, 2, 3, 0]


def test_active_jobs_are_those_that_have_not_ended(tx: Tx) -> None:
    insert(tx, *(job(number, state=state) for number, state in enumerate(J)))

    found = jobs.active(tx)

    assert [each.state for each in found] == [state for state in J if state not in JOB_FINAL]


def test_p9_lists_carry_the_beginning_of_a_long_task_and_a_single_job_all_of_it(tx: Tx) -> None:
    long = "ä" * (jobs.TASK_LISTED_MAX + 1)
    insert(tx, job(1, task=long), job(2, task="short"))

    listed, _ = jobs.page(tx)
    active = jobs.active(tx)

    cut = "ä" * jobs.TASK_LISTED_MAX + "…"
    assert {each.task for each in listed} == {each.task for each in active} == {cut, "short"}
    whole = jobs.get(tx, job(1).id)
    assert whole is not None
    assert whole.task == long


def test_a_transition_changes_the_row_and_records_the_event(tx: Tx) -> None:
    insert(tx, job(1, state=J.RUNNING))

    after = jobs.transition(tx, job(1).id, J.COLLECTING, NOW + 1, reason="agent ended", collecting_at=NOW + 1)

    assert jobs.get(tx, job(1).id) == after == job(1, state=J.COLLECTING, collecting_at=NOW + 1)
    assert events.since(tx, 0)[0].data == {"before": "running", "after": "collecting", "reason": "agent ended"}


def test_an_ended_job_stays_ended(tx: Tx) -> None:
    insert(tx, job(1, state=J.SUCCEEDED))

    with pytest.raises(errors.WrongState, match="succeeded"):
        jobs.transition(tx, job(1).id, J.LOST, NOW)
    with pytest.raises(errors.WrongState, match="a new one"):
        jobs.transition(tx, job(1).id, J.QUEUED, NOW)


def test_an_update_sets_fields_but_never_the_state(tx: Tx) -> None:
    insert(tx, job(1))

    assert jobs.update(tx, job(1).id, phase="fetch", output_bytes=5) == job(1, phase="fetch", output_bytes=5)
    assert jobs.get(tx, job(1).id) == job(1, phase="fetch", output_bytes=5)
    with pytest.raises(AssertionError):
        jobs.update(tx, job(1).id, state=J.FAILED)
    with pytest.raises(errors.NotFound):
        jobs.update(tx, "job-99999999", phase="x")


@pytest.mark.anyio
async def test_concurrent_claims_take_each_job_once_and_keep_the_limit(database: Database) -> None:
    await database.write(lambda tx: insert(tx, *(job(number) for number in range(20))))

    claimed = await asyncio.gather(
        *(database.write(lambda tx: jobs.claim_next(tx, NOW, running_max=7)) for _ in range(30))
    )

    taken = [each.id for each in claimed if each is not None]
    assert taken == [job(number).id for number in range(7)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(list(J)), st.sampled_from(["a", "b"])), max_size=12),
    limit=st.integers(1, 5),
    owner=st.sampled_from([None, "a"]),
    states=st.none() | st.sets(st.sampled_from(list(J))),
)
def test_pages_together_are_the_whole_list_once(
    rows: list[tuple[int, JobState, str]], limit: int, owner: str | None, states: set[JobState] | None
) -> None:
    with fresh() as tx:
        made = [job(n, queued_at=NOW + at, state=state, owner=whose) for n, (at, state, whose) in enumerate(rows)]
        insert(tx, *made)
        wanted = [
            each for each in made if (states is None or each.state in states) and (owner is None or each.owner == owner)
        ]

        found, after = jobs.page(tx, owner=owner, states=states, limit=limit)
        while after is not None:
            more, after = jobs.page(tx, owner=owner, states=states, after=after, limit=limit)
            found += more

        assert found == sorted(wanted, key=lambda each: (each.queued_at, each.id), reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.sets(st.text(ALPHABET[:3], min_size=8, max_size=8), min_size=1, max_size=12),
    text=st.text(ALPHABET[:3], min_size=1, max_size=8),
)
def test_a_prefix_finds_exactly_the_one_job_that_it_begins(ids: set[str], text: str) -> None:
    with fresh() as tx:
        insert(tx, *(job(number, id=JobId(f"job-{letters}")) for number, letters in enumerate(ids)))

        fitting = [letters for letters in ids if letters.startswith(text)]

        if len(fitting) == 1:
            assert jobs.find(tx, text).id == f"job-{fitting[0]}"
        else:
            with pytest.raises(errors.Ambiguous if fitting else errors.NotFound):
                jobs.find(tx, text)
