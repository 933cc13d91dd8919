"""Text from strangers is safe to show, and to look at."""

from __future__ import annotations

import time

import pytest

from agentlab.base.text import one_line, printable


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\x1b[31mb\x1b[0m", "ab"),
        ("a\x1b]0;owned\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\b", "ab"),
        ("a\x1bPq#0;2\x1b\\b", "ab"),
        ("a\x1b_secret\x1b\\b", "ab"),
        ("a\x1bcb", "acb"),
        ("a\x9b31mb", "a31mb"),
        ("a\u202eb\u2066c", "abc"),
        ("a\x1b[31", "a[31"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
    ],
)
def test_escape_sequences_and_controls_are_taken_out(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown
    assert "\x1b" not in one_line(hostile)


@pytest.mark.parametrize("beginning", ["\x1bP", "\x1b_", "\x1b]", "\x1b[", "\x1b[0", "\x1bX" + "a" * 100])
def test_p9_escape_sequences_that_never_end_take_no_longer_than_other_text(beginning: str) -> None:
    began = time.perf_counter()

    printable(beginning * (2_000_000 // len(beginning)))

    assert time.perf_counter() - began < 5, "it grows with the square of the length"
