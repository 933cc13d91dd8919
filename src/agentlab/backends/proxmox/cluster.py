"""The cluster as the backend's parts use it: calls about one VM, and what was last seen of all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from agentlab.backends.interface import BackendError, Gone, Refused, Unavailable
from agentlab.backends.proxmox import encode, lenient
from agentlab.backends.proxmox.answers import ProxmoxError
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.failures import Kind, kind_of, translated
from agentlab.backends.proxmox.observe import ClusterView, VmStatus, observe
from agentlab.backends.proxmox.plan import ClusterPlan
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.records import Records, VmRecord
from agentlab.backends.proxmox.tasks import TaskEnd, Tasks, Upid
from agentlab.backends.proxmox.transport import Transport
from agentlab.base.clock import Clock, sleep
from agentlab.base.tasks import in_thread
from agentlab.model.ids import SandboxId

log = logging.getLogger(__name__)

VIEW_S_MAX = 15.0  # how old a view of the cluster may be that a sandbox is placed by
KNOWN_S_MAX = 2.0  # how long what one of our own calls has done to a VM is taken for what would be seen
BUSY_S_MAX = 60.0  # a lock may be held for 30 s after a stop; longer than that is told
BUSY_PAUSE_S = 1.0
T = TypeVar("T")


class Cluster:
    """`plan` says what may be used of it.  Raises BackendError's subclasses for all that the cluster says."""

    def __init__(
        self, transport: Transport, plan: ClusterPlan, records: Records, clock: Clock, grantee: Grantee
    ) -> None:
        self.transport, self.plan, self.records, self.clock, self.grantee = transport, plan, records, clock, grantee
        self.tasks = Tasks(transport, clock)
        self.view: ClusterView | None = None
        self._seen_at = 0.0  # of the view, by the monotonic clock
        self._looking = asyncio.Lock()
        self._known: dict[SandboxId, tuple[VmStatus, float]] = {}
        self._where: dict[int, str] = {}  # the node of each VM that was seen: they move without us
        self._clones: dict[str, asyncio.Semaphore] = {}
        self._noting = asyncio.Lock()

    # All of it

    async def look(self) -> ClusterView:
        """Two calls, whatever the number of VMs."""
        async with self._looking:
            with_errors = translating("looking at the cluster", self.grantee)
            async with with_errors:
                began = self.clock.monotonic()
                self.view = await observe(self.transport, self.clock.now())
                self._seen_at = began
                self._where = {vm.vmid: vm.node for vm in self.view.vms.values()}
            return self.view

    async def recent(self) -> ClusterView:
        """What was seen within VIEW_S_MAX, or is seen now."""
        if self.view is None or self.clock.monotonic() - self._seen_at > VIEW_S_MAX:
            return await self.look()
        return self.view

    def clone_slot(self, storage: str) -> asyncio.Semaphore:
        """Clones of one storage wait for each other's lock there, at most 10 s; so they wait here."""
        return self._clones.setdefault(storage, asyncio.Semaphore(self.plan.clones_per_storage_max))

    # Calls

    async def call(self, doing: str, method: str, path: str, params: Params | None = None) -> object:
        """The answer's data."""
        async with translating(doing, self.grantee):
            return await self.transport.call(method, path, params)

    async def run(self, doing: str, method: str, path: str, params: Params | None, limit_s: float) -> TaskEnd:
        """A call that begins a task, and the task's good end."""
        return await self.finished(doing, await self.call(doing, method, path, params), limit_s)

    async def finished(self, doing: str, answer: object, limit_s: float) -> TaskEnd:
        """The good end of the task that a call answered with."""
        try:
            upid = Upid.parse(answer)
        except ValueError as error:
            raise BackendError(f"{doing}: the cluster answered without a task: {error}") from error
        end = await self.tasks.done(upid, limit_s, doing, self.grantee)
        if end.warnings:
            log.warning("task ended with warnings", extra={"doing": doing, "log": " / ".join(end.log_tail)})
        return end

    async def patiently(self, doing: str, method: str, path: str, params: Params | None, limit_s: float) -> TaskEnd:
        """As `run`, again and again while the VM is locked by something that passes, for BUSY_S_MAX.

        Only for what may be repeated: after a stop or a wake-up the lock was seen to be held for 30 s.
        """
        began = self.clock.monotonic()
        while True:
            try:
                answer = await self.transport.call(method, path, params)
                end = await self.tasks.wait(Upid.parse(answer), limit_s)
                kind = end.kind
                if kind is None:
                    return end
                failure: BackendError = end.failure(doing, self.grantee)
            except ProxmoxError as error:
                kind, failure = kind_of(error), translated(error, doing, self.grantee)
            except ValueError as error:
                raise BackendError(f"{doing}: the cluster answered without a task: {error}") from error
            if kind not in (Kind.BUSY, Kind.WORKER_DIED) or self.clock.monotonic() - began > BUSY_S_MAX:
                raise failure
            await sleep(BUSY_PAUSE_S)

    # One VM

    def path(self, record: VmRecord, *rest: str | int) -> str:
        """Of a VM, where it was last seen."""
        return encode.path("nodes", self.node_of(record), "qemu", record.vmid, *rest)

    def node_of(self, record: VmRecord) -> str:
        """Where it was last seen; where it was made, if it was not seen since."""
        return self._where.get(record.vmid, record.node)

    def placed(self, record: VmRecord) -> None:
        """It has just been made where its record says; while it was, it was seen beside its template."""
        self._where[record.vmid] = record.node

    async def config(self, record: VmRecord) -> Mapping[str, object] | None:
        """Its configuration as it will be at the next start; None if there is no such VM."""
        return await self._of_vm(record, "config", "reading its configuration")

    async def current_config(self, record: VmRecord) -> Mapping[str, object] | None:
        """Its configuration as it is: what is wished away and has not gone is there; None if there is no such VM."""
        return await self._of_vm(record, "config", "reading its configuration", {"current": True})

    async def status(self, sandbox: SandboxId, record: VmRecord) -> VmStatus | None:
        """Its power now, or as one of our own calls has just made it; None if there is no such VM.

        To a token a VM that is gone and one that it may not see are the same.  So absence is believed only if the
        token still has its right to look at the pool.
        """
        known = self._known.get(sandbox)
        if known is not None and self.clock.monotonic() - known[1] < KNOWN_S_MAX:
            return known[0]
        answer = await self._of_vm(record, "status/current", "looking at it")
        if answer is None:
            self._known.pop(sandbox, None)
            return None
        return self.know(sandbox, power_of(answer))

    def know(self, sandbox: SandboxId, status: VmStatus) -> VmStatus:
        """One of our calls has made it so."""
        self._known[sandbox] = (status, self.clock.monotonic())
        return status

    def forget(self, sandbox: SandboxId) -> None:
        """What is known of its power is worth nothing."""
        self._known.pop(sandbox, None)

    def seen(self, sandbox: SandboxId, record: VmRecord) -> VmStatus | None:
        """By the last view of the cluster, or what is known since; None if it is not in the view."""
        known = self._known.get(sandbox)
        if known is not None and known[1] >= self._seen_at:
            return known[0]
        row = self.view.vms.get(record.vmid) if self.view is not None else None
        return None if row is None else row.status

    async def note(self, sandbox: SandboxId, record: VmRecord, **changes: object) -> VmRecord:
        """Write changes to what stands written; durable on return.  Somebody else may have noted something since."""
        async with self._noting:
            return await in_thread(lambda: self.records.change(sandbox, record, changes))

    async def _of_vm(
        self, record: VmRecord, what: str, doing: str, params: Params | None = None
    ) -> Mapping[str, object] | None:
        """Asked where it is; if it has been moved, asked again there."""
        for again in (False, True):
            asked = self.node_of(record)
            try:
                return lenient.row(await self.transport.call("GET", self.path(record, *what.split("/")), params))
            except ProxmoxError as error:
                failure, kind = translated(error, f"{doing} (VM {record.vmid})", self.grantee), kind_of(error)
                if again or kind not in (Kind.GONE, Kind.PRIVILEGE, Kind.NODE_DOWN, Kind.MISSING):
                    raise failure from error
            row = (await self.look()).vms.get(record.vmid)
            if row is None and kind is not Kind.NODE_DOWN:
                await self._require_sight()
                return None
            if row is None or row.node == asked:
                raise _unless_gone(failure, record, asked)
        raise AssertionError("unreachable")

    async def _require_sight(self) -> None:
        """Refused if the token may not see the pool: then nothing can be said of what is not seen."""
        where = f"/pool/{self.plan.pool}"
        found = await self.call("asking for our rights", "GET", "/access/permissions", {"path": where})
        held = lenient.row(found).get(where)
        if not isinstance(held, Mapping) or "VM.Audit" not in held:
            raise Refused(
                f"the token may not see the VMs of {where}: the cluster shows none of them",
                "`agentlab doctor` names each missing privilege and the command that grants it.",
            )


def _unless_gone(failure: BackendError, record: VmRecord, node: str) -> BackendError:
    """What is still to be seen is not gone, whatever the words were: it is being moved, made or removed."""
    if isinstance(failure, Gone):
        return Unavailable(f"{failure.cause}; the cluster still shows it on {node}", "The next look decides.")
    return failure


def power_of(answer: Mapping[str, object]) -> VmStatus:
    """What `status/current` tells."""
    if answer.get("lock") == "suspended":
        return VmStatus.HIBERNATED
    if answer.get("status") != "running":
        return VmStatus.STOPPED if answer.get("status") == "stopped" else VmStatus.UNKNOWN
    return VmStatus.PAUSED if answer.get("qmpstatus") in ("paused", "suspended") else VmStatus.RUNNING


@asynccontextmanager
async def translating(doing: str, grantee: Grantee) -> AsyncIterator[None]:
    """ProxmoxError, said in the terms of the backend contract."""
    try:
        yield
    except ProxmoxError as error:
        raise translated(error, doing, grantee) from error
