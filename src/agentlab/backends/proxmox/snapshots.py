"""Snapshots of a sandbox's disk, as the cluster keeps them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agentlab.backends.interface import BackendError, Gone, Refused
from agentlab.backends.link.guests import Guests
from agentlab.backends.proxmox import lenient
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.making import require_ours
from agentlab.backends.proxmox.observe import VmStatus
from agentlab.backends.proxmox.records import VmRecord
from agentlab.backends.translation import translated
from agentlab.base.tasks import in_thread
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark
from agentlab.model.snapshot import Snapshot

log = logging.getLogger(__name__)

SNAPSHOT_S_MAX = 300.0
FREEZE_S_MAX = 30.0  # the guest's file systems stand still for no longer, whatever happens to us
_KEY = "agentlab-snapshot"
Lock = Callable[[SandboxId], asyncio.Lock]
Seen = Callable[[Mark], Awaitable[tuple[VmRecord, VmStatus]]]
HasDisks = Callable[[SandboxId], Awaitable[bool]]


class ClusterSnapshots:
    """See `Snapshots`.  Names on the cluster are shorter than ours; ours stand in the description.

    A snapshot is of all disks of a VM, so that a VM with a workspace's disk is not kept: to go back would be to take
    the workspace back with it.
    """

    def __init__(self, cluster: Cluster, seen: Seen, lock: Lock, guests: Guests, has_disks: HasDisks) -> None:
        self._cluster, self._seen, self._lock, self._guests = cluster, seen, lock, guests
        self._has_disks = has_disks

    async def take(self, mark: Mark, name: str, *, memory: bool) -> None:
        """Of the disk."""
        async with self._lock(mark.sandbox), translated("snapshot"):
            record, status = await self._seen(mark)
            if memory:
                raise Refused("memory is not kept on this cluster", "Take a snapshot without memory.")
            if name in {each.name for each in await self._all(record)}:
                return
            if await self._has_disks(mark.sandbox):
                raise Refused("a workspace is plugged into it, which would be kept with it", "Detach the workspace.")
            await self._require_ours(mark, record)
            params = {"snapname": name_on_cluster(name), "description": describe(name, mark, self._cluster.clock.now())}
            doing, path = f"keeping VM {record.vmid}", self._cluster.path(record, "snapshot")
            async with self._still(mark.sandbox, status):
                await self._cluster.patiently(doing, "POST", path, params, SNAPSHOT_S_MAX)

    async def list(self, mark: Mark) -> Sequence[Snapshot]:
        """Oldest first."""
        async with translated("snapshots"):
            record, _ = await self._seen(mark)
            return await self._all(record)

    async def restore(self, mark: Mark, name: str) -> None:
        """Go back to it."""
        async with self._lock(mark.sandbox), translated("restore"):
            record, status = await self._seen(mark)
            if status in (VmStatus.RUNNING, VmStatus.PAUSED):
                raise Refused(f"{mark.sandbox} is {status.value}", "Stop it first.")
            if name not in {each.name for each in await self._all(record)}:
                raise Gone(f"{mark.sandbox} has no snapshot {name}", "See `agentlab sandbox snapshots`.")
            await self._require_ours(mark, record)
            # Its configuration becomes what it was, so that it has to be armed anew.
            record = await self._cluster.note(mark.sandbox, record, armed=False)
            path = self._cluster.path(record, "snapshot", name_on_cluster(name), "rollback")
            await self._cluster.patiently(f"taking VM {record.vmid} back", "POST", path, {}, SNAPSHOT_S_MAX)

    async def remove(self, mark: Mark, name: str) -> None:
        """Quiet if it is absent."""
        async with self._lock(mark.sandbox), translated("remove"):
            if not await in_thread(lambda: self._cluster.records.verify_home(mark)):
                return
            try:
                record, _ = await self._seen(mark)
            except Gone:
                return
            if name not in {each.name for each in await self._all(record)}:
                return
            await self._require_ours(mark, record)
            path = self._cluster.path(record, "snapshot", name_on_cluster(name))
            doing = f"removing a snapshot of VM {record.vmid}"
            await self._cluster.patiently(doing, "DELETE", path, {}, SNAPSHOT_S_MAX)

    async def _all(self, record: VmRecord) -> Sequence[Snapshot]:
        rows = await self._cluster.call("listing snapshots", "GET", self._cluster.path(record, "snapshot"))
        found = []
        for row in lenient.rows(rows):
            ours = read(lenient.text(row, "description"))
            if ours is not None and not lenient.text(row, "snapstate"):  # what is half made or half gone has a state
                found.append(
                    Snapshot(
                        name=ours.name,
                        memory=lenient.truth(row, "vmstate"),
                        bytes_count=0,  # the API does not tell
                        taken_at=ours.taken_at or lenient.number(row, "snaptime"),
                    )
                )
        return sorted(found, key=lambda each: (each.taken_at, each.name))

    async def _require_ours(self, mark: Mark, record: VmRecord) -> None:
        config = await self._cluster.config(record)
        if config is None:
            raise Gone(f"VM {record.vmid} of {mark.sandbox} is gone", "Something other than AgentLab removed it.")
        require_ours(mark, record, config)

    @asynccontextmanager
    async def _still(self, sandbox: SandboxId, status: VmStatus) -> AsyncIterator[None]:
        """What a running guest wrote is on its disk, which stands still; without its help, as after a power cut."""
        control = self._guests.linked(sandbox) if status is VmStatus.RUNNING else None
        if control is None:
            yield
            return
        try:
            await control.freeze(FREEZE_S_MAX)
        except BackendError as error:
            log.warning("guest did not freeze its disk", extra={"sandbox": sandbox, "cause": error.cause})
            yield
            return
        try:
            yield
        finally:
            await control.thaw()


def name_on_cluster(name: str) -> str:
    """At most 40 letters, digits, `_` and `-`, the first a letter."""
    return f"al_{hashlib.sha256(name.encode()).hexdigest()[:24]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What we wrote into a snapshot's description; `taken_at` 0 if it does not say."""

    name: str
    taken_at: float


def describe(name: str, mark: Mark, now: float) -> str:
    """What the snapshot is called, for us and for people; and when, as the cluster counts in whole seconds."""
    return json.dumps({_KEY: name, "sandbox": mark.sandbox, "taken_at": round(now, 3)}, separators=(",", ":"))


def read(description: str) -> Described | None:
    """What stands there; None if the snapshot is not one of ours."""
    try:
        found = json.loads(description)
        name, taken_at = found[_KEY], found.get("taken_at", 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(name, str):
        return None
    return Described(name=name, taken_at=float(taken_at) if isinstance(taken_at, int | float) else 0.0)
