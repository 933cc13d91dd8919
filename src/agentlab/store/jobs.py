"""Jobs: the queue and the record of what became of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from agentlab import errors
from agentlab.base.clock import milliseconds
from agentlab.base.text import did_you_mean
from agentlab.model.event import JobStateChanged
from agentlab.model.job import Job
from agentlab.model.machine import JOB_NEXT, JobState
from agentlab.store import events, job_row, rows
from agentlab.store.connection import Tx
from agentlab.store.job_row import COLUMNS

INSERT = f"""
INSERT INTO job ({COLUMNS})
VALUES (:id, :owner, :state, :profile, :agent, :repo_url, :repo_bundle, :repo_ref, :repo_origin, :env_names,
  :artifact_globs, :timeout_ms, :ttl_ms, :keepalive, :queued_ms, :sandbox, :phase, :started_ms, :running_ms,
  :collecting_ms, :ended_ms, :stop_reason, :stop_ms, :result, :failure, :output_bytes, :rescues, :backend)"""
INSERT_INPUT = "INSERT INTO job_input (job, task, sealed_env) VALUES (?, ?, ?)"


def insert(tx: Tx, job: Job, sealed_env: bytes) -> None:
    """Add a row.  `sealed_env` is the environment's values, encrypted by the caller."""
    tx.execute(INSERT, job_row.values(job))
    tx.execute(INSERT_INPUT, (job.id, job.task, sealed_env))


_SELECT = f"SELECT {COLUMNS}, task FROM job JOIN job_input ON job_input.job = job.id"
# Ten thousand jobs may wait, each with a task of a mebibyte: lists carry the beginning only.
TASK_LISTED_MAX = 4096
_SELECT_MANY = f"""
SELECT {COLUMNS}, substr(task, 1, {TASK_LISTED_MAX}) || CASE WHEN length(task) > {TASK_LISTED_MAX} THEN '…' ELSE '' END
  FROM job JOIN job_input ON job_input.job = job.id"""
GET = f"{_SELECT} WHERE id = ?"


def get(tx: Tx, id: str) -> Job | None:
    """The job with exactly this id, or None."""
    row = tx.execute(GET, (id,)).fetchone()
    return None if row is None else job_row.job(row)


_MINE = "(:owner IS NULL OR owner = :owner)"
FIND_PREFIX = f"{_SELECT} WHERE id >= :low AND id < :high AND {_MINE} ORDER BY id LIMIT :limit"
HINTS = f"SELECT id FROM job WHERE {_MINE} ORDER BY queued_ms DESC, id DESC LIMIT :limit"


def find(tx: Tx, text: str, owner: str | None = None) -> Job:
    """The job that a person means: by id or unique id prefix, `job-` may be left out.

    With `owner`, others' jobs do not exist.  Raises NotFound or Ambiguous.
    """
    letters = text.removeprefix("job-")
    found: list[tuple[Any, ...]] = []
    if letters.isalnum():
        low = f"job-{letters}"
        facts = {"low": low, "high": low + rows.AFTER_ALL_PREFIXED, "owner": owner, "limit": rows.FOUND_SHOWN_MAX}
        found = tx.execute(FIND_PREFIX, facts).fetchall()
    if not found:
        known = [id for (id,) in tx.execute(HINTS, {"owner": owner, "limit": rows.HINT_NAMES_MAX})]
        raise errors.NotFound(noun="job", name=text, hint=did_you_mean(text, known))
    if len(found) > 1 and found[0][0] != low:
        raise errors.Ambiguous(name=text, found=", ".join(row[0] for row in found))
    return job_row.job(found[0])


PAGE = f"""
{_SELECT_MANY}
 WHERE (queued_ms, id) < (:after_ms, :after_id) AND {_MINE}
   AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
 ORDER BY queued_ms DESC, id DESC LIMIT :limit"""


def page(
    tx: Tx,
    *,
    owner: str | None = None,
    states: Iterable[JobState] | None = None,
    after: str | None = None,
    limit: int = 100,
) -> tuple[list[Job], str | None]:
    """Jobs, newest first, and the cursor for the rest, or None at the end.  Raises Invalid for a bad cursor.

    Tasks are cut to TASK_LISTED_MAX characters; `get` has all of them.
    """
    assert 1 <= limit <= rows.PAGE_ROWS_MAX
    after_ms, after_id = rows.BEFORE_ALL if after is None else rows.cursor_place(after)
    facts: dict[str, Any] = {
        "owner": owner,
        "states": None if states is None else rows.texts_json(states),
        "after_ms": after_ms,
        "after_id": after_id,
        "limit": limit + 1,
    }
    found = [job_row.job(row) for row in tx.execute(PAGE, facts)]
    if len(found) <= limit:
        return found, None
    last = found[limit - 1]
    return found[:limit], rows.cursor_text(milliseconds(last.queued_at), last.id)


ACTIVE = f"{_SELECT_MANY} WHERE state IN ('queued', 'starting', 'running', 'collecting') ORDER BY queued_ms, id"


