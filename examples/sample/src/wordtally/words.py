"""Finds the words in a text."""

import re
from collections.abc import Iterator

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> Iterator[str]:
    """The words of `text` in their order, in lower case."""
    return (match.group().lower() for match in WORD.finditer(text))
