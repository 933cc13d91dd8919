"""Text from strangers, made safe and helpful to show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# C0 and C1 controls except tab and newline, plus the bidirectional overrides that can reorder a line.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# No part may run over an escape: hostile text would make each beginning be compared with all that follows.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[@-Z\\-_])")


def printable(text: str) -> str:
    """Guest text without terminal escape sequences or control characters; tab and newline stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def one_line(text: str, length_max: int = 300) -> str:
    """Guest or foreign text as one bounded printable line, for messages and tables."""
    line = " ".join(printable(text).split())
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was most likely meant, or None."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, ` Known: a, b.` or nothing, to append to a message."""
    names = sorted(known)
    if best := nearest(word, names):
        return f" Did you mean {best!r}?"
    return f" Known: {', '.join(names[:20])}." if names else ""
