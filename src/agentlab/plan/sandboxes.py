"""Pure: what one sandbox needs next, from what is wanted and what is seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentlab.model.machine import SandboxState as S
from agentlab.model.machine import SnapshotState
from agentlab.model.sandbox import Observed, Power, Sandbox, SnapshotOf, Wish
from agentlab.model.snapshot import SnapshotRecord
from agentlab.plan.steps import (
    Arm,
    Create,
    Destroy,
    Detach,
    EndLease,
    Fail,
    Move,
    Pause,
    Policy,
    RemoveSnapshot,
    Restore,
    Resume,
    Start,
    Step,
    Stop,
    TakeSnapshot,
)

AT_REST = (S.READY, S.PAUSED, S.STOPPED)  # when snapshots can be taken and removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was observed of one sandbox just now."""

    observed: Observed | None
    linked: bool  # the network holds something for it
    policed: bool  # its policy has been read back for the network namespace that it has now
    held: bool = False  # an unfinished job still has work in it
    due: SnapshotRecord | None = None  # the first of its snapshots that has to be taken or removed
    source: SnapshotRecord | None = None  # what a fork begins as, if that is known


def next_step(row: Sandbox, seen: Seen, now: float) -> Step | None:
    """The one step that brings this sandbox closer to what is wanted; None when it is there, or must wait."""
    if row.state is S.DESTROYED:
        return None
    if seen.observed is not None and seen.observed.mark != row.mark:
        # Something foreign bears its id.  It counts as absent for removal, and nothing is built on it.
        seen = replace(seen, observed=None, policed=False)
        if row.state in (S.REQUESTED, S.PROVISIONING, S.STARTING) and row.wish is not Wish.DESTROYED:
            return Fail(
                cause=f"something that bears another mark exists under the id {row.id}",
                remedy="Look at it with the backend's own tools; AgentLab will not touch it.",
            )
    if row.wish is Wish.DESTROYED or row.state is S.DESTROYING:
        return _towards_destroyed(row, seen)
    if now >= row.lease.until:
        return None if seen.held else EndLease()
    if row.state is S.FAILED:
        return _remove(seen)
    if row.state in (S.REQUESTED, S.PROVISIONING, S.STARTING):
        return _towards_ready(row, seen)
    if (step := _on_snapshots(row, seen)) is not None:
        return step
    if row.restore_to is not None:
        return _towards_stopped(row, seen) or Restore(snapshot=row.restore_to)
    if row.wish is Wish.STOPPED or row.state is S.STOPPING:
        return _towards_stopped(row, seen)
    if row.wish is Wish.PAUSED:
        return _towards_paused(row, seen)
    return _stay_running(row, seen)


def _remove(seen: Seen) -> Step | None:
    if seen.observed is not None:
        return Destroy()
    return Detach() if seen.linked else None


def _towards_destroyed(row: Sandbox, seen: Seen) -> Step | None:
    if row.state is not S.DESTROYING and seen.held:
        # Work is never lost: the job in it is told to stop, and tear-down waits for its harvest or its limit.
        # The network is not needed for that; a quarantined sandbox loses it here.
        return Detach() if seen.linked else None
    if row.state is not S.DESTROYING:
        return Move(to=S.DESTROYING, reason=row.ended_reason)
    return _remove(seen) or Move(to=S.DESTROYED, reason=row.ended_reason)


def _towards_ready(row: Sandbox, seen: Seen) -> Step | None:
    if row.state is S.REQUESTED:
        return Move(to=S.PROVISIONING)
    if seen.observed is None or not seen.observed.whole:
        if row.state is S.STARTING:
            return Fail(
                cause="its disk is gone", remedy="Its work cannot be recovered; make a new one: `agentlab sandbox new`."
            )
        return Create() if row.source is None else _fork(row.source, seen.source)
    match seen.observed.power:
        case Power.STOPPED:
            return Arm()
        case Power.ARMED:
            return Start() if seen.policed else Policy()
        case Power.PAUSED:
            return Resume()
        case Power.RUNNING:
            return Move(to=S.READY) if seen.policed else Policy()


def _fork(source: SnapshotOf, record: SnapshotRecord | None) -> Step | None:
    origin = source.mark.sandbox
    match None if record is None else record.state:
        case SnapshotState.READY:
            return Create()
        case SnapshotState.REQUESTED:
            return None  # its origin is looked after, and tells when it is there
        case SnapshotState.FAILED:
            assert record is not None
            cause, remedy = f"snapshot {source.name} of {origin} failed", "See what its origin says."
            if record.failure is not None:
                cause, remedy = f"{cause}: {record.failure.cause}", record.failure.remedy
            return Fail(cause=cause, remedy=remedy)
        case _:
            return Fail(
                cause=f"{origin} or its snapshot {source.name} was removed before the fork was made",
                remedy="Keep a sandbox until its forks are ready; fork another one, or make a new sandbox.",
            )


def _on_snapshots(row: Sandbox, seen: Seen) -> Step | None:
    if seen.due is None or seen.observed is None or row.state not in AT_REST:
        return None
    power = seen.observed.power
    if power is Power.ARMED or (power is Power.RUNNING and not seen.policed):
        return None  # other things come first
    if seen.due.state is SnapshotState.REQUESTED:
        return TakeSnapshot(snapshot=seen.due.name, memory=seen.due.memory)
    return RemoveSnapshot(snapshot=seen.due.name)


def _stay_running(row: Sandbox, seen: Seen) -> Step | None:
    if row.state is S.STOPPED:
        return Move(to=S.STARTING)
    if seen.observed is None:
        return Fail(
            cause="it disappeared from its backend",
            remedy="Something other than AgentLab removed it; `agentlab sandbox destroy` closes the record.",
        )
    match seen.observed.power:
        case Power.STOPPED | Power.ARMED:
            return Move(to=S.STOPPED, reason=seen.observed.exit_detail or "it ended by itself")
        case Power.PAUSED:
            return Resume()
        case Power.RUNNING if not seen.policed:
            return Policy(repair=True)
        case Power.RUNNING if row.state is S.PAUSED:
            return Move(to=S.READY)
    return None


def _towards_stopped(row: Sandbox, seen: Seen) -> Step | None:
    power = None if seen.observed is None else seen.observed.power
    if row.state in (S.READY, S.PAUSED):
        return Move(to=S.STOPPING)
    if power in (Power.RUNNING, Power.PAUSED, Power.ARMED):
        return Stop()
    if seen.linked:
        return Detach()
    return None if row.state is S.STOPPED else Move(to=S.STOPPED, reason="asked for")


def _towards_paused(row: Sandbox, seen: Seen) -> Step | None:
    if row.state is S.STOPPED or seen.observed is None:
        return None
    match seen.observed.power:
        case Power.RUNNING:
            return Pause() if seen.policed else Policy(repair=True)
        case Power.PAUSED:
            return Move(to=S.PAUSED) if row.state is not S.PAUSED else None
        case Power.STOPPED | Power.ARMED:
            return Move(to=S.STOPPED, reason=seen.observed.exit_detail or "it ended by itself")
