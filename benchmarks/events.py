"""Events appended durably (`synchronous=FULL`) by many concurrent writers, over a bare group commit loop.

Each writer waits until its event is durable before it appends the next, as requests and guest links do.  The floor is
SQLite itself: the same rows in one transaction for each round of the writers, without threads, futures or listeners.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

import apsw
from harness import interleave, percentile, report

from agentlab.base.clock import milliseconds
from agentlab.model.event import JobPhase
from agentlab.store import events
from agentlab.store.connection import connect
from agentlab.store.database import Database, Tx

WRITERS = 64
EVENTS = 12_800
RUNS = 5

latencies_ms: list[float] = []


def event(number: int) -> JobPhase:
    return JobPhase(subject=f"job-{number % 100:08d}", phase="run", detail="a step of the agent was seen")


async def append(path: Path) -> float:
    database = Database.open(path)
    heard = 0

    def listen(recorded: object) -> None:
        nonlocal heard
        heard += len(recorded)  # type: ignore[arg-type]

    async def writer(first: int) -> None:
        for number in range(first, EVENTS, WRITERS):
            started = time.perf_counter()

            def write(tx: Tx, number: int = number) -> int:
                return events.append(tx, event(number), time.time())

            await database.write(write)
            latencies_ms.append((time.perf_counter() - started) * 1000)

    database.add_listener(listen)
    began = time.perf_counter()
    await asyncio.gather(*(writer(first) for first in range(WRITERS)))
    took = time.perf_counter() - began
    assert heard == EVENTS
    await database.close()
    return took


def ours() -> float:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        return EVENTS / asyncio.run(append(Path(folder) / "agentlab.db"))


def floor() -> float:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder) / "agentlab.db"
        asyncio.run(Database.open(path).close())
        connection = connect(path, read_only=False)
        began = time.perf_counter()
        for first in range(0, EVENTS, WRITERS):
            group(connection, first)
        took = time.perf_counter() - began
        connection.close()
        return EVENTS / took


def group(connection: apsw.Connection, first: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for number in range(first, first + WRITERS):
        fact = event(number)
        row = (milliseconds(time.time()), fact.type, fact.subject, json.dumps(fact.data()))
        connection.execute(events.APPEND, row)
    connection.execute("COMMIT")


def main() -> None:
    per_s, floor_per_s = interleave(ours, floor, RUNS)
    report(
        what="events appended durably",
        n=EVENTS,
        writers=WRITERS,
        p50_ms=percentile(latencies_ms, 50),
        p99_ms=percentile(latencies_ms, 99),
        per_s=per_s,
        floor_per_s=floor_per_s,
        ratio=floor_per_s / per_s,
    )


if __name__ == "__main__":
    main()
