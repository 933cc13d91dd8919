"""Steps of operations, as they happened: what `show` prints and what a stuck one waits for."""

from __future__ import annotations

from agentlab.base.clock import milliseconds
from agentlab.model.sandbox import StepRecord
from agentlab.store import rows
from agentlab.store.connection import Tx

RUNNING, INTERRUPTED = "running", "interrupted"

BEGIN = "INSERT INTO step (subject, operation, step, started_ms, outcome, detail) VALUES (?, ?, ?, ?, 'running', ?)"


def begin(tx: Tx, subject: str, operation: str, step: str, now: float, detail: str = "") -> int:
    """Record that a step began; returns the row that `finish` wants.  `detail` says what it waits for."""
    tx.execute(BEGIN, (subject, operation, step, milliseconds(now), detail))
    return tx.last_insert_rowid()


FINISH = "UPDATE step SET outcome = ?, ended_ms = ?, detail = ? WHERE row = ? AND outcome = 'running'"


def finish(tx: Tx, row: int, outcome: str, now: float, detail: str = "") -> None:
    """Record how a running step ended; one that has ended stays as it is."""
    assert outcome != RUNNING
    tx.execute(FINISH, (outcome, milliseconds(now), detail, row))


FINISH_RUNNING = """
UPDATE step SET outcome = ?, ended_ms = ?, detail = ? WHERE subject = ? AND step = ? AND outcome = 'running'"""


def finish_running(tx: Tx, subject: str, step: str, outcome: str, now: float, detail: str = "") -> None:
    """The same for a subject's step of this name, if it is running."""
    assert outcome != RUNNING
    tx.execute(FINISH_RUNNING, (outcome, milliseconds(now), detail, subject, step))


OF = """
SELECT subject, operation, step, started_ms, ended_ms, outcome, detail FROM step WHERE subject = ? ORDER BY row"""


def of(tx: Tx, subject: str) -> list[StepRecord]:
    """All steps of a sandbox or job, in the order in which they began."""
    return [
        StepRecord(
            subject=about,
            operation=operation,
            step=step,
            started_at=rows.instant(started_ms),
            ended_at=rows.instant_or_none(ended_ms),
            outcome=outcome,
            detail=detail,
        )
        for about, operation, step, started_ms, ended_ms, outcome, detail in tx.execute(OF, (subject,))
    ]


ABANDON = "UPDATE step SET outcome = 'interrupted', ended_ms = ? WHERE outcome = 'running'"


def abandon_running(tx: Tx, now: float) -> int:
    """At the daemon's start: steps that an earlier daemon left running were interrupted; returns how many."""
    tx.execute(ABANDON, (milliseconds(now),))
    return tx.changes()
