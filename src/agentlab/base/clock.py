"""The door to time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from.  Passed as a parameter, so that tests can jump."""

    def now(self) -> float:
        """Seconds since the epoch, by the wall clock; may jump either way."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back."""
        ...


class SystemClock:
    """The real clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


async def sleep(seconds: float) -> None:
    """Sleep on the running loop's clock, which a simulation may replace."""
    import asyncio  # here, because the CLI asks for the time and must start without it

    await asyncio.sleep(seconds)


def pause(seconds: float) -> None:
    """Block this thread; for the synchronous client only."""
    time.sleep(seconds)


def milliseconds(seconds: float) -> int:
    """An instant in seconds as the integer milliseconds that the store keeps."""
    return round(seconds * 1000)
