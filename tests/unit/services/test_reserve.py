"""Space that is set aside for ending things, on a real small disk that is really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.errors import DiskFull
from agentlab.services.reserve import RESERVE_BYTES, Reserve
from agentlab.store import meta
from agentlab.store.database import Database, Tx

pytestmark = [pytest.mark.anyio, pytest.mark.root]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: a file system of its own")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "fill").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def big(tx: Tx) -> None:
    meta.put(tx, "big", "x" * (4 << 20))


async def test_what_ends_things_is_written_on_a_full_disk_from_the_reserve(small_disk: Path) -> None:
    database, reserve = Database.open(small_disk / "agentlab.db"), Reserve(small_disk / "reserve")
    assert reserve.keep()
    fill(small_disk)
    with pytest.raises(DiskFull):
        await database.write(big)

    await reserve.write(database, big)

    assert len(database.read(lambda tx: meta.get(tx, "big")) or "") == 4 << 20
    assert not (small_disk / "reserve").exists()
    await database.close()


async def test_the_reserve_is_set_aside_again_once_there_is_space(small_disk: Path) -> None:
    reserve = Reserve(small_disk / "reserve")
    fill(small_disk)
    assert not reserve.keep()

    (small_disk / "fill").unlink()

    assert reserve.keep()
    assert (small_disk / "reserve").stat().st_size == RESERVE_BYTES
    assert reserve.give_up()
    assert not reserve.give_up()
