"""Where a command writes: values for people or programs to standard output, remarks to standard error."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentlab.client.sync import Connection

_COLORS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "bold": "1", "dim": "2"}


class Screen:
    """The options of one run, and its streams."""

    def __init__(self) -> None:
        self.json = False
        self.socket: str | None = None
        self.no_color = False

    def connection(self) -> Connection:
        """The daemon, at the socket that was named or found."""
        from agentlab.client.sync import Connection

        return Connection(self.socket)

    @property
    def terminal(self) -> bool:
        """Whether standard error is a terminal on which a line may be rewritten."""
        return sys.stderr.isatty() and not self.no_color and os.environ.get("TERM") != "dumb"

    def paint(self, text: str, color: str, stream: Any = None) -> str:
        """`text` in a colour, on a terminal whose user has not declined."""
        stream = stream or sys.stdout
        if self.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
            return text
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"

    def emit(self, value: Any) -> None:
        """One JSON value on one line."""
        import json

        self.line(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace").decode())

    def line(self, text: str = "") -> None:
        """One line of the result."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark, which is not part of the result."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
        """Rows in columns; `empty` is said where there is none."""
        from agentlab.cli.render import columns

        if not rows:
            self.note(empty)
            return
        head, *rest = columns([heads, *rows])
        self.line(self.paint(head, "bold"))
        for each in rest:
            self.line(each)
