"""How many calls a node is given at once: its daemons have three workers each, and others need them, too."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

CALLS_PER_NODE_MAX = 4  # in flight at once
AGENT_CALLS_PER_NODE_MAX = 2  # each blocks a worker for up to 5 s, so that they must not fill the lane
UPLOADS_PER_NODE_MAX = 1  # beside the other calls


class CallClass(enum.Enum):
    """What decides about a call's time limits and its lane."""

    READ = "read"
    WRITE = "write"
    UPLOAD = "upload"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class _Lane:
    calls: asyncio.Semaphore
    agent: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AGENT_CALLS_PER_NODE_MAX))
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_PER_NODE_MAX))


class Lanes:
    """A lane for each node; what is asked of the cluster as a whole has one of its own."""

    def __init__(self, calls_per_node_max: int = CALLS_PER_NODE_MAX) -> None:
        if calls_per_node_max < 1:
            raise ValueError("at least one call at once is needed")
        self._calls_max = calls_per_node_max
        self._lanes: dict[str, _Lane] = {}

    @asynccontextmanager
    async def of(self, node: str, call: CallClass) -> AsyncIterator[None]:
        """Held while a call is in flight; waits its turn, first come, first served."""
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = _Lane(asyncio.Semaphore(self._calls_max))
        async with AsyncExitStack() as held:
            if call is CallClass.UPLOAD:  # takes minutes and no worker but the one that receives it
                await held.enter_async_context(lane.uploads)
            else:
                if call is CallClass.AGENT:
                    await held.enter_async_context(lane.agent)
                await held.enter_async_context(lane.calls)
            yield
