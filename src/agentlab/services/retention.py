"""Forgets what is older than the settings say, in small bites."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from agentlab.base.clock import Clock
from agentlab.base.clock import sleep as pause
from agentlab.services.limits import Limits
from agentlab.store import artifacts, events, grants, idempotency, retention
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database
from agentlab.store.outputs import Outputs

log = logging.getLogger(__name__)

INTERVAL_S = 3600.0
FIRST_S = 60.0  # after the start
BITE = 200
KEYS_KEPT_S = 86400.0  # idempotency keys and spent grants
UPLOAD_KEPT_S = 86400.0  # blobs that nothing names yet


class Retention:
    """Runs every hour; what a crash interrupts is found again at the next run."""

    def __init__(self, *, database: Database, clock: Clock, blobs: Blobs, outputs: Outputs, limits: Limits) -> None:
        self._database, self._clock, self._blobs, self._outputs = database, clock, blobs, outputs
        self._limits = limits

    async def run(self) -> None:
        """Until cancelled."""
        await pause(FIRST_S)
        while True:
            await self.sweep()
            await pause(INTERVAL_S)

    async def sweep(self) -> int:
        """One pass; how many jobs and sandboxes were forgotten."""
        now, forgotten = self._clock.now(), 0
        before = now - self._limits.kept_s
        while bite := await self._forget_jobs(before) + await self._database.write(
            lambda tx: retention.remove_tombstones(tx, before, BITE)
        ):
            forgotten += bite
        while await self._database.write(lambda tx: events.prune(tx, before, BITE)):
            pass
        await self._database.write(lambda tx: idempotency.prune(tx, now - KEYS_KEPT_S))
        await self._database.write(lambda tx: grants.prune(tx, now - KEYS_KEPT_S))
        in_use = self._database.read(lambda tx: artifacts.digests_in_use(tx) | retention.bundles_in_use(tx))
        removed = await asyncio.to_thread(self._blobs.sweep, in_use, UPLOAD_KEPT_S)
        if forgotten or removed:
            log.info("old things were forgotten", extra={"rows": forgotten, "blobs": removed})
        return forgotten

    async def _forget_jobs(self, before: float) -> int:
        jobs = self._database.read(lambda tx: retention.ended_jobs(tx, before, BITE))
        for job in jobs:
            self._outputs.remove(job)
            await self._database.write(partial(retention.remove_job, job=job))
        return len(jobs)
