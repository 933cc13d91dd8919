"""Hints that something changed.  A lost hint costs one reconcile interval, never correctness."""

from __future__ import annotations

import asyncio

from agentlab.model.ids import JobId, SandboxId


class Wake:
    """Collects which sandboxes and jobs deserve a look now; the reconciler waits on it."""

    def __init__(self) -> None:
        self._sandboxes: set[SandboxId] = set()
        self._jobs: set[JobId] = set()
        self._queue = False
        self._signal = asyncio.Event()

    def sandbox(self, sandbox: SandboxId) -> None:
        """Look at this sandbox."""
        self._sandboxes.add(sandbox)
        self._signal.set()

    def job(self, job: JobId) -> None:
        """Look at this job."""
        self._jobs.add(job)
        self._signal.set()

    def queue(self) -> None:
        """Look whether a queued job can start."""
        self._queue = True
        self._signal.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until there is a hint, at most `timeout_s`; whether there is one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._signal.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> tuple[set[SandboxId], set[JobId], bool]:
        """What was hinted at since the last call."""
        taken = self._sandboxes, self._jobs, self._queue
        self._sandboxes, self._jobs, self._queue = set(), set(), False
        self._signal.clear()
        return taken
