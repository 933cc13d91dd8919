"""Snapshots of sandboxes: desire and achievement, one row each until its removal was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentlab import errors
from agentlab.base.clock import milliseconds
from agentlab.base.text import did_you_mean
from agentlab.model import event as facts
from agentlab.model.failure import Failure
from agentlab.model.ids import SandboxId, is_name
from agentlab.model.machine import SNAPSHOT_NEXT, SnapshotState
from agentlab.model.snapshot import SnapshotRecord
from agentlab.store import events, rows
from agentlab.store.connection import Tx

_COLUMNS = "sandbox, name, state, memory, transient, requested_ms, taken_ms, bytes_count, failure"

INSERT = f"INSERT INTO snapshot ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def insert(tx: Tx, record: SnapshotRecord) -> None:
    """Add a row.  Raises SnapshotExists while the sandbox has a snapshot of that name, in whatever state."""
    assert is_name(record.name), f"{record.name!r} is not a name"
    if (known := get(tx, record.sandbox, record.name)) is not None:
        raise errors.SnapshotExists(name=record.name, sandbox=record.sandbox, state=known.state.value)
    tx.execute(INSERT, _values(record))


GET = f"SELECT {_COLUMNS} FROM snapshot WHERE sandbox = ? AND name = ?"


def get(tx: Tx, sandbox: str, name: str) -> SnapshotRecord | None:
    """The snapshot of exactly this name, or None."""
    row = tx.execute(GET, (sandbox, name)).fetchone()
    return None if row is None else _record(row)


def find(tx: Tx, sandbox: str, name: str) -> SnapshotRecord:
    """The same.  Raises SnapshotNotFound."""
    if (found := get(tx, sandbox, name)) is None:
        hint = did_you_mean(name, [each.name for each in of(tx, sandbox)])
        raise errors.SnapshotNotFound(name=name, sandbox=sandbox, hint=hint)
    return found


OF = f"SELECT {_COLUMNS} FROM snapshot WHERE sandbox = ? ORDER BY row"


def of(tx: Tx, sandbox: str) -> list[SnapshotRecord]:
    """All of a sandbox, in the order in which they were asked for."""
    return [_record(row) for row in tx.execute(OF, (sandbox,))]


UNFINISHED = "SELECT DISTINCT sandbox FROM snapshot WHERE state IN ('requested', 'removing') OR transient"


def unfinished(tx: Tx) -> set[SandboxId]:
    """Sandboxes for which `due` may have something."""
    return {SandboxId(id) for (id,) in tx.execute(UNFINISHED)}


_WAITS = "state IN ('requested', 'provisioning') AND wish <> 'destroyed'"
WAITING_FORKS = f"""
SELECT id FROM sandbox WHERE source_sandbox = ? AND source_snapshot = ? AND {_WAITS} ORDER BY created_ms, id"""


def waiting_forks(tx: Tx, sandbox: str, name: str) -> list[SandboxId]:
    """Forks that may not stand for themselves yet."""
    return [SandboxId(id) for (id,) in tx.execute(WAITING_FORKS, (sandbox, name))]


DUE = f"""
SELECT {_COLUMNS} FROM snapshot
 WHERE sandbox = ?
   AND (state IN ('requested', 'removing')
     OR transient AND NOT EXISTS (
       SELECT 1 FROM sandbox
        WHERE source_sandbox = snapshot.sandbox AND source_snapshot = snapshot.name AND sandbox.{_WAITS}))
 ORDER BY row LIMIT 1"""


def due(tx: Tx, sandbox: str) -> SnapshotRecord | None:
    """The first that has to be taken or removed; a transient one has to go once no fork waits for it."""
    row = tx.execute(DUE, (sandbox,)).fetchone()
    return None if row is None else _record(row)


UPDATE = """
UPDATE snapshot SET state = ?, transient = ?, taken_ms = ?, bytes_count = ?, failure = ? WHERE sandbox = ? AND name = ?
"""


def transition(tx: Tx, sandbox: str, name: str, to: SnapshotState, **changes: Any) -> SnapshotRecord:
    """Move a snapshot to state `to` and set the fields in `changes`; returns the new row.

    Raises SnapshotUnusable where SNAPSHOT_NEXT does not lead there, SnapshotNotFound.  The caller records the event.
    """
    before = find(tx, sandbox, name)
    if before.state != to and to not in SNAPSHOT_NEXT[before.state]:
        raise errors.SnapshotUnusable(name=name, sandbox=sandbox, what=to.value, cause=f"it is {before.state}")
    after = replace(before, state=to, **changes)
    failure, taken_ms = rows.failure_json(after.failure), rows.ms_or_none(after.taken_at)
    values = (after.state.value, int(after.transient), taken_ms, after.bytes_count, failure, sandbox, name)
    tx.execute(UPDATE, values)
    return after


def fail_requested(tx: Tx, sandbox: str, failure: Failure, now: float) -> None:
    """Those that were asked for will not be taken, for this reason."""
    for record in of(tx, sandbox):
        if record.state is SnapshotState.REQUESTED:
            transition(tx, sandbox, record.name, SnapshotState.FAILED, failure=failure)
            fact = facts.SnapshotFailed(
                subject=sandbox, name=record.name, step=failure.step, cause=failure.cause, remedy=failure.remedy
            )
            events.append(tx, fact, now)


REMOVE = "DELETE FROM snapshot WHERE sandbox = ? AND name = ?"


def remove(tx: Tx, sandbox: str, name: str, now: float, reason: str) -> None:
    """Its absence was seen: forget it, and record SnapshotRemoved.  Quiet if it is not known."""
    tx.execute(REMOVE, (sandbox, name))
    if tx.changes():
        events.append(tx, facts.SnapshotRemoved(subject=sandbox, name=name, reason=reason), now)


def remove_all(tx: Tx, sandbox: str, now: float, reason: str) -> None:
    """The same for all of a sandbox."""
    for record in of(tx, sandbox):
        remove(tx, sandbox, record.name, now, reason)


def _values(record: SnapshotRecord) -> tuple[Any, ...]:
    return (
        record.sandbox,
        record.name,
        record.state.value,
        int(record.memory),
        int(record.transient),
        milliseconds(record.requested_at),
        rows.ms_or_none(record.taken_at),
        record.bytes_count,
        rows.failure_json(record.failure),
    )


def _record(row: tuple[Any, ...]) -> SnapshotRecord:
    sandbox, name, state, memory, transient, requested_ms, taken_ms, bytes_count, failure = row
    return SnapshotRecord(
        sandbox=SandboxId(sandbox),
        name=name,
        state=SnapshotState(state),
        memory=bool(memory),
        transient=bool(transient),
        requested_at=rows.instant(requested_ms),
        taken_at=rows.instant_or_none(taken_ms),
        bytes_count=bytes_count,
        failure=rows.failure(failure),
    )
