"""The door to background tasks: every task has a parent, a name and a fence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class TaskScope:
    """Children that end with their scope.  A child's failure is logged and told to `on_failure`; siblings go on.

    Use as an async context manager.  Leaving it cancels what still runs and waits for it.
    """

    def __init__(self, name: str, on_failure: Callable[[str, BaseException], None] | None = None) -> None:
        self._name = name
        self._on_failure = on_failure
        self._children: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def __aenter__(self) -> TaskScope:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Start nothing more; cancel what runs and wait for it."""
        self._closing = True
        await self.cancel_all()

    def __len__(self) -> int:
        return len(self._children)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` as a child of this scope."""
        if self._closing:
            work.close()
            raise RuntimeError(f"scope {self._name} is closing")
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}/{name}")
        self._children.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_all(self) -> None:
        """Cancel every child and wait until all have ended."""
        while self._children:
            children = tuple(self._children)
            for child in children:
                child.cancel()
            await asyncio.gather(*children, return_exceptions=True)
            self._children.difference_update(children)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._children.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("task failed", extra={"task": task.get_name()}, exc_info=error)
        if self._on_failure is not None:
            self._on_failure(task.get_name(), error)


async def to_the_end(work: Awaitable[T]) -> T:
    """Await something that must not be abandoned half-way; a cancellation takes effect once it has ended.

    `work` must be bounded in time.
    """
    inner = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(inner)
    except asyncio.CancelledError:
        await asyncio.wait([inner])
        raise


async def in_thread(work: Callable[[], T]) -> T:
    """Run short blocking file work beside the loop; cancellation waits for its end."""
    return await to_the_end(asyncio.get_running_loop().run_in_executor(None, work))
