"""Output files: appended by offset, nothing lost and nothing twice."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlab.store.outputs import CUT_NOTE, HANDLES_MAX, Outputs

JOB = "job-22222222"


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path / "outputs")


def test_output_is_appended_and_read_back(outputs: Outputs, tmp_path: Path) -> None:
    assert outputs.append(JOB, 0, b"hello ") == 6
    assert outputs.append(JOB, 6, b"world") == 11

    assert outputs.read(JOB, 0, 100) == b"hello world"
    assert outputs.read(JOB, 6, 3) == b"wor"
    assert outputs.read(JOB, 11, 3) == b""
    assert outputs.size(JOB) == 11
    assert stat.S_IMODE((tmp_path / "outputs" / f"{JOB}.log").stat().st_mode) == 0o600


def test_a_repetition_is_skipped(outputs: Outputs) -> None:
    outputs.append(JOB, 0, b"hello")

    assert outputs.append(JOB, 0, b"hello") == 5
    assert outputs.append(JOB, 2, b"l") == 5
    assert outputs.append(JOB, 3, b"lo you") == 9

    assert outputs.read(JOB, 0, 100) == b"hello you"


def test_a_gap_is_refused(outputs: Outputs) -> None:
    outputs.append(JOB, 0, b"hello")

    with pytest.raises(ValueError, match="missing between 5 and 6"):
        outputs.append(JOB, 6, b"x")

    assert outputs.size(JOB) == 5


def test_a_job_without_output_reads_as_empty(outputs: Outputs, tmp_path: Path) -> None:
    assert outputs.read(JOB, 0, 10) == b""
    assert outputs.size(JOB) == 0
    outputs.sync(JOB)
    outputs.remove(JOB)
    assert os.listdir(tmp_path / "outputs") == []


def test_output_beyond_the_limit_is_dropped_with_one_note_and_counts_as_taken(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, bytes_max=10)

    assert outputs.append(JOB, 0, b"12345678") == 8
    assert outputs.append(JOB, 8, b"90abc") == 13
    assert outputs.append(JOB, 13, b"def") == 16
    outputs.close()
    again = Outputs(tmp_path, bytes_max=10)
    assert again.append(JOB, 13, b"defg") == 17
    assert again.append(JOB, 500, b"h") == 501

    assert again.read(JOB, 0, 1000) == b"1234567890" + CUT_NOTE


def test_output_of_exactly_the_limit_bears_no_note(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, bytes_max=10)

    assert outputs.append(JOB, 0, b"1234567890") == 10
    assert outputs.append(JOB, 5, b"67890") == 10

    assert outputs.read(JOB, 0, 1000) == b"1234567890"


def test_a_restart_goes_on_where_the_file_ends(outputs: Outputs, tmp_path: Path) -> None:
    outputs.append(JOB, 0, b"hello")
    outputs.sync(JOB)

    again = Outputs(tmp_path / "outputs")

    assert again.append(JOB, 3, b"lo!") == 6
    assert again.read(JOB, 0, 10) == b"hello!"


def test_more_jobs_than_handles_are_served(outputs: Outputs) -> None:
    jobs = [f"job-222222{a}{b}" for a in "23456789ab" for b in "23456789ab"]
    for text in (b"one ", b"two"):
        for job in jobs:
            outputs.append(job, outputs.size(job), text)
            outputs.sync(job)

    assert {outputs.read(job, 0, 100) for job in jobs} == {b"one two"}
    assert len(outputs._handles) == HANDLES_MAX


def test_a_removed_output_begins_anew(outputs: Outputs) -> None:
    outputs.append(JOB, 0, b"hello")

    outputs.remove(JOB)

    assert outputs.size(JOB) == 0
    assert outputs.append(JOB, 0, b"x") == 1


@pytest.mark.parametrize("job", ["", "../x", "job-2222222/", "sb", "JOB-22222222"])
def test_what_is_no_job_id_never_becomes_a_path(outputs: Outputs, job: str) -> None:
    with pytest.raises(AssertionError):
        outputs.append(job, 0, b"x")


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200), pieces=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 50))))
def test_repeated_and_overlapping_pieces_never_double_or_lose_a_byte(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, pieces: list[tuple[int, int]]
) -> None:
    outputs = Outputs(tmp_path_factory.mktemp("outputs"))
    end = 0
    for offset, length in pieces:
        start = min(offset, end)  # what a guest resends begins at or before what was acknowledged
        end = outputs.append(JOB, start, content[start : start + length])

    assert outputs.read(JOB, 0, 1000) == content[:end]
    outputs.close()
