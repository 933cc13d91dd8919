"""An agent's output on standard output: made safe on a terminal, as it is in a pipe, as JSON lines for programs."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING

from agentlab.cli.render import Cleaner

if TYPE_CHECKING:
    from agentlab.cli.screen import Screen


class Output:
    """Write chunks in order, then `end`."""

    def __init__(self, screen: Screen, *, raw: bool = False) -> None:
        self._screen = screen
        self._raw = raw or not sys.stdout.isatty()
        self._cleaner = Cleaner()
        self._last = "\n"

    @property
    def at_line_start(self) -> bool:
        """Whether what was written last ended its line."""
        return self._last == "\n"

    def write(self, data: bytes, offset: int) -> None:
        """One chunk; `offset` matters to programs only."""
        if self._screen.json:
            self._screen.emit({"type": "output", "offset": offset, "data_b64": base64.b64encode(data).decode()})
        elif self._raw:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            self._last = data[-1:].decode("latin-1") or self._last
        else:
            self._print(self._cleaner.feed(data))

    def end(self) -> None:
        """Write what was held back, and end the line on a terminal."""
        if self._screen.json or self._raw:
            return
        self._print(self._cleaner.feed(b"", final=True))
        if not self.at_line_start:
            self._print("\n")

    def _print(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._last = text[-1]
