"""The reconcile loop: hints at once, everything at every interval."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from agentlab.base.clock import Clock
from agentlab.errors import DiskFull
from agentlab.services.limits import Limits
from agentlab.services.reconcile.jobs import JobReconciler
from agentlab.services.reconcile.sandboxes import SandboxReconciler
from agentlab.services.reserve import Reserve
from agentlab.services.wake import Wake

log = logging.getLogger(__name__)

DRAIN_S = 20.0


class Reconciler:
    """A hint makes it look at once; the interval makes sure that nothing needs a hint."""

    def __init__(
        self,
        *,
        clock: Clock,
        sandboxes: SandboxReconciler,
        jobs: JobReconciler,
        limits: Limits,
        wake: Wake,
        reserve: Reserve,
    ) -> None:
        self._clock, self._sandboxes, self._jobs, self._limits, self._wake = clock, sandboxes, jobs, limits, wake
        self._reserve = reserve
        self.last_tick_s = 0.0  # how long the last full pass took
        self.ticks = 0

    async def run(self) -> None:
        """Reconcile until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._survive(self.tick())
            due = loop.time() + self._limits.reconcile_interval_s
            while (left := due - loop.time()) > 0 and await self._wake.wait(left):
                await self._survive(self._follow_hints())

    async def _survive(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except DiskFull as error:
            log.error("the disk is full", extra={"cause": str(error)})
            self._reserve.give_up()
        except Exception as error:  # the fence of the loop: whatever a pass meets, the next one is made
            log.error("a pass of the reconciler met a defect", extra={"cause": str(error)}, exc_info=error)
        else:
            self._reserve.keep()

    async def tick(self) -> None:
        """One full pass."""
        began = self._clock.monotonic()
        await self._sandboxes.tick()
        await self._jobs.tick()
        self.last_tick_s = self._clock.monotonic() - began
        self.ticks += 1

    async def drain(self) -> None:
        """Begin nothing new; let steps that are under way end, at most DRAIN_S."""
        self._sandboxes.workers.stop()
        self._jobs.workers.stop()
        idle = await self._sandboxes.workers.idle(DRAIN_S) and await self._jobs.workers.idle(DRAIN_S)
        if not idle:
            log.warning("steps were still under way at the end; they will be resumed at the next start")

    async def _follow_hints(self) -> None:
        sandboxes, jobs, queue = self._wake.take()
        for sandbox in sandboxes:
            self._sandboxes.workers.kick(sandbox)
        for job in jobs:
            self._jobs.workers.kick(job)
        if queue:
            await self._jobs.claim()
