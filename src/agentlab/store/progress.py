"""How far each job's guest link has come: what was acknowledged, so that a reconnection repeats nothing."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.store.connection import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the daemon has durably taken from a job's guest."""

    output_acked: int = 0  # bytes of output
    event_acked: int = 0  # the last event's number
    reported: bool = False  # the final report is recorded


GET = "SELECT output_acked, event_acked, reported FROM job_progress WHERE job = ?"


def get(tx: Tx, job: str) -> Progress:
    """The progress of a job; zeros before its guest's first message."""
    row = tx.execute(GET, (job,)).fetchone()
    if row is None:
        return Progress()
    output_acked, event_acked, reported = row
    return Progress(output_acked=output_acked, event_acked=event_acked, reported=bool(reported))


EVENT = """
INSERT INTO job_progress (job, event_acked) VALUES (?, ?)
    ON CONFLICT (job) DO UPDATE SET event_acked = max(event_acked, excluded.event_acked)"""


def event(tx: Tx, job: str, seq: int) -> None:
    """The guest's events up to `seq` are recorded; never goes back."""
    tx.execute(EVENT, (job, seq))


OUTPUT = """
INSERT INTO job_progress (job, output_acked) VALUES (?, ?)
    ON CONFLICT (job) DO UPDATE SET output_acked = max(output_acked, excluded.output_acked)"""


def output(tx: Tx, job: str, offset: int) -> None:
    """The output before `offset` is durable; never goes back."""
    tx.execute(OUTPUT, (job, offset))


REPORTED = "INSERT INTO job_progress (job, reported) VALUES (?, 1) ON CONFLICT (job) DO UPDATE SET reported = 1"


def reported(tx: Tx, job: str) -> None:
    """The guest's final report is recorded."""
    tx.execute(REPORTED, (job,))
