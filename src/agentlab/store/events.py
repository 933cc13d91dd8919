"""The event log: append-only, numbered without reuse, the same for the API and for ourselves."""

from __future__ import annotations

import json
from collections.abc import Sequence

from agentlab.base.clock import milliseconds
from agentlab.model.event import EVENTS, Event, Recorded
from agentlab.store.connection import Tx

LIMIT_NONE = -1  # SQLite's word for no limit

APPEND = "INSERT INTO event (at_ms, type, subject, data) VALUES (?, ?, ?, ?)"


def append(tx: Tx, event: Event, now: float) -> int:
    """Record a fact; returns its number, which is greater than every earlier one.

    Call it in the transaction of the change that it tells of.
    """
    assert event.type in EVENTS, f"{type(event).__name__} is not an event"
    # ASCII: text from strangers may hold lone surrogates, which SQLite's UTF-8 cannot.
    data = json.dumps(event.data(), separators=(",", ":"))
    tx.execute(APPEND, (milliseconds(now), event.type, event.subject, data))
    return tx.last_insert_rowid()


_ROW = "SELECT seq, at_ms, type, subject, data FROM event"
_TYPES = "(:types IS NULL OR type IN (SELECT value FROM json_each(:types)))"
SINCE = f"{_ROW} WHERE seq > :seq ORDER BY seq LIMIT :limit"
SINCE_OF_TYPES = f"{_ROW} WHERE seq > :seq AND {_TYPES} ORDER BY seq LIMIT :limit"
SINCE_OF_SUBJECTS = f"""
{_ROW} WHERE subject IN (SELECT value FROM json_each(:subjects)) AND seq > :seq AND {_TYPES}
 ORDER BY seq LIMIT :limit"""


def since(
    tx: Tx,
    seq: int,
    *,
    subject: str | None = None,
    subjects: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    limit: int = 500,
) -> list[Recorded]:
    """Events after number `seq`, oldest first, at most `limit`.

    `subject` and `subjects` together mean any of them; an empty `subjects` or `types` matches nothing.
    """
    if subject is not None:
        subjects = (*(subjects or ()), subject)
    facts: dict[str, int | str | None] = {"seq": seq, "limit": limit}
    if subjects is None and types is None:
        rows = tx.execute(SINCE, facts)
    else:
        facts["types"] = None if types is None else json.dumps(list(types))
        if subjects is not None:
            facts["subjects"] = json.dumps(list(subjects))
        rows = tx.execute(SINCE_OF_TYPES if subjects is None else SINCE_OF_SUBJECTS, facts)
    return [
        Recorded(seq=number, at_ms=at_ms, type=kind, subject=about, data=json.loads(data))
        for number, at_ms, kind, about, data in rows
    ]


LAST_SEQ = "SELECT seq FROM sqlite_sequence WHERE name = 'event'"


def last_seq(tx: Tx) -> int:
    """The number of the newest event, pruned or not; 0 before the first."""
    number: int | None = tx.execute(LAST_SEQ).get
    return number or 0


# Only the oldest rows are looked at: times are not indexed, but rise with the numbers, jumps of the clock aside.
PRUNE = "DELETE FROM event WHERE seq IN (SELECT seq FROM event ORDER BY seq LIMIT :limit) AND at_ms < :before_ms"


def prune(tx: Tx, before: float, limit: int) -> int:
    """Remove events older than `before` among the `limit` oldest; returns how many.  Repeat until 0."""
    tx.execute(PRUNE, {"before_ms": milliseconds(before), "limit": limit})
    return tx.changes()
