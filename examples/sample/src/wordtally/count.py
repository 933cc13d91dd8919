"""Counts words."""

from collections import Counter
from collections.abc import Iterable

from wordtally.words import words


def tally(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs in all of `texts` together."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    return counts


def top(counts: Counter[str], n: int) -> list[tuple[str, int]]:
    """The `n` most frequent words; words that occur equally often in alphabetical order."""
    return counts.most_common(n)
