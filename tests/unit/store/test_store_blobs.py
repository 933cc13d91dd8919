"""Blobs and the uploads that become them."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlab import errors
from agentlab.base.entropy import SystemEntropy
from agentlab.model.ids import Digest
from agentlab.store.blobs import Blobs

ABC = Digest(hashlib.sha256(b"abc").hexdigest())


class Hands:
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def blobs(tmp_path: Path, clock: Hands) -> Blobs:
    return opened(tmp_path / "blobs", clock)


def opened(root: Path, clock: Hands) -> Blobs:
    return Blobs(root, clock, SystemEntropy(), disk_reserve_bytes=0)


def store(blobs: Blobs, content: bytes) -> Digest:
    upload = blobs.begin(1 << 20)
    upload.write(content)
    return upload.finish(None)


def files(blobs: Blobs) -> list[str]:
    return sorted(str(file.relative_to(blobs._root)) for file in blobs._root.rglob("*") if file.is_file())


def test_a_blob_lies_under_its_digest_and_is_private(blobs: Blobs) -> None:
    upload = blobs.begin(100)
    upload.write(b"a")
    upload.write(memoryview(b"bc"))

    assert upload.offset == 3
    assert upload.finish(ABC) == ABC

    assert files(blobs) == [f"{ABC[:2]}/{ABC}"]
    assert blobs.has(ABC)
    assert blobs.size(ABC) == 3
    assert stat.S_IMODE(blobs.path(ABC).stat().st_mode) == 0o600
    with blobs.open(ABC) as file:
        assert file.read() == b"abc"


def test_an_empty_blob_is_a_blob(blobs: Blobs) -> None:
    digest = blobs.begin(0).finish(None)

    assert blobs.size(digest) == 0


def test_content_with_another_digest_is_removed(blobs: Blobs) -> None:
    upload = blobs.begin(100)
    upload.write(b"abd")

    with pytest.raises(ValueError, match=ABC):
        upload.finish(ABC)

    assert files(blobs) == []
    with pytest.raises(ValueError, match="ended"):
        upload.write(b"x")


def test_an_upload_beyond_its_limit_is_refused_before_anything_of_the_chunk_is_written(blobs: Blobs) -> None:
    upload = blobs.begin(4, what="The artifact", limit_name="file_bytes_max")
    upload.write(b"abc")

    with pytest.raises(errors.TooLarge, match="The artifact is larger than its limit: file_bytes_max = 4 B"):
        upload.write(b"de")

    assert upload.offset == 3
    assert upload.finish(ABC) == ABC


def test_an_abandoned_upload_leaves_nothing(blobs: Blobs) -> None:
    upload = blobs.begin(100)
    upload.write(b"abc")

    upload.abandon()
    upload.abandon()

    assert files(blobs) == []


def test_an_upload_goes_on_after_a_restart(blobs: Blobs, clock: Hands) -> None:
    first = blobs.begin(100)
    first.write(b"ab")

    upload = opened(blobs._root, clock).begin(100, first.token)

    assert (upload.token, upload.offset) == (first.token, 2)
    upload.write(b"c")
    assert upload.finish(ABC) == ABC


def test_an_unknown_token_begins_an_empty_upload_under_it(blobs: Blobs) -> None:
    upload = blobs.begin(100, "job-22222222-1")

    assert (upload.token, upload.offset) == ("job-22222222-1", 0)


@pytest.mark.parametrize("token", ["", "../x", "a/b", ".", "..", "-a", "A", "a\n", "a" * 101, "ä"])
def test_what_is_no_token_is_refused(blobs: Blobs, token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        blobs.begin(100, token)


def test_a_resumption_takes_an_upload_over_that_is_still_open(blobs: Blobs) -> None:
    first = blobs.begin(100)
    first.write(b"ab")

    second = blobs.begin(100, first.token)

    with pytest.raises(ValueError, match="took it over"):
        first.write(b"x")
    first.abandon()
    second.write(b"c")
    assert second.finish(ABC) == ABC


def test_a_take_over_from_another_thread_never_mixes_contents(blobs: Blobs) -> None:
    first = blobs.begin(1 << 30)
    chunk = os.urandom(1 << 16)
    stop = threading.Event()

    def write() -> None:
        try:
            while not stop.is_set():
                first.write(chunk)
        except ValueError:
            return

    writer = threading.Thread(target=write)
    writer.start()
    second = blobs.begin(1 << 30, first.token)
    stop.set()
    writer.join()

    assert second.offset % len(chunk) == 0
    digest = second.finish(None)
    assert digest == hashlib.sha256(chunk * (blobs.size(digest) // len(chunk))).hexdigest()


def test_a_link_in_the_place_of_a_partial_upload_is_not_followed(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"keep")
    (blobs._root / "partial" / "mine").symlink_to(tmp_path / "victim")

    with pytest.raises(OSError, match="symbolic links"):
        blobs.begin(100, "mine")

    assert (tmp_path / "victim").read_bytes() == b"keep"


def test_the_reserve_of_the_disk_is_kept_free(tmp_path: Path, clock: Hands) -> None:
    greedy = Blobs(tmp_path / "blobs", clock, SystemEntropy(), disk_reserve_bytes=1 << 60)

    with pytest.raises(errors.DiskFull, match=r"1048576\.0 TiB"):
        greedy.begin(100)


@pytest.mark.parametrize("digest", ["", "abc", "../../etc/passwd", "A" * 64, "a" * 63, "g" * 64])
def test_what_is_no_digest_has_no_path(blobs: Blobs, digest: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        blobs.path(digest)


def test_removing_is_quiet_when_nothing_is_there(blobs: Blobs) -> None:
    store(blobs, b"abc")

    blobs.remove(ABC)
    blobs.remove(ABC)

    assert not blobs.has(ABC)
    with pytest.raises(FileNotFoundError):
        blobs.open(ABC)


def test_a_sweep_takes_only_what_is_old_and_unused(blobs: Blobs, clock: Hands) -> None:
    used, unused = store(blobs, b"used"), store(blobs, b"unused")
    left = blobs.begin(100)
    left.write(b"left")
    left.close()
    still_open = blobs.begin(100)
    os.utime(blobs._root / "partial" / still_open.token, (0, 0))
    assert blobs.sweep({used}, older_than_s=60) == 0

    clock.time += 61
    fresh = store(blobs, b"fresh")

    assert blobs.sweep({used}, older_than_s=60) == 2
    assert [blobs.has(each) for each in (used, unused, fresh)] == [True, False, True]
    assert [file for file in files(blobs) if file.startswith("partial")] == [f"partial/{still_open.token}"]


def test_a_blob_that_arrives_again_outlives_the_next_sweep(blobs: Blobs, clock: Hands) -> None:
    store(blobs, b"abc")
    clock.time += 3600

    store(blobs, b"abc")

    assert blobs.sweep(set(), older_than_s=60) == 0
    assert blobs.has(ABC)


@settings(max_examples=50, deadline=None)
@given(
    content=st.binary(max_size=2000),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
    restarts=st.sets(st.integers(0, 6)),
)
def test_an_upload_in_any_pieces_with_any_restarts_is_the_content(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int], restarts: set[int]
) -> None:
    root = tmp_path_factory.mktemp("blobs")
    blobs = opened(root, Hands())
    upload = blobs.begin(len(content))
    for number, cut in enumerate([*sorted(cuts), len(content)]):
        upload.write(content[upload.offset : cut])
        if number in restarts:
            blobs = opened(root, Hands())
            upload = blobs.begin(len(content), upload.token)

    assert upload.finish(None) == hashlib.sha256(content).hexdigest()
