"""Redaction at the source: known secret values leave the sandbox as •••, in whatever common spelling they are written.

A run of covered bytes becomes one mark, wherever the stream is cut.  To search hundreds of patterns at once with the
standard library alone, the stream is sampled: every pattern of length n contains one whole word of w bytes at a place
divisible by s if n ≥ s + w - 1.  So a set of such words is compared with every s-th position of the stream at C speed,
and only patterns of which a word occurs are searched for exactly.

Not covered: spellings not listed in `spellings`, such as a base64 text that is wrapped inside the value, and values
shorter than VALUE_BYTES_MIN, because hiding those would make the output unreadable.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from bisect import bisect_left
from collections.abc import Iterable

MARK = "•••".encode()
VALUE_BYTES_MIN = 4
ENCODED_BYTES_MIN = 5  # a shorter fragment of an encoding would occur by chance
LINE_BYTES_MIN = 8  # lines of a value of several lines are hidden on their own from this length

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")
# (shortest pattern, word w, stride s), longest first.
_GRIDS = ((39, 8, 32), (23, 8, 16), (15, 8, 8), (7, 4, 4))


def spellings(value: str) -> set[bytes]:
    """How a secret may be written: plain, by lines, in base64 at each alignment, percent-encoded, in JSON."""
    plain = value.encode("utf-8", "surrogatepass")
    if len(plain) < VALUE_BYTES_MIN:
        return set()
    found = {plain, *(line for line in plain.splitlines() if len(line) >= LINE_BYTES_MIN)}
    encoded = _base64(plain) | _percent(plain)
    for ascii_only in (True, False):
        quoted = json.dumps(value, ensure_ascii=ascii_only)[1:-1].encode("utf-8", "surrogatepass")
        encoded |= {quoted, quoted.replace(b"/", b"\\/")}
    return found | {each for each in encoded if len(each) >= ENCODED_BYTES_MIN}


class Redactor:
    """A stream in, the same stream without secrets out.  Holds back less than the longest pattern."""

    def __init__(self, values: Iterable[str]) -> None:
        patterns = {each for value in values for each in spellings(value)}
        self._sorted = sorted(patterns)
        self._first = frozenset(each[0] for each in patterns)
        self._longest = max(map(len, patterns), default=1)
        self._search = _Search(patterns)
        self._held = b""
        self._masked = -1  # how far into `_held` the run reaches whose mark is already out; -1: no run touches it

    @property
    def held(self) -> int:
        """Bytes not yet given out."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream; what can be given out by now."""
        self._held += data
        return self._give(max(0, len(self._held) - self._longest + 1))

    def idle(self) -> bytes:
        """Nothing came for a while: all but what may be the beginning of a secret."""
        return self._give(self._beginning())

    def finish(self) -> bytes:
        """The stream has ended: the rest.  The redactor is then ready for another stream."""
        rest = self._give(len(self._held))
        self._masked = -1
        return rest

    def text(self, text: str) -> str:
        """A whole text without secrets."""
        if not self._sorted:
            return text
        once = Redactor.__new__(Redactor)
        once._sorted, once._first, once._longest, once._search = self._sorted, self._first, self._longest, self._search
        once._held, once._masked = text.encode("utf-8", "surrogateescape"), -1
        return once.finish().decode("utf-8", "replace")

    def _give(self, limit: int) -> bytes:
        """Give out the first `limit` bytes: no pattern that begins there is still incomplete."""
        if limit == 0:
            return b""
        held, parts, place = self._held, [], 0
        for start, end, announced in self._runs():
            if start >= limit:
                break
            parts.append(held[place:start])
            if not announced:
                parts.append(MARK)
            place = end
        if place < limit:
            parts.append(held[place:limit])
            self._masked = -1
        else:
            self._masked = place - limit
        self._held = held[limit:]
        return b"".join(parts)

    def _runs(self) -> list[tuple[int, int, bool]]:
        """Maximal runs of covered bytes in `_held`: start, end, and whether the mark is already out."""
        runs: list[tuple[int, int, bool]] = [(0, self._masked, True)] if self._masked >= 0 else []
        for start, end in sorted(self._search.occurrences(self._held)):
            if runs and start <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(end, runs[-1][1]), runs[-1][2])
            else:
                runs.append((start, end, False))
        return runs

    def _beginning(self) -> int:
        """The first place from which on `_held` may be the beginning of a pattern that is not complete."""
        held = self._held
        for place in range(max(0, len(held) - self._longest + 1), len(held)):
            if held[place] in self._first and self._continues(held[place:]):
                return place
        return len(held)

    def _continues(self, tail: bytes) -> bool:
        at = bisect_left(self._sorted, tail)
        if at < len(self._sorted) and self._sorted[at] == tail:
            at += 1
        return at < len(self._sorted) and self._sorted[at].startswith(tail)


class _Search:
    """Finds every occurrence of many patterns."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        self._short: list[bytes] = []
        self._grids: dict[tuple[int, int], dict[int, list[bytes]]] = {}
        for pattern in patterns:
            grid = next(((word, stride) for least, word, stride in _GRIDS if len(pattern) >= least), None)
            if grid is None:
                self._short.append(pattern)
                continue
            word, stride = grid
            words = self._grids.setdefault(grid, {})
            for at in range(stride):
                number = memoryview(pattern[at : at + word]).cast("I" if word == 4 else "Q")[0]
                words.setdefault(number, []).append(pattern)
        self._wanted = {grid: frozenset(words) for grid, words in self._grids.items()}

    def occurrences(self, text: bytes) -> set[tuple[int, int]]:
        """(start, end) of every occurrence, overlapping ones included."""
        candidates = set(self._short)
        for (word, stride), wanted in self._wanted.items():
            whole = memoryview(text)[: len(text) - len(text) % word].cast("I" if word == 4 else "Q")
            samples = whole[:: stride // word] if stride > word else whole
            if not wanted.isdisjoint(samples):
                words = self._grids[word, stride]
                candidates.update(pattern for hit in wanted.intersection(samples) for pattern in words[hit])
        found = set()
        for pattern in candidates:
            at = text.find(pattern)
            while at >= 0:
                found.add((at, at + len(pattern)))
                at = text.find(pattern, at + 1)
        return found


def _base64(plain: bytes) -> set[bytes]:
    """The characters of base64 that depend on `plain` alone, after 0, 1 or 2 unknown bytes (mod 3)."""
    found = set()
    for before, first in ((0, 0), (1, 2), (2, 3)):
        whole = b2a_base64(bytes(before) + plain, newline=False)
        part = whole[first : (before + len(plain)) * 8 // 6]
        found |= {part, part.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def _percent(plain: bytes) -> set[bytes]:
    found = set()
    for kept in (_UNRESERVED, _UNRESERVED | {ord("/")}):
        for form in ("%%%02X", "%%%02x"):
            text = "".join(chr(each) if each in kept else form % each for each in plain).encode()
            found |= {text, text.replace(b"%20", b"+")}
    return found
