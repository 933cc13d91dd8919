"""The event log as others see it: pages, live streams, and waiting for a change."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from agentlab.model.event import Event, Recorded
from agentlab.store import events as log
from agentlab.store.database import Database, Tx

T = TypeVar("T")
PAGE = 500


class Events:
    """Reads and follows the log.  Writing happens in the transaction of the change that an event tells of."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_subject: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._everything: set[asyncio.Event] = set()
        self._closed = False
        database.add_listener(self._committed)

    def since(
        self, seq: int, *, subject: str | None = None, types: Sequence[str] | None = None, limit: int = PAGE
    ) -> list[Recorded]:
        """Events after `seq`, oldest first."""
        return self._database.read(lambda tx: log.since(tx, seq, subject=subject, types=types, limit=limit))

    def last_seq(self) -> int:
        """The newest event's number; 0 if there is none."""
        return self._database.read(log.last_seq)

    async def subscribe(
        self, after_seq: int, *, subject: str | None = None, types: Sequence[str] | None = None
    ) -> AsyncIterator[Recorded]:
        """Every matching event after `after_seq`, then each as it is committed; ends when the daemon drains."""
        waiters = self._everything if subject is None else self._by_subject[subject]
        signal = asyncio.Event()
        waiters.add(signal)
        try:
            while True:
                signal.clear()
                page = self.since(after_seq, subject=subject, types=types)
                for event in page:
                    after_seq = event.seq
                    yield event
                if self._closed and not page:
                    return
                if len(page) < PAGE:
                    await signal.wait()
        finally:
            self._forget(waiters, signal, subject)

    async def wait_until(
        self, subject: str, look: Callable[[Tx], T], ready: Callable[[T], bool], timeout_s: float
    ) -> T:
        """Look until `ready`, again after each event about `subject`; the last look when `timeout_s` has passed."""
        waiters = self._by_subject[subject]
        signal = asyncio.Event()
        waiters.add(signal)
        try:
            async with asyncio.timeout(timeout_s):
                while not ready(found := self._database.read(look)) and not self._closed:
                    await signal.wait()
                    signal.clear()
                return found
        except TimeoutError:
            return self._database.read(look)
        finally:
            self._forget(waiters, signal, subject)

    async def append(self, event: Event, now: float) -> None:
        """Record a fact that has no state change of its own."""
        await self._database.write(lambda tx: log.append(tx, event, now))

    def poke(self, subject: str) -> None:
        """Let waits on `subject` look again, for changes that are not events."""
        for signal in self._by_subject.get(subject, ()):
            signal.set()

    def close(self) -> None:
        """Let every stream and every wait end."""
        self._closed = True
        for signal in [*self._everything, *(each for waiters in self._by_subject.values() for each in waiters)]:
            signal.set()

    def _committed(self, recorded: Sequence[Recorded]) -> None:
        for signal in self._everything:
            signal.set()
        for subject in {each.subject for each in recorded}:
            for signal in self._by_subject.get(subject, ()):
                signal.set()

    def _forget(self, waiters: set[asyncio.Event], signal: asyncio.Event, subject: str | None) -> None:
        waiters.discard(signal)
        if subject is not None and not waiters and self._by_subject.get(subject) is waiters:
            del self._by_subject[subject]
