"""What snapshots and workspaces need of the backend that has them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agentlab.backends.qemu.fleet import Fleet
from agentlab.backends.qemu.host import Host
from agentlab.backends.qemu.layout import Layout
from agentlab.backends.qemu.prepared import Shelf
from agentlab.base.clock import Clock
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark, Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is needed of the backend."""

    layout: Layout
    fleet: Fleet
    shelf: Shelf
    clock: Clock
    host: Callable[[], Awaitable[Host]]
    seen: Callable[[Mark], Awaitable[Observed]]  # Gone, NotOurs
    lock: Callable[[SandboxId], asyncio.Lock]