def active(tx: Tx) -> list[Job]:
    """Every job that has not ended, oldest first; tasks are cut as in `page`."""
    return [job_row.job(row) for row in tx.execute(ACTIVE)]


def transition(tx: Tx, id: str, to: JobState, now: float, *, reason: str = "", **changes: Any) -> Job:
    """Move a job to state `to`, set the fields in `changes`, and record JobStateChanged; returns the new row.

    With the state it already has, only `changes` are written.  Raises WrongState where JOB_NEXT does not lead there,
    NotFound.
    """
    before = _present(tx, id)
    if before.state != to and to not in JOB_NEXT[before.state]:
        needed = " or ".join(state for state, following in JOB_NEXT.items() if to in following)
        raise errors.WrongState(noun="job", name=id, state=before.state.value, needed=needed or "a new one")
    after = _changed(tx, before, {**changes, "state": to})
    if before.state != to:
        _record(tx, id, before.state, to, now, reason)
    return after


def update(tx: Tx, id: str, **changes: Any) -> Job:
    """Set fields other than the state; returns the new row.  Raises NotFound."""
    assert "state" not in changes, "the state changes by transition() alone"
    return _changed(tx, _present(tx, id), changes)


CLAIM_NEXT = """
UPDATE job SET state = 'starting', started_ms = :now_ms
 WHERE id = (SELECT id FROM job WHERE state = 'queued' ORDER BY queued_ms, id LIMIT 1)
   AND (SELECT count(*) FROM job WHERE state IN ('starting', 'running', 'collecting')) < :running_max
RETURNING id"""


def claim_next(tx: Tx, now: float, running_max: int) -> Job | None:
    """Take the oldest queued job out of the queue: it is STARTING now, started at `now`.

    None while the queue is empty or `running_max` jobs are starting, running or collecting.
    """
    id: str | None = tx.execute(CLAIM_NEXT, {"now_ms": milliseconds(now), "running_max": running_max}).get
    if id is None:
        return None
    _record(tx, id, JobState.QUEUED, JobState.STARTING, now, "")
    return get(tx, id)


SEALED_ENV = "SELECT sealed_env FROM job_input WHERE job = ?"


def sealed_env(tx: Tx, id: str) -> bytes | None:
    """The sealed environment, or None once it was forgotten."""
    sealed: bytes | None = tx.execute(SEALED_ENV, (id,)).get
    return sealed


FORGET_ENV = "UPDATE job_input SET sealed_env = NULL WHERE job = ?"


def forget_env(tx: Tx, id: str) -> None:
    """Drop the sealed environment, once no guest can need it any more."""
    tx.execute(FORGET_ENV, (id,))


COUNT = "SELECT count(*) FROM job WHERE state = ?"


def count(tx: Tx, state: JobState) -> int:
    """How many jobs are in this state."""
    found: int = tx.execute(COUNT, (state.value,)).get
    return found


QUEUE_POSITION = """
SELECT count(*) FROM job AS own JOIN job AS other ON other.state = 'queued'
 WHERE own.id = ? AND own.state = 'queued' AND (other.queued_ms, other.id) <= (own.queued_ms, own.id)"""


def queue_position(tx: Tx, id: str) -> int:
    """1 for the job that is next, 2 for the one after it; 0 for a job that does not wait in the queue."""
    position: int = tx.execute(QUEUE_POSITION, (id,)).get
    return position


def _present(tx: Tx, id: str) -> Job:
    found = get(tx, id)
    if found is None:
        raise errors.NotFound(noun="job", name=id, hint="")
    return found


def _record(tx: Tx, id: str, before: JobState, after: JobState, now: float, reason: str) -> None:
    events.append(tx, JobStateChanged(subject=id, before=before.value, after=after.value, reason=reason), now)


UPDATE = """
UPDATE job SET owner = :owner, state = :state, profile = :profile, agent = :agent, repo_url = :repo_url,
  repo_bundle = :repo_bundle, repo_ref = :repo_ref, repo_origin = :repo_origin, env_names = :env_names,
  artifact_globs = :artifact_globs, timeout_ms = :timeout_ms, ttl_ms = :ttl_ms, keepalive = :keepalive,
  queued_ms = :queued_ms, sandbox = :sandbox, phase = :phase, started_ms = :started_ms, running_ms = :running_ms,
  collecting_ms = :collecting_ms, ended_ms = :ended_ms, stop_reason = :stop_reason, stop_ms = :stop_ms,
  result = :result, failure = :failure, output_bytes = :output_bytes, rescues = :rescues, backend = :backend
 WHERE id = :id"""


def _changed(tx: Tx, before: Job, changes: dict[str, Any]) -> Job:
    after = replace(before, **changes)
    assert (after.id, after.task) == (before.id, before.task), "id and task never change"
    if after == before:
        return before
    tx.execute(UPDATE, job_row.values(after))
    assert tx.changes() == 1
    return after
