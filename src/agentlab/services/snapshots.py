"""Snapshots, restores and forks: what a request for one means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from agentlab.backends.interface import Capability
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.errors import (
    BackendUnusable,
    Invalid,
    LimitReached,
    SandboxHasJob,
    SnapshotExists,
    SnapshotUnusable,
    WrongState,
)
from agentlab.model import event as facts
from agentlab.model.ids import NAME_LENGTH_MAX, SandboxId, is_name
from agentlab.model.lease import Lease
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import SandboxState as S
from agentlab.model.machine import SnapshotState as K
from agentlab.model.sandbox import Sandbox, SnapshotOf, Wish
from agentlab.model.snapshot import SnapshotRecord
from agentlab.services.events import Events
from agentlab.services.limits import Limits
from agentlab.services.requests import Idempotency, NewForks, NewSnapshot
from agentlab.services.sandboxes import Sandboxes, checked_ttl
from agentlab.services.wake import Wake
from agentlab.store import events, idempotency, jobs, sandboxes, snapshots, steps
from agentlab.store.database import Database, Tx

RUNS = (S.READY, S.PAUSED)
AT_REST = (*RUNS, S.STOPPED)
SEVERAL = ","  # between the ids that an idempotency key remembers


class Snapshots:
    """Records what is wanted, in one transaction with its event, and returns; the reconciler does the rest."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        sandboxes: Sandboxes,
        limits: Limits,
        wake: Wake,
        log: Events,
    ) -> None:
        self._database, self._clock, self._entropy = database, clock, entropy
        self._sandboxes, self._limits, self._wake, self._log = sandboxes, limits, wake, log

    async def take(self, sandbox: SandboxId, request: NewSnapshot, key: Idempotency | None = None) -> SnapshotRecord:
        """Record the desire for a snapshot; it is `requested` on return.

        Raises Invalid, SnapshotExists, LimitReached, WrongState, LeaseExpired, SandboxHasJob, BackendUnusable.
        """

        def write(tx: Tx) -> SnapshotRecord:
            if (known := _recalled(tx, key)) is not None:
                return snapshots.find(tx, sandbox, known)
            row = self._living(tx, sandbox)
            name = request.name or f"s-{self._entropy.word(6)}"
            if not is_name(name):
                raise Invalid(cause=f"name: {name!r} is not a name: lower-case letters, digits and inner dashes")
            record = self._insert(tx, row, name, memory=request.memory)
            self._remember(tx, key, record.name)
            return record

        record = await self._database.write(write)
        self._wake.sandbox(sandbox)
        return record

    def list(self, sandbox: SandboxId) -> Sequence[SnapshotRecord]:
        """All that are wanted, kept, or could not be taken, in the order in which they were asked for."""
        return self._database.read(lambda tx: snapshots.of(tx, sandbox))

    async def wait_settled(self, sandbox: SandboxId, timeout_s: float) -> Sequence[SnapshotRecord]:
        """The same once none is being taken or removed, or waits for forks; as they are after `timeout_s`."""
        return await self._log.wait_until(sandbox, lambda tx: snapshots.of(tx, sandbox), _settled, timeout_s)

    async def remove(self, sandbox: SandboxId, name: str, key: Idempotency | None = None) -> bool:
        """Record that it is not wanted any more; whether that is news.

        Raises SnapshotNotFound, SnapshotUnusable, WrongState, LeaseExpired.
        """

        def write(tx: Tx) -> bool:
            if _recalled(tx, key) is not None:
                return True
            record = snapshots.find(tx, sandbox, name)
            self._remember(tx, key, name)
            if record.state is K.REMOVING:
                return False
            row = self._living(tx, sandbox)
            if row.restore_to == name:
                _unusable(record, "removed", "its sandbox is being restored to it")
            if waiting := snapshots.waiting_forks(tx, sandbox, name):
                _unusable(record, "removed", f"{waiting[0]} is being made from it")
            snapshots.transition(tx, sandbox, name, K.REMOVING)
            return True

        changed = await self._database.write(write)
        self._wake.sandbox(sandbox)
        return changed

    async def restore(self, sandbox: SandboxId, name: str, key: Idempotency | None = None) -> Sandbox:
        """Record that it shall be again what it was: one that runs runs again, one that is stopped stays so.

        Raises SnapshotNotFound, SnapshotUnusable, WrongState, LeaseExpired, SandboxHasJob, BackendUnusable.
        """

        def write(tx: Tx) -> Sandbox:
            row = sandboxes.get(tx, sandbox)
            assert row is not None
            if _recalled(tx, key) is not None:
                return row
            self._check(tx, row, Capability.SNAPSHOT)
            _check_no_job(tx, row, "restored")
            if row.state not in (*AT_REST, S.STOPPING, S.STARTING):
                raise WrongState(noun="sandbox", name=row.id, state=row.state, needed="ready, paused or stopped")
            record = snapshots.find(tx, sandbox, name)
            if record.state not in (K.READY, K.REQUESTED):
                _unusable(record, "restored", f"it is {record.state}")
            wish = Wish.RUNNING if row.wish is Wish.PAUSED else row.wish
            self._remember(tx, key, row.id)
            return sandboxes.update(tx, sandbox, restore_to=name, wish=wish)

        row = await self._database.write(write)
        self._wake.sandbox(sandbox)
        return row

    async def make_forks(
        self, identity: str, sandbox: SandboxId, request: NewForks, key: Idempotency | None = None
    ) -> Sequence[Sandbox]:
        """Record the desire for new sandboxes that begin as this one is, or as its snapshot has it.

        Without a snapshot one is taken for the purpose, with memory if it runs, and removed once they are ready.
        Raises what `take` and a new sandbox raise, SnapshotNotFound and SnapshotUnusable.
        """

        def write(tx: Tx) -> Sequence[Sandbox]:
            if (known := _recalled(tx, key)) is not None:
                return [row for id in known.split(SEVERAL) if (row := sandboxes.get(tx, id)) is not None]
            origin = sandboxes.get(tx, sandbox)
            assert origin is not None
            self._check(tx, origin, Capability.FORK)
            if not 1 <= request.count <= self._limits.forks_max:
                raise LimitReached(
                    limit_name="forks_max",
                    limit=self._limits.forks_max,
                    cause=f"{request.count} forks were asked for",
                    what_to_do="Ask for fewer at once, or raise the setting.",
                )
            names = _fork_names(request)
            record = self._source(tx, origin, request.snapshot)
            made = [self._fork(tx, identity, origin, record, name, request.ttl_s) for name in names]
            self._remember(tx, key, SEVERAL.join(row.id for row in made))
            return made

        made = await self._database.write(write)
        for each in (sandbox, *(row.id for row in made)):
            self._wake.sandbox(each)
        return made

    def _source(self, tx: Tx, origin: Sandbox, name: str | None) -> SnapshotRecord:
        _check_no_job(tx, origin, "forked")
        if name is not None:
            record = snapshots.find(tx, origin.id, name)
            if record.state not in (K.READY, K.REQUESTED):
                _unusable(record, "forked", f"it is {record.state}")
            return record
        capable = self._sandboxes.backend(origin.backend)[1].probe.capabilities
        memory = origin.state in RUNS and Capability.MEMORY_SNAPSHOT in capable
        return self._insert(tx, origin, f"fork-{self._entropy.word(6)}", memory=memory, transient=True)

    def _insert(self, tx: Tx, row: Sandbox, name: str, *, memory: bool, transient: bool = False) -> SnapshotRecord:
        self._check(tx, row, Capability.MEMORY_SNAPSHOT if memory else Capability.SNAPSHOT)
        if row.restore_to is not None:
            raise WrongState(noun="sandbox", name=row.id, state="being restored", needed="ready, paused or stopped")
        if row.state not in (RUNS if memory else AT_REST):
            needed = "ready or paused" if memory else "ready, paused or stopped"
            raise WrongState(noun="sandbox", name=row.id, state=row.state, needed=needed)
        if memory:
            _check_no_job(tx, row, "kept with its memory")
        if (known := snapshots.get(tx, row.id, name)) is not None:
            raise SnapshotExists(name=name, sandbox=row.id, state=known.state)
        if len(snapshots.of(tx, row.id)) >= self._limits.snapshots_max:
            raise LimitReached(
                limit_name="snapshots_max",
                limit=self._limits.snapshots_max,
                cause=f"sandbox {row.id} has this many snapshots already",
                what_to_do=f"Remove one (`agentlab sandbox snapshots {row.id}`), or raise the setting.",
            )
        record = SnapshotRecord(
            sandbox=row.id,
            name=name,
            state=K.REQUESTED,
            memory=memory,
            transient=transient,
            requested_at=self._clock.now(),
        )
        snapshots.insert(tx, record)
        return record

    def _fork(
        self, tx: Tx, owner: str, origin: Sandbox, record: SnapshotRecord, name: str | None, ttl_s: float | None
    ) -> Sandbox:
        now = self._clock.now()
        lease = Lease(until=origin.lease.until if ttl_s is None else now + checked_ttl(ttl_s))
        mark, slot = self._sandboxes.place(tx, self._sandboxes.backend(origin.backend)[1].network)
        row = replace(
            origin,
            id=mark.sandbox,
            name=name,
            owner=owner,
            wish=Wish.RUNNING,
            state=S.REQUESTED,
            mark=mark,
            slot=slot,
            lease=lease,
            created_at=now,
            job=None,
            keepalive=False,
            failure=None,
            ready_at=None,
            lease_warned_s=lease.warning_due(now),
            source=SnapshotOf(mark=origin.mark, name=record.name),
            restore_to=None,
        )
        self._sandboxes.record(tx, row)
        if record.state is K.REQUESTED:
            steps.begin(tx, row.id, "provision", "snapshot", now, f"waits for snapshot {record.name} of {origin.id}")
        events.append(tx, facts.SandboxForked(subject=row.id, origin=origin.id, snapshot=record.name), now)
        return row

    def _living(self, tx: Tx, sandbox: SandboxId) -> Sandbox:
        row = sandboxes.get(tx, sandbox)
        assert row is not None
        self._sandboxes.check_living(row)
        return row

    def _check(self, tx: Tx, row: Sandbox, needed: Capability) -> None:
        self._sandboxes.check_living(row)
        if needed not in self._sandboxes.backend(row.backend)[1].probe.capabilities:
            raise BackendUnusable(
                backend=row.backend,
                cause=f"it lacks the capability {needed}",
                what_to_do="`agentlab backend list` shows which backend has it; make the sandbox with `--backend`.",
            )

    def _remember(self, tx: Tx, key: Idempotency | None, response: str) -> None:
        if key is not None:
            idempotency.remember(tx, key.owner, key.key, key.fingerprint, response, self._clock.now())


def _recalled(tx: Tx, key: Idempotency | None) -> str | None:
    return None if key is None else idempotency.recall(tx, key.owner, key.key, key.fingerprint)


def _check_no_job(tx: Tx, row: Sandbox, what: str) -> None:
    job = None if row.job is None else jobs.get(tx, row.job)
    if job is not None and job.state not in JOB_FINAL:
        raise SandboxHasJob(name=row.name or row.id, what=what, job=job.id, state=job.state)


def _fork_names(request: NewForks) -> list[str | None]:
    if request.name is None:
        return [None] * request.count
    names = [f"{request.name}-{number}" for number in range(1, request.count + 1)]
    if not all(is_name(each) for each in names):
        raise Invalid(
            cause=f"name: {names[-1]!r} is not a name: lower-case letters, digits and dashes, "
            f"with its number at most {NAME_LENGTH_MAX}"
        )
    return list[str | None](names)


def _settled(records: Sequence[SnapshotRecord]) -> bool:
    return all(record.state in (K.READY, K.FAILED) and not record.transient for record in records)


def _unusable(record: SnapshotRecord, what: str, cause: str) -> NoReturn:
    raise SnapshotUnusable(name=record.name, sandbox=record.sandbox, what=what, cause=cause)
