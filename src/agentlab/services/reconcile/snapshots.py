"""Carries out the steps on snapshots, and writes what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agentlab.backends.interface import Backend, Snapshots, Unavailable
from agentlab.base.clock import Clock
from agentlab.model import event as facts
from agentlab.model.failure import Failure
from agentlab.model.ids import SandboxId
from agentlab.model.machine import SandboxState as S
from agentlab.model.machine import SnapshotState as K
from agentlab.model.sandbox import Sandbox, Wish
from agentlab.plan import steps as plan
from agentlab.plan.sandboxes import Seen
from agentlab.store import events, sandboxes, snapshots, steps
from agentlab.store.database import Database, Tx

WAIT_STEP = "snapshot"  # what a fork's steps say while its origin is being kept


class SnapshotSteps:
    """All are repeatable: what was done before a crash is found done, and the row follows what was done."""

    def __init__(self, *, database: Database, clock: Clock, backends: Mapping[str, Backend]) -> None:
        self._database, self._clock, self._backends = database, clock, backends

    def look(self, row: Sandbox, seen: Seen) -> Seen:
        """`seen` with what the store knows of its snapshots."""

        def read(tx: Tx) -> Seen:
            begins = row.source if row.state in (S.REQUESTED, S.PROVISIONING) else None
            source = None if begins is None else snapshots.get(tx, begins.mark.sandbox, begins.name)
            return replace(seen, due=snapshots.due(tx, row.id), source=source)

        return self._database.read(read)

    async def carry_out(self, row: Sandbox, step: plan.SnapshotStep) -> None:
        """Do it.  Raises what the backend raises."""
        held = self._backends[row.backend].snapshots
        assert held is not None, "a snapshot was accepted for a backend that has none"
        match step:
            case plan.TakeSnapshot(snapshot=name, memory=memory):
                await self._take(row, held, name, memory)
            case plan.RemoveSnapshot(snapshot=name):
                await held.remove(row.mark, name)
                await self._database.write(lambda tx: self._removed(tx, row, name))
            case plan.Restore(snapshot=name):
                await held.restore(row.mark, name)
                await self._database.write(lambda tx: self._restored(tx, row, name))
            case _:
                raise AssertionError(f"no way to carry out {step}")

    async def give_up(self, row: Sandbox, step: plan.SnapshotStep, failure: Failure) -> None:
        """Write that it did not succeed; the sandbox stays as it is."""

        def write(tx: Tx) -> None:
            if isinstance(step, plan.Restore):
                self._not_restored(tx, row, step.snapshot, failure)
                return
            current = snapshots.get(tx, row.id, step.snapshot)
            if current is None:
                return
            # A removal that is refused leaves what was there, for the user to see; it is not tried again unasked.
            removing = isinstance(step, plan.RemoveSnapshot)
            to = K.READY if removing and current.taken_at is not None else K.FAILED
            if not removing and current.state is not K.REQUESTED:
                to = current.state  # its removal was asked for meanwhile
            transient = current.transient and not removing
            snapshots.transition(tx, row.id, step.snapshot, to, failure=failure, transient=transient)
            fact = facts.SnapshotFailed(
                subject=row.id, name=step.snapshot, step=failure.step, cause=failure.cause, remedy=failure.remedy
            )
            events.append(tx, fact, self._clock.now())
            self._tell_forks(tx, row.id, step.snapshot, "failed", failure.cause)

        await self._database.write(write)

    async def _take(self, row: Sandbox, held: Snapshots, name: str, memory: bool) -> None:
        await held.take(row.mark, name, memory=memory)
        taken = next((each for each in await held.list(row.mark) if each.name == name), None)
        if taken is None:
            raise Unavailable(f"snapshot {name} was taken and is not there", "See the daemon's log; take it again.")

        def write(tx: Tx) -> None:
            current = snapshots.get(tx, row.id, name)
            if current is None or current.taken_at is not None:
                return
            to = K.READY if current.state is K.REQUESTED else current.state  # its removal was asked for meanwhile
            changes = {"taken_at": taken.taken_at, "bytes_count": taken.bytes_count, "failure": None}
            snapshots.transition(tx, row.id, name, to, **changes)
            fact = facts.SnapshotTaken(subject=row.id, name=name, memory=taken.memory, bytes_count=taken.bytes_count)
            events.append(tx, fact, self._clock.now())
            self._tell_forks(tx, row.id, name, "done", "")

        await self._database.write(write)

    def _tell_forks(self, tx: Tx, origin: SandboxId, name: str, outcome: str, detail: str) -> None:
        for fork in snapshots.waiting_forks(tx, origin, name):
            steps.finish_running(tx, fork, WAIT_STEP, outcome, self._clock.now(), detail)

    def _removed(self, tx: Tx, row: Sandbox, name: str) -> None:
        current = snapshots.get(tx, row.id, name)
        asked = current is None or current.state is K.REMOVING
        snapshots.remove(tx, row.id, name, self._clock.now(), "asked for" if asked else "no fork needs it any more")

    def _restored(self, tx: Tx, row: Sandbox, name: str) -> None:
        current = sandboxes.get(tx, row.id)
        assert current is not None
        if current.restore_to == name:  # another may be wanted by now
            sandboxes.update(tx, row.id, restore_to=None, failure=None)
        events.append(tx, facts.SandboxRestored(subject=row.id, snapshot=name), self._clock.now())

    def _not_restored(self, tx: Tx, row: Sandbox, name: str, failure: Failure) -> None:
        current = sandboxes.get(tx, row.id)
        assert current is not None
        if current.restore_to != name:
            return
        # What was there before is still its disk.  Running on with it unasked would look like success.
        wish = current.wish if current.wish is Wish.DESTROYED else Wish.STOPPED
        sandboxes.update(tx, row.id, restore_to=None, wish=wish, failure=failure)
        fact = facts.SandboxFailed(subject=row.id, step=failure.step, cause=failure.cause, remedy=failure.remedy)
        events.append(tx, fact, self._clock.now())
