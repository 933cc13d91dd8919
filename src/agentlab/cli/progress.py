"""Steps as they happen: one line for each that has ended, and a line that is rewritten for the one under way."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from agentlab.base.text import one_line
from agentlab.cli.render import between, width

if TYPE_CHECKING:
    from agentlab.cli.screen import Screen

MARKS = {"done": ("✓", "green"), "failed": ("✗", "red"), "running": ("…", "yellow")}
LINE_WIDTH_MAX = 100


class Progress:
    """Writes to standard error.  Silent with --json."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._rewritable = screen.terminal and not screen.json
        self._shown = ""

    def step(self, step: Any) -> None:
        """A step began, waits for something else, or ended."""
        mark, color = MARKS.get(step["outcome"], ("·", "dim"))
        name = f"{step['operation']}: {step['step']}"
        took = between(step["started_at"], step["ended_at"]) if step["ended_at"] else ""
        detail = f"  {one_line(step['detail'], 200)}" if step["detail"] else ""
        if step["outcome"] == "running":
            self.passing(f"  {mark} {name}{detail}")
        else:
            self.line(f"  {self._screen.paint(mark, color, sys.stderr)} {name}  {took}{detail}")

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._screen.json:
            return
        self.clear()
        self._screen.note(text)

    def passing(self, text: str) -> None:
        """A line that the next one replaces; nothing where lines cannot be rewritten."""
        if not self._rewritable:
            return
        self.clear()
        self._shown = one_line(text, LINE_WIDTH_MAX)
        sys.stderr.write(self._shown)
        sys.stderr.flush()

    def clear(self) -> None:
        """Take away the passing line."""
        if self._shown:
            sys.stderr.write("\r" + " " * width(self._shown) + "\r")
            sys.stderr.flush()
            self._shown = ""
