"""What went wrong, in the terms of the person who asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed step with its cause and what to do about it.  Never empty, never only a code."""

    code: str  # of the error class, such as "backend/refused"
    step: str  # the step that failed, such as "policy"
    cause: str
    remedy: str
    at: float  # seconds since the epoch
