"""The state machines, as tables.  No transition is written anywhere else."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar


class SandboxState(enum.StrEnum):
    """What AgentLab has achieved with a sandbox.  Power is observed and is not a state."""

    REQUESTED = "requested"
    PROVISIONING = "provisioning"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    PAUSED = "paused"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"
    FAILED = "failed"


class JobState(enum.StrEnum):
    """Where a job is on its way.  The last five are final."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"


class SnapshotState(enum.StrEnum):
    """What AgentLab has achieved with a snapshot.  One whose removal was seen has no row any more."""

    REQUESTED = "requested"
    READY = "ready"
    FAILED = "failed"
    REMOVING = "removing"


S, J, K = SandboxState, JobState, SnapshotState

SANDBOX_NEXT: Mapping[SandboxState, frozenset[SandboxState]] = {
    S.REQUESTED: frozenset({S.PROVISIONING, S.FAILED, S.DESTROYING}),
    S.PROVISIONING: frozenset({S.READY, S.FAILED, S.DESTROYING}),
    S.READY: frozenset({S.STOPPING, S.STOPPED, S.PAUSED, S.FAILED, S.DESTROYING}),
    S.STOPPING: frozenset({S.STOPPED, S.FAILED, S.DESTROYING}),
    S.STOPPED: frozenset({S.STARTING, S.FAILED, S.DESTROYING}),
    S.STARTING: frozenset({S.READY, S.STOPPED, S.FAILED, S.DESTROYING}),
    S.PAUSED: frozenset({S.READY, S.STOPPING, S.STOPPED, S.FAILED, S.DESTROYING}),
    S.FAILED: frozenset({S.DESTROYING}),
    S.DESTROYING: frozenset({S.DESTROYED}),
    S.DESTROYED: frozenset(),
}

JOB_NEXT: Mapping[JobState, frozenset[JobState]] = {
    J.QUEUED: frozenset({J.STARTING, J.CANCELLED, J.FAILED}),
    J.STARTING: frozenset({J.RUNNING, J.COLLECTING, J.FAILED, J.TIMED_OUT, J.CANCELLED, J.LOST}),
    J.RUNNING: frozenset({J.COLLECTING, J.SUCCEEDED, J.FAILED, J.TIMED_OUT, J.CANCELLED, J.LOST}),
    J.COLLECTING: frozenset({J.SUCCEEDED, J.FAILED, J.TIMED_OUT, J.CANCELLED, J.LOST}),
    J.SUCCEEDED: frozenset(),
    J.FAILED: frozenset(),
    J.TIMED_OUT: frozenset(),
    J.CANCELLED: frozenset(),
    J.LOST: frozenset(),
}

SNAPSHOT_NEXT: Mapping[SnapshotState, frozenset[SnapshotState]] = {
    K.REQUESTED: frozenset({K.READY, K.FAILED, K.REMOVING}),
    K.READY: frozenset({K.REMOVING}),
    K.FAILED: frozenset({K.REMOVING}),
    K.REMOVING: frozenset({K.READY, K.FAILED}),  # back, where its backend refuses
}

JOB_FINAL = frozenset(state for state, following in JOB_NEXT.items() if not following)
SANDBOX_SETTLED = frozenset({S.READY, S.STOPPED, S.PAUSED, S.FAILED, S.DESTROYED})  # nothing is under way

State = TypeVar("State", SandboxState, JobState, SnapshotState)


def reachable(table: Mapping[State, frozenset[State]], start: State) -> set[State]:
    """Every state that can follow `start`, itself included."""
    seen, pending = {start}, [start]
    while pending:
        for state in table[pending.pop()] - seen:
            seen.add(state)
            pending.append(state)
    return seen


assert SANDBOX_NEXT.keys() == set(SandboxState)  # total: no state forgotten
assert JOB_NEXT.keys() == set(JobState)
assert SNAPSHOT_NEXT.keys() == set(SnapshotState)
assert all(S.DESTROYED in reachable(SANDBOX_NEXT, state) for state in S)  # everything can be cleaned up
assert all(JOB_FINAL & reachable(JOB_NEXT, state) for state in J)  # everything ends
assert all(K.REMOVING in reachable(SNAPSHOT_NEXT, state) for state in K)  # everything can be cleaned up
