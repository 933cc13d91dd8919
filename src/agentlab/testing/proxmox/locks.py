"""The locks of the cluster: one per config and one per storage, each with the ten seconds that Proxmox VE waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agentlab.base.clock import sleep
from agentlab.testing.proxmox.refusal import Refused

WAIT_S = 10.0


class FileLock:
    """One lock file."""

    def __init__(self, complaint: str) -> None:
        self._lock = asyncio.Lock()
        self._complaint = complaint

    @property
    def taken(self) -> bool:
        """Whether somebody holds it."""
        return self._lock.locked()

    @asynccontextmanager
    async def held(self, log: Callable[[str], None] | None = None, wait_s: float = WAIT_S) -> AsyncIterator[None]:
        """Hold it.  Raises Refused (500) if others hold it for longer than `wait_s`."""
        waited = self._lock.locked()
        if waited and log is not None:
            log("trying to acquire lock...")
        try:
            async with asyncio.timeout(wait_s):
                await self._lock.acquire()
        except TimeoutError:
            raise Refused(self._complaint) from None
        if waited and log is not None:
            log(" OK")
        try:
            yield
        finally:
            self._lock.release()

    async def hold(self, seconds: float) -> None:
        """Take it for a while, whatever others want."""
        await self._lock.acquire()
        try:
            await sleep(seconds)
        finally:
            self._lock.release()


class Locks:
    """Every lock, made when first asked for."""

    def __init__(self) -> None:
        self._locks: dict[str, FileLock] = {}

    def of_vm(self, vmid: int) -> FileLock:
        """The lock of a VM's config; it belongs to the id, and outlives the VM."""
        return self._named(f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")

    def of_storage(self, name: str, node: str | None) -> FileLock:
        """The lock under which volumes of a storage are made; a shared one (`node` None) has one for the cluster."""
        if node is None:
            return self._named(f"cfs-lock 'storage-{name}' error: got lock request timeout")
        return self._named(f"can't lock file '/var/lock/pve-manager/pve-storage-{name}' - got timeout", node)

    def _named(self, complaint: str, where: str = "") -> FileLock:
        return self._locks.setdefault(where + complaint, FileLock(complaint))
