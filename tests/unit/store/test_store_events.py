"""The event log."""

from __future__ import annotations

from agentlab.model.event import DaemonStarted, JobPhase, SandboxStateChanged
from agentlab.store import events
from agentlab.store.connection import Tx


def fill(tx: Tx) -> None:
    events.append(tx, DaemonStarted(subject="daemon", version="1"), 10.0)
    events.append(tx, JobPhase(subject="job-1", phase="fetch"), 11.0)
    events.append(tx, SandboxStateChanged(subject="sb-1", before="requested", after="provisioning"), 12.0)
    events.append(tx, JobPhase(subject="job-1", phase="run"), 13.0)
    events.append(tx, JobPhase(subject="job-2", phase="run"), 14.0)


def test_an_event_comes_back_as_it_was_recorded(tx: Tx) -> None:
    seq = events.append(tx, JobPhase(subject="job-1", phase="fetch", detail="ä \ud800 \x1b"), 10.0625)

    (recorded,) = events.since(tx, 0)
    assert (recorded.seq, recorded.at_ms, recorded.type, recorded.subject) == (seq, 10062, "job.phase", "job-1")
    assert recorded.data == {"phase": "fetch", "detail": "ä \ud800 \x1b"}


def test_the_log_continues_after_a_number(tx: Tx) -> None:
    fill(tx)

    assert [each.seq for each in events.since(tx, 2)] == [3, 4, 5]
    assert [each.seq for each in events.since(tx, 2, limit=2)] == [3, 4]
    assert events.since(tx, 5) == []


def test_the_log_is_filtered_by_subject(tx: Tx) -> None:
    fill(tx)

    assert [each.seq for each in events.since(tx, 0, subject="job-1")] == [2, 4]
    assert [each.seq for each in events.since(tx, 2, subjects=["job-2", "sb-1"])] == [3, 5]
    assert [each.seq for each in events.since(tx, 0, subject="job-1", subjects=["sb-1"])] == [2, 3, 4]
    assert events.since(tx, 0, subjects=[]) == []


def test_the_log_is_filtered_by_type(tx: Tx) -> None:
    fill(tx)

    assert [each.seq for each in events.since(tx, 0, types=["job.phase", "daemon.started"])] == [1, 2, 4, 5]
    assert [each.seq for each in events.since(tx, 0, subject="job-1", types=["job.phase"], limit=1)] == [2]
    assert events.since(tx, 0, types=[]) == []


def test_a_number_is_never_given_twice_even_after_pruning_everything(tx: Tx) -> None:
    fill(tx)

    assert events.prune(tx, before=100.0, limit=100) == 5

    assert events.last_seq(tx) == 5
    assert events.append(tx, DaemonStarted(subject="daemon", version="1"), 20.0) == 6


def test_pruning_takes_the_oldest_and_stops_at_its_limit(tx: Tx) -> None:
    fill(tx)

    assert events.prune(tx, before=13.0, limit=2) == 2
    assert events.prune(tx, before=13.0, limit=2) == 1
    assert events.prune(tx, before=13.0, limit=2) == 0
    assert [each.seq for each in events.since(tx, 0)] == [4, 5]


def test_an_empty_log_has_the_last_number_zero(tx: Tx) -> None:
    assert events.last_seq(tx) == 0


def test_a_subjects_events_are_found_by_index(tx: Tx) -> None:
    facts = {"subjects": '["job-1"]', "seq": 0, "types": None, "limit": 10}

    plan = " ".join(row[3] for row in tx.execute(f"EXPLAIN QUERY PLAN {events.SINCE_OF_SUBJECTS}", facts))

    assert "event_subject (subject=? AND seq>?)" in plan
