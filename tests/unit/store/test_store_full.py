"""A full disk: refused with a reason, nothing acknowledged is lost, and everything goes on once there is space."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab import errors
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.store import meta
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database
from agentlab.store.outputs import Outputs

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems, which needs root"),
]

DISK_BYTES = 4 << 20
JOB = "job-22222222"


def mounted(point: Path, *arguments: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", *arguments, str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of a few megabytes."""
    if request.param == "tmpfs":
        yield from mounted(tmp_path / "small", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs")
        return
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(2 * DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image)], check=True)
    yield from mounted(tmp_path / "small", "-o", "loop", str(image))


def fill(folder: Path, *, leave_bytes: int) -> Path:
    """Take the free space but for about `leave_bytes`; remove the returned file to give it back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        while (free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize) > leave_bytes:
            try:
                file.write(b"\0" * min(1 << 16, max(4096, free - leave_bytes)))
            except OSError:
                break
    return filler


async def test_a_full_disk_fails_the_write_with_its_cause_and_the_store_goes_on_afterwards(small: Path) -> None:
    database = Database.open(small / "agentlab.db")
    filler = fill(small, leave_bytes=256 << 10)
    acknowledged: list[str] = []

    async def write_until_it_fails() -> None:
        for number in range(1000):
            await database.write(lambda tx, n=number: meta.put(tx, f"k{n}", "x" * 8192))
            acknowledged.append(f"k{number}")

    with pytest.raises(errors.DiskFull, match="free") as caught:
        await write_until_it_fails()

    assert str(small) in str(caught.value)
    assert acknowledged
    assert database.read(lambda tx: [meta.get(tx, key) is not None for key in acknowledged]) == [True] * len(
        acknowledged
    )

    filler.unlink()
    await database.write(lambda tx: meta.put(tx, "later", "x" * 8192))
    await database.close()
    reopened = Database.open(small / "agentlab.db")
    kept = reopened.read(lambda tx: tx.execute("SELECT count(*) FROM meta").get)
    assert kept == len(acknowledged) + 1
    assert reopened.read(lambda tx: tx.pragma("quick_check")) == "ok"
    await reopened.close()


async def test_a_write_too_large_for_the_disk_fails_and_the_next_small_one_succeeds(small: Path) -> None:
    database = Database.open(small / "agentlab.db")

    with pytest.raises(errors.DiskFull):
        await database.write(lambda tx: meta.put(tx, "large", "x" * (16 << 20)))

    await database.write(lambda tx: meta.put(tx, "small", "x"))
    assert database.read(lambda tx: (meta.get(tx, "large"), meta.get(tx, "small"))) == (None, "x")
    await database.close()


async def test_no_database_is_made_on_a_full_disk(small: Path) -> None:
    filler = fill(small, leave_bytes=0)

    with pytest.raises(errors.DiskFull):
        Database.open(small / "agentlab.db")

    filler.unlink()
    await Database.open(small / "agentlab.db").close()


async def test_a_read_only_file_system_is_named_as_the_cause(small: Path) -> None:
    await Database.open(small / "agentlab.db").close()
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", str(small)], check=True)

    with pytest.raises(errors.StoreUnreadable, match="Read-only file system"):
        Database.open(small / "agentlab.db")
    with pytest.raises(errors.StoreUnreadable, match="Read-only file system"):
        Database.open(small / "other" / "agentlab.db")


def test_an_upload_that_meets_a_full_disk_goes_on_once_there_is_space(small: Path) -> None:
    blobs = Blobs(small / "blobs", SystemClock(), SystemEntropy(), disk_reserve_bytes=0)
    filler = fill(small, leave_bytes=1 << 20)
    content = os.urandom(2 << 20)
    upload = blobs.begin(4 << 20)

    with pytest.raises(errors.DiskFull):
        upload.write(content)

    filler.unlink()
    upload.write(memoryview(content)[upload.offset :])
    digest = upload.finish(None)
    with blobs.open(digest) as file:
        assert file.read() == content


def test_output_that_meets_a_full_disk_is_taken_once_there_is_space(small: Path) -> None:
    outputs = Outputs(small / "outputs")
    filler = fill(small, leave_bytes=1 << 20)
    content = os.urandom(2 << 20)

    with pytest.raises(errors.DiskFull):
        outputs.append(JOB, 0, content)

    filler.unlink()
    assert outputs.append(JOB, 0, content) == len(content)
    assert outputs.read(JOB, 0, 4 << 20) == content
    outputs.close()
