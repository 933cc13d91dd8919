"""One worker per subject: work on the same thing never overlaps, work on different things does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from agentlab.base.tasks import TaskScope

Key = TypeVar("Key", bound=str)


class Workers(Generic[Key]):
    """Runs `body(key)` for each kicked key, once at a time; a kick during a run makes it run again.

    The body returns None when there is nothing left to do, or the seconds after which to look again.
    """

    def __init__(self, scope: TaskScope, name: str, body: Callable[[Key], Awaitable[float | None]]) -> None:
        self._scope, self._name, self._body = scope, name, body
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._later: dict[Key, asyncio.TimerHandle] = {}
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __contains__(self, key: Key) -> bool:
        return key in self._running or key in self._later

    def __len__(self) -> int:
        return len(self._running)

    def kick(self, key: Key) -> None:
        """Look at `key` now, or once more after the run that is under way."""
        if self._stopped:
            return
        if key in self._running:
            self._again.add(key)
            return
        if (timer := self._later.pop(key, None)) is not None:
            timer.cancel()
        self._running.add(key)
        self._idle.clear()
        self._scope.start(self._run(key), f"{self._name} {key}")

    def stop(self) -> None:
        """Start nothing more; runs that are under way go on."""
        self._stopped = True
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no run is under way; whether that was reached in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self, key: Key) -> None:
        delay: float | None = None
        try:
            while True:
                self._again.discard(key)
                delay = await self._body(key)
                if key not in self._again or self._stopped:
                    return
        finally:
            self._running.discard(key)
            self._again.discard(key)
            if not self._running:
                self._idle.set()
            if delay is not None and not self._stopped:
                self._later[key] = asyncio.get_running_loop().call_later(delay, self._due, key)

    def _due(self, key: Key) -> None:
        self._later.pop(key, None)
        self.kick(key)
