"""The database: one writer with group commit, one reader, and listeners who are told what was appended."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from agentlab.model.event import Recorded
from agentlab.store.connection import Tx as Tx
from agentlab.store.connection import connect, create_private, is_memory, translated
from agentlab.store.migrate import SHIPPED, migrate
from agentlab.store.writer import GroupCommit, Outcome, Write

log = logging.getLogger(__name__)

T = TypeVar("T")
Listener = Callable[[Sequence[Recorded]], None]

WRITES_QUEUED_MAX = 10_000  # callers beyond wait; nothing is dropped
GROUP_WRITES_MAX = 512  # in one transaction: bounds what one fsync delays

_memory_count = itertools.count(1)


@dataclass(slots=True, eq=False)
class _Queued:
    write: Write
    future: asyncio.Future[Any] | None  # None: nobody waits


class Database:
    """All state that must survive.  Every method is called from one event loop's thread; see each for waiting."""

    def __init__(self, path: Path, writing: Tx, reading: Tx, *, inline: bool) -> None:
        self.path = path
        self._writing, self._reading = writing, reading
        self._group = GroupCommit(writing, path)
        self._listeners: list[Listener] = []
        self._untold: deque[Sequence[Recorded]] = deque()
        self._telling = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_Queued] = deque()
        self._changed = threading.Condition()
        self._places = asyncio.Semaphore(WRITES_QUEUED_MAX)
        self._closing = False
        self._thread: threading.Thread | None = None
        if not inline:
            self._thread = threading.Thread(target=self._write_forever, name="store-writer", daemon=True)
            self._thread.start()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        writer: Literal["thread", "inline"] = "thread",
        durable: bool = True,
        migrations: Path = SHIPPED,
    ) -> Database:
        """The database at `path`, made if absent (mode 0600), its schema brought up to date.

        `inline` carries out each write at once on the caller, for a simulation on virtual time.  `durable=False`
        leaves syncing to the operating system, for tests.  The path `:memory:` has no file; `:memory:x` is shared by
        all that open it in this process and ends with the last.

        Raises SchemaTooNew, StoreUnreadable, DiskFull, PermissionMissing.
        """
        if path.name == ":memory:":
            path = path.with_name(f":memory:{next(_memory_count)}")
        if not is_memory(path):
            create_private(path)
            path = path.parent.resolve() / path.name  # a link may lead to the directory, but not in place of the file
        writing = connect(path, read_only=False, durable=durable)
        try:
            migrate(writing, path, migrations)
            reading = connect(path, read_only=True, durable=durable)
        except BaseException:
            writing.close()
            raise
        return cls(path, writing, reading, inline=writer == "inline")

    def read(self, fn: Callable[[Tx], T]) -> T:
        """`fn`'s result on one consistent snapshot, which contains every write whose `await write` has returned.

        Blocks the loop while `fn` runs: point look-ups and pages only.  `fn` must fetch all it wants; a cursor that
        it lets out is dead.  Raises what `fn` raises, and StoreUnreadable.
        """
        with translated(self.path):
            self._reading.execute("BEGIN")
            try:
                return fn(self._reading)
            finally:
                self._reading.execute("COMMIT")

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """`fn`'s result, once what it wrote is durable.

        `fn` runs on the writer's thread, together with other callers' in one transaction; if it raises, what it
        wrote is undone and the exception comes here.  It must not commit, await or touch the loop.  Waits while
        WRITES_QUEUED_MAX writes are queued.  Cancelling stops the waiting only: `fn` is still carried out.
        Raises DiskFull or StoreUnreadable if nothing could be committed; the store stays usable.
        """
        if self._thread is None:
            return self._write_inline(fn)
        await self._places.acquire()
        future: asyncio.Future[T] = self._own_loop().create_future()
        try:
            self._enqueue(_Queued(fn, future))
        except RuntimeError:
            self._places.release()
            raise
        return await future

    def write_soon(self, fn: Callable[[Tx], object]) -> None:
        """Queue `fn` like `write`, in the same order, without waiting; its failure is logged.

        Blocks the loop while WRITES_QUEUED_MAX writes are queued, because dropping would be worse.
        """
        if self._thread is None:
            try:
                self._write_inline(fn)
            except BaseException as error:  # as on the writer's thread: the failure is logged, nobody waits for it
                _log_unawaited(error)
            return
        self._own_loop()
        self._enqueue(_Queued(fn, None))

    async def flush(self) -> None:
        """Return once everything queued before this call is durable or has failed."""
        await self.write(lambda tx: None)

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` in the loop's thread after each commit that appended events, with these, in order.

        It is called before the writers of these events go on.  It must not raise or block.
        """
        self._listeners.append(listener)

    async def close(self) -> None:
        """Carry out what is queued, then close the file.  Later writes raise RuntimeError; closing twice is quiet."""
        if self._closing:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            await asyncio.sleep(0)  # the last group's outcomes are delivered
        self._reading.close()
        self._writing.close()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        assert self._loop is loop, "a Database belongs to one event loop"
        return loop

    def _enqueue(self, queued: _Queued) -> None:
        with self._changed:
            # Awaited writes have waited for a place already; the others have to wait here.
            while queued.future is None and len(self._queue) >= WRITES_QUEUED_MAX and not self._closing:
                self._changed.wait()
            if self._closing:
                raise RuntimeError("the database is closed")
            self._queue.append(queued)
            self._changed.notify_all()

    def _write_inline(self, fn: Callable[[Tx], T]) -> T:
        if self._closing:
            raise RuntimeError("the database is closed")
        (outcome,), appended = self._group.carry_out((fn,))
        self._tell(appended)
        if outcome.error is not None:
            raise outcome.error
        value: T = outcome.value
        return value

    def _write_forever(self) -> None:
        while group := self._next_group():
            outcomes, appended = self._group.carry_out([each.write for each in group])
            loop = self._loop
            assert loop is not None
            try:
                loop.call_soon_threadsafe(self._deliver, group, outcomes, appended)
            except RuntimeError:
                # The loop was closed without closing the database first.  What was committed stays committed.
                log.error("store committed after its loop had ended", extra={"writes": len(group)})

    def _next_group(self) -> list[_Queued]:
        """The next writes to carry out together; empty once closed and nothing is left."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            group = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_WRITES_MAX))]
            self._changed.notify_all()
            return group

    def _deliver(self, group: Sequence[_Queued], outcomes: Sequence[Outcome], appended: Sequence[Recorded]) -> None:
        try:
            self._tell(appended)
        finally:  # a listener that breaks its word must not leave the writers waiting
            for queued, outcome in zip(group, outcomes, strict=True):
                if queued.future is not None:
                    self._places.release()
                _resolve(queued.future, outcome)

    def _tell(self, appended: Sequence[Recorded]) -> None:
        if appended:
            self._untold.append(appended)
        if self._telling:
            return  # a listener has written, inline: everybody first hears of what was before
        self._telling = True
        try:
            while self._untold:
                events = self._untold.popleft()
                with ExitStack() as every:  # all are called, also after one that raised
                    for listener in reversed(self._listeners):
                        every.callback(listener, events)
        finally:
            self._telling = False


def _resolve(future: asyncio.Future[Any] | None, outcome: Outcome) -> None:
    if future is None or future.cancelled():
        if outcome.error is not None:
            _log_unawaited(outcome.error)
    elif outcome.error is not None:
        future.set_exception(outcome.error)
    else:
        future.set_result(outcome.value)


def _log_unawaited(error: BaseException) -> None:
    log.error("store write failed and nobody waits for it", exc_info=error)
