"""Snapshots in the store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.store.store_rows import NOW, sandbox

from agentlab import errors
from agentlab.model.failure import Failure
from agentlab.model.machine import SandboxState as S
from agentlab.model.machine import SnapshotState as K
from agentlab.model.sandbox import Sandbox, SnapshotOf
from agentlab.model.snapshot import SnapshotRecord
from agentlab.store import events, retention, sandboxes, snapshots
from agentlab.store.connection import Tx

ORIGIN = sandbox(1, state=S.READY)
FAILURE = Failure(code="backend/unavailable", step="snapshot", cause="no space", remedy="Free some.", at=NOW)


def record(name: str = "s", **changes: object) -> SnapshotRecord:
    plain = SnapshotRecord(sandbox=ORIGIN.id, name=name, state=K.REQUESTED, memory=False, requested_at=NOW)
    return replace(plain, **changes)  # type: ignore[arg-type]


def fork(number: int, **changes: object) -> Sandbox:
    return sandbox(number, source=SnapshotOf(mark=ORIGIN.mark, name="s"), **changes)


@pytest.fixture(autouse=True)
def origin(tx: Tx) -> None:
    sandboxes.insert(tx, ORIGIN)


def test_a_snapshot_comes_back_with_every_field(tx: Tx) -> None:
    full = record(
        state=K.FAILED, memory=True, transient=True, taken_at=NOW + 1, bytes_count=1 << 40, failure=FAILURE
    )  # fmt: skip

    snapshots.insert(tx, full)

    assert snapshots.get(tx, ORIGIN.id, "s") == full


def test_a_name_is_taken_within_a_sandbox_alone(tx: Tx) -> None:
    other = sandbox(2)
    sandboxes.insert(tx, other)
    snapshots.insert(tx, record())
    snapshots.insert(tx, record(sandbox=other.id))

    with pytest.raises(errors.SnapshotExists, match="requested"):
        snapshots.insert(tx, record())


def test_an_unknown_name_is_told_with_a_hint(tx: Tx) -> None:
    snapshots.insert(tx, record("before-lunch"))

    with pytest.raises(errors.SnapshotNotFound, match="before-lunch"):
        snapshots.find(tx, ORIGIN.id, "before-lunh")


def test_a_step_that_the_table_does_not_have_is_refused(tx: Tx) -> None:
    snapshots.insert(tx, record(state=K.FAILED))

    with pytest.raises(errors.SnapshotUnusable):
        snapshots.transition(tx, ORIGIN.id, "s", K.READY)


def test_what_is_due_comes_in_the_order_in_which_it_was_asked_for(tx: Tx) -> None:
    snapshots.insert(tx, record("b", state=K.READY))
    snapshots.insert(tx, record("c"))
    snapshots.insert(tx, record("a", state=K.REMOVING))

    first = snapshots.due(tx, ORIGIN.id)
    snapshots.transition(tx, ORIGIN.id, "c", K.READY)
    second = snapshots.due(tx, ORIGIN.id)
    snapshots.remove(tx, ORIGIN.id, "a", NOW, "asked for")

    assert first is not None
    assert second is not None
    assert (first.name, second.name, snapshots.due(tx, ORIGIN.id)) == ("c", "a", None)


@pytest.mark.parametrize("state", [S.READY, S.FAILED, S.DESTROYED])
def test_a_transient_snapshot_has_to_go_once_no_fork_waits_for_it(tx: Tx, state: S) -> None:
    snapshots.insert(tx, record(state=K.READY, transient=True))
    waiting = fork(2, state=S.PROVISIONING)
    sandboxes.insert(tx, waiting)
    sandboxes.insert(tx, fork(3, state=state))

    before = snapshots.due(tx, ORIGIN.id)
    forks = snapshots.waiting_forks(tx, ORIGIN.id, "s")
    sandboxes.transition(tx, waiting.id, S.READY, NOW)
    after = snapshots.due(tx, ORIGIN.id)

    assert (before, forks) == (None, [waiting.id])
    assert after is not None
    assert after.name == "s"


def test_what_was_asked_of_a_failed_sandbox_fails_with_its_cause(tx: Tx) -> None:
    snapshots.insert(tx, record("kept", state=K.READY))
    snapshots.insert(tx, record())

    snapshots.fail_requested(tx, ORIGIN.id, FAILURE, NOW)

    assert [(each.state, each.failure) for each in snapshots.of(tx, ORIGIN.id)] == [
        (K.READY, None),
        (K.FAILED, FAILURE),
    ]
    assert [each.type for each in events.since(tx, 0, subject=ORIGIN.id)] == ["snapshot.failed"]


def test_a_removal_is_told_once(tx: Tx) -> None:
    snapshots.insert(tx, record())

    snapshots.remove_all(tx, ORIGIN.id, NOW, "its sandbox was destroyed")
    snapshots.remove(tx, ORIGIN.id, "s", NOW, "asked for")

    told = events.since(tx, 0, subject=ORIGIN.id)
    assert [(each.type, each.data["reason"]) for each in told] == [("snapshot.removed", "its sandbox was destroyed")]


def test_the_rows_go_with_their_sandboxs_tombstone(tx: Tx) -> None:
    gone = sandbox(2, state=S.DESTROYED, ended_at=NOW)
    sandboxes.insert(tx, gone)
    snapshots.insert(tx, record(sandbox=gone.id))

    assert retention.remove_tombstones(tx, NOW + 1, 10) == 1
    assert snapshots.of(tx, gone.id) == []
