"""What is old enough to be forgotten."""

from __future__ import annotations

from agentlab.base.clock import milliseconds
from agentlab.model.ids import Digest, JobId
from agentlab.store.connection import Tx

ENDED_JOBS = """
SELECT id FROM job WHERE ended_ms < ? AND state IN ('succeeded', 'failed', 'timed_out', 'cancelled', 'lost')
   AND (sandbox IS NULL OR NOT EXISTS
        (SELECT 1 FROM sandbox WHERE sandbox.id = job.sandbox AND sandbox.state <> 'destroyed'))
 ORDER BY ended_ms LIMIT ?"""


def ended_jobs(tx: Tx, before: float, limit: int) -> list[JobId]:
    """Jobs that ended before this time and whose sandbox is gone."""
    return [JobId(row[0]) for row in tx.execute(ENDED_JOBS, (milliseconds(before), limit))]


REMOVE_JOB = "DELETE FROM job WHERE id = ?"
REMOVE_STEPS = "DELETE FROM step WHERE subject = ?"


def remove_job(tx: Tx, job: JobId) -> None:
    """Remove the row with all that hangs on it: task, progress, artifacts' rows, steps."""
    tx.execute(REMOVE_JOB, (job,))
    tx.execute(REMOVE_STEPS, (job,))


DESTROYED = "SELECT id FROM sandbox WHERE state = 'destroyed' AND ended_ms < ? ORDER BY ended_ms LIMIT ?"
REMOVE_SANDBOX = "DELETE FROM sandbox WHERE id = ? AND state = 'destroyed'"


def remove_tombstones(tx: Tx, before: float, limit: int) -> int:
    """Remove sandboxes whose absence was observed before this time; how many."""
    found = [row[0] for row in tx.execute(DESTROYED, (milliseconds(before), limit))]
    for sandbox in found:
        tx.execute(REMOVE_SANDBOX, (sandbox,))
        tx.execute(REMOVE_STEPS, (sandbox,))
    return len(found)


BUNDLES = "SELECT DISTINCT repo_bundle FROM job WHERE repo_bundle IS NOT NULL"


def bundles_in_use(tx: Tx) -> set[Digest]:
    """Uploaded repositories that a job names."""
    return {Digest(row[0]) for row in tx.execute(BUNDLES)}
