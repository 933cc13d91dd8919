"""The secret values that pass through this process, so that no log line shows them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable

VALUES_MAX = 4096
VALUE_LENGTH_MIN = 6  # shorter values, such as 1 or true, would black out half of every line


class Redaction:
    """The secret values that pass through this process; a line that holds one shows ••• instead."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, None] = OrderedDict()

    def add(self, values: Iterable[str]) -> None:
        """Remember values; the oldest are forgotten beyond VALUES_MAX."""
        for value in values:
            if len(value) >= VALUE_LENGTH_MIN:
                self._values[value] = None
                self._values.move_to_end(value)
        while len(self._values) > VALUES_MAX:
            self._values.popitem(last=False)

    def clean(self, line: str) -> str:
        """`line` without any of the values, plain or as JSON escapes them."""
        for value in self._values:
            if value in line:
                line = line.replace(value, "•••")
            if (escaped := json.dumps(value)[1:-1]) != value and escaped in line:
                line = line.replace(escaped, "•••")
        return line
