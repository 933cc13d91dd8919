"""The door to randomness."""

from __future__ import annotations

import random
import secrets
from typing import Protocol

ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no 0/o, 1/l/i: ids are read aloud and typed


class Entropy(Protocol):
    """Where random values come from.  Passed as a parameter, so that a simulation can be replayed."""

    def token(self, bytes_count: int = 32) -> str:
        """An unguessable URL-safe text of `bytes_count` random bytes, as hex."""
        ...

    def word(self, length: int = 8) -> str:
        """`length` random letters and digits that people can tell apart."""
        ...

    def fraction(self) -> float:
        """A number in [0, 1), for jitter; not for secrets."""
        ...


class SystemEntropy:
    """The operating system's generator."""

    def token(self, bytes_count: int = 32) -> str:
        return secrets.token_hex(bytes_count)

    def word(self, length: int = 8) -> str:
        return "".join(secrets.choice(ALPHABET) for _ in range(length))

    def fraction(self) -> float:
        return secrets.randbelow(1 << 30) / (1 << 30)


class SeededEntropy:
    """A generator that repeats itself for the same seed.  For simulations only: nothing it makes is secret."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, bytes_count: int = 32) -> str:
        return self._random.randbytes(bytes_count).hex()

    def word(self, length: int = 8) -> str:
        return "".join(self._random.choice(ALPHABET) for _ in range(length))

    def fraction(self) -> float:
        return self._random.random()
