"""Virtual time for asyncio: the clock jumps to the next timer, so that a simulated week takes a second."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

EPOCH = 1_800_000_000.0  # what a SimClock shows when its loop starts


class Stuck(RuntimeError):
    """Nothing is ready, no timer is set: the simulated world would wait for ever."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Stuck("simulation is stuck: no timer, no I/O")
        if not ready and timeout:
            self.now += timeout
        return ready


class SimLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time.  Threads run inline: they take no simulated time and keep the order."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run `func` at once, on the caller."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class SimClock:
    """A clock that follows the running SimLoop, with a wall clock that a test may shift."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.shift_s = 0.0  # how far the wall clock was set ahead; a suspended laptop, an administrator

    def now(self) -> float:
        return EPOCH + self._loop.time() + self.shift_s

    def monotonic(self) -> float:
        return self._loop.time()
