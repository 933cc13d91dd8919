"""What can be kept of a sandbox beside itself."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.model.failure import Failure
from agentlab.model.ids import SandboxId
from agentlab.model.machine import SnapshotState


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A sandbox as it was, as its backend holds it."""

    name: str
    memory: bool  # with what ran
    bytes_count: int  # what it occupies beyond what it shares with others, as far as can be told
    taken_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """A row of the store: what is wanted of a snapshot, and what was achieved."""

    sandbox: SandboxId
    name: str
    state: SnapshotState
    memory: bool
    requested_at: float
    transient: bool = False  # taken for forks alone: removed once they stand for themselves
    taken_at: float | None = None
    bytes_count: int = 0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceDisk:
    """A disk that outlives sandboxes."""

    serial: str  # what the guest sees it by; unique within a sandbox
    disk: str  # what the backend finds it by: a file's path, a volume's name
    mount: str = "/work"
