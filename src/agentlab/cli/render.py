"""Plain values as people read them.  Every text that a guest may have chosen goes through `base.text`."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from agentlab.base.clock import SystemClock
from agentlab.base.text import one_line, printable
from agentlab.base.units import format_seconds

CELL_LENGTH_MAX = 80
ESCAPE_LENGTH_MAX = 4096  # an escape sequence that is longer than this is shown without its beginning

# An escape sequence that cannot become another one by what follows; see `base.text` for the grammar.
_COMPLETE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[^0-?]|\][^\x07\x1b]*(?:\x07|\x1b[^\x07])|[PX^_].*?\x1b\\|[^\[\]PX^_])", re.DOTALL
)


def instant(text: str | None) -> float | None:
    """Seconds since the epoch of an instant on the wire."""
    return None if text is None else datetime.fromisoformat(text).timestamp()


def age(text: str | None, now: float | None = None) -> str:
    """How long ago an instant was."""
    when = instant(text)
    if when is None:
        return "-"
    return format_seconds(max(0.0, (SystemClock().now() if now is None else now) - when))


def remaining(text: str | None) -> str:
    """How long until an instant."""
    when = instant(text)
    if when is None:
        return "-"
    left = when - SystemClock().now()
    return format_seconds(left) if left > 0 else "ended"


def between(start: str | None, end: str | None) -> str:
    """The time between two instants; up to now if there is no end."""
    began, ended = instant(start), instant(end)
    if began is None:
        return "-"
    return format_seconds(max(0.0, (SystemClock().now() if ended is None else ended) - began))


def local(text: str | None) -> str:
    """An instant in the local time of whoever reads it."""
    when = instant(text)
    return "-" if when is None else datetime.fromtimestamp(when, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def cell(value: Any) -> str:
    """One field of a table."""
    return "-" if value in (None, "", []) else one_line(str(value), CELL_LENGTH_MAX)


def counted(number: int, noun: str) -> str:
    """`1 commit`, `2 commits`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def width(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(width(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(text + " " * (widths[index] - width(text)) for index, text in enumerate(row)).rstrip() for row in rows
    ]


def fields(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    """Named values as lines; what is absent is left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", [], "-")]
    longest = max((len(name) for name, _ in shown), default=0)
    return [f"{name}:{' ' * (longest - len(name) + 2)}{one_line(str(value), 2000)}" for name, value in shown]


class Cleaner:
    """Hostile bytes into text that is safe to print, however they are cut."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """What can be printed now; an escape sequence that is not yet complete is held back."""
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final:
            place = _incomplete(text)
            text, self._held = text[:place], text[place:]
        return printable(text.replace("\r\n", "\n").replace("\r", "\n"))


def _incomplete(text: str) -> int:
    """Where an unfinished escape sequence or line end begins; the length if there is none."""
    place = max(0, len(text) - ESCAPE_LENGTH_MAX)
    while (place := text.find("\x1b", place)) >= 0:
        match = _COMPLETE.match(text, place)
        if match is None:
            return place
        place = match.end()
    return len(text) - 1 if text.endswith("\r") else len(text)
