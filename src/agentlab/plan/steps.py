"""Steps are data: what planning decides and one interpreter carries out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentlab.model.machine import SandboxState


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Base of all steps.  Every step may be repeated, lost, or answered late; `timeout_s` bounds one try."""

    name: ClassVar[str]
    timeout_s: ClassVar[float]
    recorded: ClassVar[bool] = True  # whether it appears among the steps that `show` prints
    operation: ClassVar[str] = ""  # what it is part of, where the sandbox's state does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(Step):
    """Write that the sandbox is in another state; nothing outside the store changes."""

    name = "move"
    timeout_s = 30.0
    recorded = False
    to: SandboxState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(Step):
    """Make its disk and its mark."""

    name = "create"
    timeout_s = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm(Step):
    """Hold it before its first instruction, with a network namespace."""

    name = "arm"
    timeout_s = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Step):
    """Apply its network policy and read it back."""

    name = "policy"
    timeout_s = 30.0
    repair: bool = False  # it stood before and was found broken


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Step):
    """Let guest code run."""

    name = "start"
    timeout_s = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Step):
    """Shut it down; its disk stays."""

    name = "stop"
    timeout_s = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(Step):
    """Freeze it."""

    name = "pause"
    timeout_s = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Step):
    """Let it go on."""

    name = "resume"
    timeout_s = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotStep(Step):
    """Base of the steps on one snapshot.  Its failure is the snapshot's and leaves the sandbox as it is."""

    snapshot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSnapshot(SnapshotStep):
    """Keep the sandbox as it is now."""

    name = operation = "snapshot"
    timeout_s = 120.0
    memory: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSnapshot(SnapshotStep):
    """Let a snapshot go."""

    name, operation = "remove", "snapshot"
    timeout_s = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(SnapshotStep):
    """Give the stopped sandbox a snapshot's disk, and its memory at the next start."""

    name = operation = "restore"
    timeout_s = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach(Step):
    """Take away its link and rules."""

    name = "detach"
    timeout_s = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy(Step):
    """Remove all of it from its backend."""

    name = "destroy"
    timeout_s = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndLease(Step):
    """The lease ended: want it destroyed."""

    name = "lease"
    timeout_s = 30.0
    recorded = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail(Step):
    """Give up on it, with a cause that was observed."""

    name = "fail"
    timeout_s = 30.0
    recorded = False
    cause: str
    remedy: str
