"""A daemon killed in the middle of its writes: whatever was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentlab.store import events
from agentlab.store.database import Database

pytestmark = pytest.mark.anyio

WRITER = """
import asyncio, os, sys
from pathlib import Path
from agentlab.model.event import JobPhase
from agentlab.store import events, meta
from agentlab.store.database import Database

async def main():
    database = Database.open(Path(sys.argv[1]))
    numbers = iter(range(10**9))

    async def forever(worker):
        for number in numbers:
            def write(tx):
                meta.put(tx, f"{worker}:{number}", "before the event")
                events.append(tx, JobPhase(subject=f"{worker}:{number}", phase="x" * 200), 1.0)
            await database.write(write)
            os.write(1, f"{worker}:{number}\\n".encode())

    await asyncio.gather(*(forever(worker) for worker in range(32)))

asyncio.run(main())
"""

HALVES = "SELECT (SELECT count(*) FROM meta), (SELECT count(DISTINCT subject) FROM event)"


def lived(path: Path, seconds: float) -> set[str]:
    """What a writer acknowledged before it was killed, `seconds` after its first acknowledgement."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        first = killed.stdout.readline().decode().strip()
        time.sleep(seconds)
        killed.kill()
        return {first, *killed.stdout.read().decode().split("\n")[:-1]}  # the last line may be cut


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.4])
async def test_what_was_acknowledged_before_a_kill_is_there_after_reopening(path: Path, seconds: float) -> None:
    acknowledged: set[str] = set()
    for _ in range(2):  # the second life opens what the first one's death left
        acknowledged |= await asyncio.to_thread(lived, path, seconds)

        database = Database.open(path)
        found = {each.subject for each in database.read(lambda tx: events.since(tx, 0, limit=events.LIMIT_NONE))}
        halves = database.read(lambda tx: tx.execute(HALVES).get)
        await database.close()

        assert acknowledged <= found
        assert halves == (len(found), len(found))


async def test_the_file_alone_without_its_journal_is_an_older_state(path: Path) -> None:
    database = Database.open(path)
    await database.write(lambda tx: tx.execute("INSERT INTO meta VALUES ('key', ?)", (json.dumps("x" * 9000),)).get)
    alone = path.with_name("copy.db")
    alone.write_bytes(path.read_bytes())
    await database.close()

    copied = Database.open(alone)

    assert copied.read(events.last_seq) == 0
    await copied.close()
