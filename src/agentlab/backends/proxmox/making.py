"""Making a sandbox's VM: a number of ours, a node, a clone; resumed wherever it was interrupted.

The number is written down before the clone is asked for, and the clone bears our mark from its first moment.  A lost
answer says nothing: what is there decides.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from agentlab.backends.interface import Gone, NotOurs, Refused, Unavailable
from agentlab.backends.proxmox import encode, lenient
from agentlab.backends.proxmox.answers import NoAnswer, ProxmoxError
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.failures import Kind, kind_of, translated
from agentlab.backends.proxmox.observe import VmStatus
from agentlab.backends.proxmox.ownership import Whose, describe, is_ours
from agentlab.backends.proxmox.placement import Booked, Copy, Placement, Wanted, place
from agentlab.backends.proxmox.records import VmRecord
from agentlab.backends.proxmox.tasks import Upid
from agentlab.backends.proxmox.vmids import free_vmid
from agentlab.base.entropy import Entropy
from agentlab.base.tasks import in_thread
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark, SandboxSpec

log = logging.getLogger(__name__)

NUMBERS_TRIED_MAX = 8  # of one sandbox, when others take them at the same moment
CLONE_S_MAX = 1800.0  # a full copy may take that long
MAKE_S_MAX = 2 * CLONE_S_MAX
CopiesOf = Callable[[SandboxSpec], Awaitable[Sequence[Copy]]]


class Clone(enum.Enum):
    """What became of a clone that was asked for."""

    MADE = "made"
    ABSENT = "absent"
    TAKEN = "taken"  # its number is somebody else's


class Maker:
    """Makes VMs.  `copies_of` tells where the template of a sandbox lies on the cluster."""

    def __init__(self, cluster: Cluster, entropy: Entropy, copies_of: CopiesOf) -> None:
        self._cluster, self._entropy, self._copies_of = cluster, entropy, copies_of
        self._told_full = False

    async def make(self, spec: SandboxSpec, record: VmRecord | None) -> VmRecord:
        """The sandbox's VM, cloned and stopped.  `record` is what an earlier try left."""
        for _ in range(NUMBERS_TRIED_MAX):
            if record is not None:
                outcome = await self._outcome(spec.mark, record)
                if outcome is Clone.MADE:
                    return await self._cluster.note(spec.mark.sandbox, record, made=True, upid="")
                if outcome is Clone.TAKEN:
                    record = None
            try:
                return await self._clone(spec, record)
            except _Taken:
                record = None  # somebody else was faster
        raise Unavailable(
            f"{NUMBERS_TRIED_MAX} VMIDs of {self._cluster.plan.vmids} were taken by others at the same moment",
            "Keep other programs out of the range `backends.proxmox.vmids`.",
        )

    async def _clone(self, spec: SandboxSpec, record: VmRecord | None) -> VmRecord:
        cluster, mark = self._cluster, spec.mark
        placement = await self._placed(spec)
        slot = cluster.clone_slot(placement.storage)
        async with slot:
            record = await self._reserved(spec, placement, record)
            copy = placement.copy
            params: dict[str, encode.Value] = {
                "newid": record.vmid,
                "name": mark.sandbox,
                "description": describe(mark),
                "pool": cluster.plan.pool,
                "full": placement.full,
                "storage": placement.storage if placement.full else None,
                "target": record.node if record.node != copy.node else None,
            }
            doing = f"cloning template {copy.vmid} to VM {record.vmid}"
            try:
                answer = await cluster.transport.call(
                    "POST", encode.path("nodes", copy.node, "qemu", copy.vmid, "clone"), params
                )
            except ProxmoxError as error:
                await self._refused(mark, record, error, doing)
                raise AssertionError("unreachable") from error
            upid = Upid.parse(answer)
            record = await cluster.note(mark.sandbox, record, upid=upid.text)
            end = await cluster.tasks.wait(upid, CLONE_S_MAX)
        if not end.ok:
            await cluster.note(mark.sandbox, record, upid="")
            if end.kind is Kind.EXISTS and await self._outcome(mark, record) is not Clone.MADE:
                raise _Taken
            raise end.failure(doing, cluster.grantee)
        cluster.know(mark.sandbox, VmStatus.STOPPED)
        cluster.placed(record)
        return await cluster.note(mark.sandbox, record, made=True, upid="")

    async def _refused(self, mark: Mark, record: VmRecord, error: ProxmoxError, doing: str) -> None:
        """Raise what the failed call means."""
        if kind_of(error) is Kind.EXISTS:
            # Perhaps it is what an earlier call made whose answer was lost.
            if await self._outcome(mark, record) is Clone.MADE:
                raise Unavailable(f"{doing}: an earlier try has made it", "The next try goes on with it.") from error
            raise _Taken from error
        if isinstance(error, NoAnswer) and error.sent:
            log.warning("answer to a clone was lost", extra={"sandbox": mark.sandbox, "vmid": record.vmid})
        raise translated(error, doing, self._cluster.grantee) from error

    async def _placed(self, spec: SandboxSpec) -> Placement:
        copies = await self._copies_of(spec)
        view = await self._cluster.recent()
        wanted = _wanted(spec)
        booked = await in_thread(lambda: self._booked(spec.mark.sandbox))
        found = place(wanted, copies, view, booked, self._cluster.plan.policy)
        if found.full and not self._told_full:
            self._told_full = True
            log.warning("clones are full copies, which take long", extra={"storage": found.storage, "why": found.why})
        return found

    async def _reserved(self, spec: SandboxSpec, placement: Placement, former: VmRecord | None) -> VmRecord:
        """A number that is written down as ours.  No two are chosen at once: nothing is awaited before the record."""
        wanted, cluster = _wanted(spec), self._cluster
        if former is not None:
            vmid = former.vmid
        else:
            used = cluster.view.vmids if cluster.view is not None else frozenset()
            reserved = {*cluster.records.vmids(), *cluster.plan.templates.values()}
            vmid = free_vmid(
                cluster.plan.vmids, used, reserved, self._entropy.fraction(), setting="backends.proxmox.vmids"
            )
        record = VmRecord(
            vmid=vmid,
            node=placement.node,
            template=placement.copy.vmid,
            asked=placement.copy.node,
            storage=placement.storage,
            memory_bytes=wanted.memory_bytes,
            cpus=wanted.cpus,
            disk_bytes=wanted.disk_bytes,
            why=placement.why,
        )
        return cluster.records.write(spec.mark.sandbox, record)

    def _booked(self, besides: SandboxId) -> list[Booked]:
        return [
            Booked(
                vmid=record.vmid,
                node=record.node,
                storage=record.storage,
                memory_bytes=record.memory_bytes,
                cpus=record.cpus,
                disk_bytes=record.disk_bytes,
            )
            for mark, record in self._cluster.records.all()
            if record is not None and mark.sandbox != besides
        ]

    async def _outcome(self, mark: Mark, record: VmRecord) -> Clone:
        """What is there of a clone that was asked for.  Unavailable while it is still being made."""
        if await self.ended(record):
            return Clone.MADE
        await self.require_idle(record)  # first: once nothing works on it, what is there stays as it is
        config = await self._cluster.config(record)
        if config is None:
            return Clone.ABSENT
        verdict = is_ours(config, mark, record.recorded, record.vmid)
        if verdict.whose is Whose.FOREIGN:
            return Clone.TAKEN
        if verdict.whose is Whose.UNDECIDED or config.get("lock") in ("clone", "create"):
            raise half_cloned(record, self._cluster.node_of(record))
        return Clone.MADE

    async def ended(self, record: VmRecord) -> bool:
        """Wait for the end of the clone's task, if one is noted; whether it ended well.  Unavailable if it goes on."""
        if not record.upid:
            return False
        try:
            return (await self._cluster.tasks.wait(Upid.parse(record.upid), CLONE_S_MAX)).ok
        except Gone:
            return False  # nobody knows of it any more: what is there decides

    async def require_idle(self, record: VmRecord) -> None:
        """Unavailable while a clone runs that may be ours: it shows nothing of itself until it has ended."""
        path = encode.path("nodes", record.asked or record.node, "tasks")
        params: encode.Params = {"source": "active", "typefilter": "qmclone"}
        rows = await self._cluster.call("looking for the clone's task", "GET", path, params)
        user = self._cluster.grantee.user
        mine = [
            row for row in lenient.rows(rows) if lenient.text(row, "user").startswith(user) and not row.get("endtime")
        ]
        if mine:
            raise Unavailable(f"VM {record.vmid} may still be being cloned", "The next try sees what became of it.")


class _Taken(Exception):
    """The number belongs to somebody else."""


def _wanted(spec: SandboxSpec) -> Wanted:
    resources = spec.resources
    return Wanted(memory_bytes=resources.memory_bytes, cpus=resources.cpus, disk_bytes=resources.disk_bytes)


def half_cloned(record: VmRecord, node: str) -> Refused:
    """No token may remove what a clone left that died."""
    return Refused(
        f"VM {record.vmid} is half cloned, and no task works on it any more",
        f"As root on {node}: qm unlock {record.vmid} && qm destroy {record.vmid} --purge",
    )


def require_ours(mark: Mark, record: VmRecord, config: Mapping[str, object]) -> None:
    """Return if the VM is seen to be ours.  NotOurs or Unavailable otherwise: nothing is to be touched."""
    verdict = is_ours(config, mark, record.recorded, record.vmid)
    if verdict.whose is Whose.UNDECIDED:
        raise Unavailable(verdict.reason, "The next look decides.")
    if not verdict.may_be_destroyed:
        raise NotOurs(verdict.reason, "Nothing was touched.  See who has changed or replaced it.")
