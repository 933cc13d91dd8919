"""Redaction: the stream comes out as if it had been searched whole, and no secret comes out at all."""

from __future__ import annotations

import base64
import json
import os
import random
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlab_guest.redact import MARK, Redactor, spellings

SECRET = 's3cr3t/Tok+n ü"x'
LONG = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7\n-----END KEY-----\n"


def naive(values: list[str], text: bytes) -> bytes:
    covered = bytearray(len(text))
    for value in values:
        for pattern in spellings(value):
            for at in range(len(text) - len(pattern) + 1):
                if text[at : at + len(pattern)] == pattern:
                    covered[at : at + len(pattern)] = b"\1" * len(pattern)
    out = bytearray()
    for at, hidden in enumerate(covered):
        if not hidden:
            out.append(text[at])
        elif at == 0 or not covered[at - 1]:
            out += MARK
    return bytes(out)


def stream(redactor: Redactor, text: bytes, cuts: list[int], idle: list[bool]) -> bytes:
    out, at, turn = b"", 0, 0
    while at < len(text):
        size = cuts[turn % len(cuts)]
        out += redactor.feed(text[at : at + size])
        if idle[turn % len(idle)]:
            out += redactor.idle()
        at, turn = at + size, turn + 1
    return out + redactor.finish()


secrets = st.lists(st.text("abA1", min_size=3, max_size=24), min_size=1, max_size=5)
cuts = st.lists(st.integers(1, 50), min_size=1, max_size=6)
idles = st.lists(st.booleans(), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(secrets, st.data(), cuts, idles)
def test_a_stream_comes_out_as_if_searched_whole(
    values: list[str], data: st.DataObject, sizes: list[int], idle: list[bool]
) -> None:
    patterns = sorted({each for value in values for each in spellings(value)} | {b"ab", b"x"})
    parts = st.lists(st.sampled_from(patterns) | st.binary(max_size=6), max_size=12)
    text = b"".join(part[: data.draw(st.integers(1, 30))] for part in data.draw(parts))

    assert stream(Redactor(values), text, sizes, idle) == naive(values, text)


@pytest.mark.parametrize("secret", [SECRET, LONG, "abcd", "0123456789" * 9])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_every_spelling_is_hidden_across_borders(secret: str, size: int) -> None:
    written = [
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
    ]

    for text in written:
        out = stream(Redactor([secret]), b"before " + text.encode() + b" after", [size], [False])
        assert text.encode().strip(b'"') not in out
        assert out.startswith(b"before ")
        assert out.endswith(b" after")
        assert MARK in out


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("after", range(4))
def test_base64_is_hidden_at_every_alignment(encode: object, before: int, after: int) -> None:
    value = "gh_" + "aZ09" * 7 + "?>"
    whole = encode(b"x" * before + value.encode() + b"y" * after)  # type: ignore[operator]

    out = stream(Redactor([value]), whole, [5], [False])

    left = out.replace(MARK, b"").rstrip(b"=")
    assert len(left) <= (before + after) * 8 // 6 + 4  # only characters that mix in neighbouring bytes may stay


def test_overlapping_secrets_are_one_mark() -> None:
    redactor = Redactor(["password-one", "one-and-more"])

    assert redactor.feed(b"a password-one-and-more b") + redactor.finish() == b"a " + MARK + b" b"


def test_values_too_short_to_hide_stay() -> None:
    assert Redactor(["abc", ""]).text("abcabc") == "abcabc"


def test_idle_output_is_given_out_but_for_what_may_begin_a_secret() -> None:
    redactor = Redactor(["hunter2000"])

    assert redactor.feed(b"the password is hunt") == b"the pass"
    assert redactor.idle() == b"word is "
    assert redactor.held == 4
    assert redactor.feed(b"er2000!") == b""
    assert redactor.finish() == MARK + b"!"


def test_less_than_the_longest_pattern_is_held_back() -> None:
    redactor = Redactor([SECRET, "k" * 200])
    longest = max(len(each) for each in spellings("k" * 200))

    for _ in range(100):
        redactor.feed(os.urandom(997))
        assert redactor.held < longest


def test_without_secrets_nothing_is_held_back() -> None:
    redactor = Redactor([])

    assert redactor.feed(b"abc") == b"abc"
    assert redactor.held == 0


@pytest.mark.parametrize("kind", ["log", "base64"])
def test_a_hundred_secrets_cost_little(kind: str) -> None:
    rng = random.Random(1)
    values = [base64.b64encode(rng.randbytes(24 + n % 16)).decode() for n in range(100)]
    line = b'2024-01-01T00:00:00 INFO {"event": "tool_use", "path": "src/agentlab/%d.py", "text": "reading a file"}\n'
    block = b"".join(line % n for n in range(1000)) if kind == "log" else base64.b64encode(rng.randbytes(80_000))
    block = (block * 2)[: 64 << 10]
    redactor = Redactor(values)

    started = time.process_time()
    for _ in range(160):
        redactor.feed(block)
    took = time.process_time() - started

    print(f"redaction of {kind}: {10 / took:.0f} MiB/s")
    assert took < 10 / 30, "slower than 30 MiB/s; 100 and more are usual"
