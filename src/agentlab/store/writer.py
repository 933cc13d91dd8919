"""The one place from which the database is written: writes are grouped, and each group is one durable transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from agentlab import errors
from agentlab.model.event import Recorded
from agentlab.store import events
from agentlab.store.connection import translate

log = logging.getLogger(__name__)

Write = Callable[[apsw.Connection], Any]


@dataclass(slots=True, eq=False)
class Outcome:
    """What became of one write: its value, or the exception that its caller shall get."""

    value: Any = None
    error: BaseException | None = None


class GroupCommit:
    """Carries out groups of writes on one connection.  Not thread-safe: one thread at a time owns it."""

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._last_seq = events.last_seq(connection)

    def carry_out(self, writes: Sequence[Write]) -> tuple[list[Outcome], list[Recorded]]:
        """Run all `writes` in one transaction and commit it durably.

        Returns the outcomes in order, and the events that the group appended, in order of their numbers.  A write
        that raises is undone alone.  If the transaction as a whole cannot be committed, every write fails with the
        same error and nothing of the group remains.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._one(write) for write in writes]
            appended = events.since(self._connection, self._last_seq, limit=events.LIMIT_NONE)
            self._connection.execute("COMMIT")
        except BaseException as error:  # not swallowed: every caller of the group gets it
            self._undo()
            cause = translate(self._path, error) if isinstance(error, apsw.Error) else error
            log.error("store could not commit", extra={"writes": len(writes), "cause": str(cause)})
            return [Outcome(error=cause) for _ in writes], []
        if appended:
            self._last_seq = appended[-1].seq
        return outcomes, appended

    def _one(self, write: Write) -> Outcome:
        connection = self._connection
        connection.execute("SAVEPOINT one")
        try:
            outcome = Outcome(value=write(connection))
        except BaseException as error:  # not swallowed: it is the caller's, who waits for it on another thread
            # A future refuses StopIteration, which would end the wait of the whole group.
            outcome = Outcome(error=RuntimeError("a write ran out") if isinstance(error, StopIteration) else error)
            if not connection.in_transaction:
                # SQLite gave up the whole transaction (no space, I/O error): the group's other writes are gone too.
                raise self._fatal(error) from error
            connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
        return outcome

    def _fatal(self, error: BaseException) -> Exception:
        if isinstance(error, apsw.Error):
            error = translate(self._path, error)
        if isinstance(error, errors.AgentLabError):
            return error
        return errors.StoreUnreadable(path=self._path, cause=f"a transaction was lost: {error}")

    def _undo(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
