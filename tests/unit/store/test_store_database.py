"""The database: durable, grouped, isolated writes; consistent reads; listeners."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import stat
import threading
from pathlib import Path

import apsw
import pytest

from agentlab import errors
from agentlab.model.event import DaemonStarted, DaemonStopped, Recorded
from agentlab.store import events, meta
from agentlab.store.connection import Tx
from agentlab.store.database import Database

pytestmark = pytest.mark.anyio


def started(number: int) -> DaemonStarted:
    return DaemonStarted(subject="daemon", version=str(number))


async def test_a_read_sees_a_write_that_has_returned(database: Database) -> None:
    await database.write(lambda tx: meta.put(tx, "key", "value"))

    assert database.read(lambda tx: meta.get(tx, "key")) == "value"


async def test_the_file_and_its_companions_are_private(database: Database, path: Path) -> None:
    await database.write(lambda tx: meta.put(tx, "key", "value"))

    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"agentlab.db": 0o600, "agentlab.db-wal": 0o600, "agentlab.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_the_writer_syncs_every_commit_and_checks_foreign_keys(database: Database) -> None:
    def settings(tx: Tx) -> tuple[object, ...]:
        return tuple(tx.pragma(name) for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema"))

    assert await database.write(settings) == ("wal", 2, 1, 0)


async def test_every_table_is_strict(database: Database) -> None:
    tables = database.read(lambda tx: tx.execute("PRAGMA table_list").fetchall())

    loose = [row[1] for row in tables if row[2] == "table" and not row[1].startswith("sqlite_") and not row[5]]
    assert loose == []


async def test_a_write_that_raises_is_undone_alone(database: Database) -> None:
    def failing(tx: Tx) -> None:
        meta.put(tx, "bad", "half done")
        events.append(tx, started(0), 1.0)
        raise KeyError("mine")

    results = await asyncio.gather(
        database.write(lambda tx: meta.put(tx, "before", "x")),
        database.write(failing),
        database.write(lambda tx: meta.put(tx, "after", "x")),
        return_exceptions=True,
    )

    assert [type(each) for each in results] == [type(None), KeyError, type(None)]
    assert database.read(lambda tx: [meta.get(tx, key) for key in ("before", "bad", "after")]) == ["x", None, "x"]
    assert database.read(events.last_seq) == 0


async def test_a_failing_statement_inside_a_write_is_undone_alone(database: Database) -> None:
    def failing(tx: Tx) -> None:
        meta.put(tx, "bad", "half done")
        tx.execute("INSERT INTO event (at_ms, type, subject, data) VALUES ('x', 'y', 'z', '{}')")

    results = await asyncio.gather(
        database.write(failing), database.write(lambda tx: meta.put(tx, "good", "x")), return_exceptions=True
    )

    assert isinstance(results[0], apsw.ConstraintError)
    assert database.read(lambda tx: (meta.get(tx, "bad"), meta.get(tx, "good"))) == (None, "x")


async def test_a_write_that_raises_stop_iteration_does_not_strand_its_group(database: Database) -> None:
    results = await asyncio.gather(
        database.write(lambda tx: next(iter(()))),
        database.write(lambda tx: meta.put(tx, "good", "x")),
        return_exceptions=True,
    )

    assert isinstance(results[0], RuntimeError)
    assert results[1] is None


async def test_a_write_that_commits_by_itself_fails_and_the_store_goes_on(database: Database) -> None:
    with pytest.raises(Exception, match=r"no such savepoint"):
        await database.write(lambda tx: tx.execute("COMMIT").fetchall())

    await database.write(lambda tx: meta.put(tx, "key", "value"))
    assert database.read(lambda tx: meta.get(tx, "key")) == "value"


async def test_concurrent_writes_share_a_transaction(database: Database) -> None:
    gate = threading.Event()
    first = asyncio.create_task(database.write(lambda tx: gate.wait(10)))
    await asyncio.sleep(0.05)  # the first is under way and holds the writer
    waiting = [asyncio.create_task(database.write(lambda tx, n=n: meta.put(tx, f"k{n}", "x"))) for n in range(100)]
    await asyncio.sleep(0)
    other = apsw.Connection(str(database.path))
    version = other.pragma("data_version")

    gate.set()
    await asyncio.gather(first, *waiting)

    assert database.read(lambda tx: tx.execute("SELECT count(*) FROM meta").get) == 100
    assert other.pragma("data_version") - version == 1
    other.close()


async def test_writes_are_carried_out_in_the_order_of_their_calls(database: Database) -> None:
    seen: list[int] = []
    soon = [5, 6, 7]
    tasks = [asyncio.create_task(database.write(lambda tx, n=n: seen.append(n))) for n in range(5)]
    await asyncio.sleep(0)
    for number in soon:
        database.write_soon(lambda tx, n=number: seen.append(n))

    await database.flush()

    assert seen == [0, 1, 2, 3, 4, 5, 6, 7]
    assert all(task.done() for task in tasks)


async def test_the_failure_of_a_write_that_nobody_awaits_is_logged(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(tx: Tx) -> None:
        raise KeyError("nobody waits")

    database.write_soon(failing)
    await database.flush()

    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "nobody waits" in str(record.exc_info[1])


async def test_a_cancelled_caller_does_not_undo_its_write(database: Database) -> None:
    gate = threading.Event()
    task = asyncio.create_task(database.write(lambda tx: (gate.wait(10), meta.put(tx, "key", "value"))))
    await asyncio.sleep(0.05)

    task.cancel()
    gate.set()
    await database.flush()

    assert task.cancelled()
    assert database.read(lambda tx: meta.get(tx, "key")) == "value"


async def test_listeners_hear_of_each_event_once_in_order_before_its_writer_goes_on(database: Database) -> None:
    heard: list[int] = []
    database.add_listener(lambda recorded: heard.extend(each.seq for each in recorded))

    async def append(number: int) -> None:
        seq = await database.write(lambda tx: events.append(tx, started(number), 1.0))
        assert seq in heard

    await asyncio.gather(*(append(number) for number in range(300)))

    assert heard == list(range(1, 301))


async def test_listeners_do_not_hear_of_events_that_were_undone(database: Database) -> None:
    heard: list[Recorded] = []
    database.add_listener(heard.extend)

    def failing(tx: Tx) -> None:
        events.append(tx, started(0), 1.0)
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(failing)
    await database.write(lambda tx: events.append(tx, DaemonStopped(subject="daemon"), 2.0))

    assert [(each.seq, each.type) for each in heard] == [(1, "daemon.stopped")]


async def test_a_listener_that_raises_strands_neither_writers_nor_other_listeners(database: Database) -> None:
    heard: list[Recorded] = []
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context["exception"]))

    def broken(recorded: object) -> None:
        raise KeyError("broken listener")

    database.add_listener(broken)
    database.add_listener(heard.extend)

    await database.write(lambda tx: events.append(tx, started(0), 1.0))

    assert len(heard) == 1
    assert len(problems) == 1


async def test_an_inline_listener_that_writes_keeps_the_order_for_the_others(path: Path) -> None:
    database = Database.open(path, writer="inline", durable=False)
    heard: list[int] = []

    def answering(recorded: list[Recorded]) -> None:
        if recorded[0].seq == 1:
            database.write_soon(lambda tx: events.append(tx, started(2), 1.0))

    database.add_listener(answering)
    database.add_listener(lambda recorded: heard.extend(each.seq for each in recorded))

    await database.write(lambda tx: events.append(tx, started(1), 1.0))

    assert heard == [1, 2]
    await database.close()


async def test_a_full_queue_makes_unawaited_writers_wait_and_drops_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.store.database.WRITES_QUEUED_MAX", 8)
    database = Database.open(path, durable=False)
    done: list[int] = []

    for number in range(200):
        database.write_soon(lambda tx, n=number: done.append(n))
        assert len(database._queue) <= 8
    await database.flush()

    assert done == list(range(200))
    await database.close()


async def test_a_full_queue_makes_awaited_writers_wait_and_drops_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.store.database.WRITES_QUEUED_MAX", 8)
    database = Database.open(path, durable=False)
    deepest = 0

    async def write(number: int) -> int:
        nonlocal deepest
        result = await database.write(lambda tx: number)
        deepest = max(deepest, len(database._queue))
        return result

    assert await asyncio.gather(*(write(number) for number in range(200))) == list(range(200))
    assert deepest <= 8
    await database.close()


async def test_closing_carries_out_what_is_queued(path: Path) -> None:
    database = Database.open(path)
    for number in range(50):
        database.write_soon(lambda tx, n=number: meta.put(tx, f"k{n}", "x"))
    pending = asyncio.create_task(database.write(lambda tx: meta.put(tx, "last", "x")))
    await asyncio.sleep(0)

    await database.close()
    await database.close()

    await pending
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM meta").fetchone() == (51,)
    with pytest.raises(RuntimeError, match="closed"):
        await database.write(lambda tx: None)


async def test_another_reader_reads_while_the_writer_writes(database: Database, path: Path) -> None:
    other = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    seen: list[int] = []

    def look(tx: Tx) -> None:
        events.append(tx, started(0), 1.0)
        seen.append(other.execute("SELECT count(*) FROM event").get)

    for _ in range(5):
        await database.write(look)

    assert seen == [0, 1, 2, 3, 4]
    other.close()


async def test_reads_in_the_loop_go_on_while_a_write_is_under_way(database: Database) -> None:
    gate = threading.Event()

    def slow(tx: Tx) -> None:
        meta.put(tx, "key", "new")
        gate.wait(10)

    task = asyncio.create_task(database.write(slow))
    await asyncio.sleep(0.05)
    during = database.read(lambda tx: meta.get(tx, "key"))
    gate.set()
    await task

    assert during is None
    assert database.read(lambda tx: meta.get(tx, "key")) == "new"


async def test_a_read_is_one_snapshot(database: Database, path: Path) -> None:
    def twice(tx: Tx) -> tuple[str | None, str | None]:
        before = meta.get(tx, "key")
        other = sqlite3.connect(path)
        other.execute("INSERT INTO meta VALUES ('key', 'new')")
        other.commit()
        other.close()
        return before, meta.get(tx, "key")

    assert database.read(twice) == (None, None)
    assert database.read(lambda tx: meta.get(tx, "key")) == "new"


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(Exception, match="read-only"):
        database.read(lambda tx: meta.put(tx, "key", "value"))


async def test_another_programs_lock_fails_the_write_with_its_cause_and_the_store_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlab.store.connection.BUSY_TIMEOUT_MS", 50)
    database = Database.open(path)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(errors.StoreUnreadable, match="another program"):
        await database.write(lambda tx: meta.put(tx, "key", "value"))
    assert database.read(lambda tx: meta.get(tx, "key")) is None

    other.execute("COMMIT")
    await database.write(lambda tx: meta.put(tx, "key", "value"))
    other.close()
    await database.close()


async def test_inline_writes_happen_at_once_without_a_thread(path: Path) -> None:
    database = Database.open(path, writer="inline")
    threads = threading.active_count()

    database.write_soon(lambda tx: meta.put(tx, "key", "value"))

    assert database.read(lambda tx: meta.get(tx, "key")) == "value"
    assert threading.active_count() == threads
    await database.close()


async def test_an_inline_write_that_raises_is_undone(path: Path) -> None:
    database = Database.open(path, writer="inline")

    def failing(tx: Tx) -> None:
        meta.put(tx, "key", "value")
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(failing)

    assert database.read(lambda tx: meta.get(tx, "key")) is None
    await database.close()


async def test_databases_in_memory_are_apart_unless_they_are_named() -> None:
    first, second = (Database.open(Path(":memory:"), writer="inline") for _ in range(2))
    named, same = (Database.open(Path(":memory:both"), writer="inline") for _ in range(2))

    await first.write(lambda tx: meta.put(tx, "key", "value"))
    await named.write(lambda tx: meta.put(tx, "key", "value"))

    assert [each.read(lambda tx: meta.get(tx, "key")) for each in (first, second, named, same)] == [
        "value",
        None,
        "value",
        "value",
    ]
    for each in (first, second, named, same):
        await each.close()
