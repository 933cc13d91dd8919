"""Counts the words of texts."""

from wordtally.count import tally, top
from wordtally.words import words

__all__ = ["tally", "top", "words"]
