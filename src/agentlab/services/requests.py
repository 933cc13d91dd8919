"""What the services are asked for, already parsed: values that cannot be wrong in shape."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.base.secret import Secret
from agentlab.model.job import RepoSource
from agentlab.model.network import NetworkMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """A client's key, and what it was used for; the same key with another fingerprint is refused."""

    owner: str
    key: str
    fingerprint: str  # digest of method, path and body


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSandbox:
    """A sandbox to make.  None means: as the profile says."""

    profile: str = "yolo-ephemeral"
    name: str | None = None
    template: str | None = None
    backend: str | None = None
    user: str | None = None
    network: NetworkMode | None = None
    ttl_s: float | None = None
    memory_bytes: int | None = None
    cpus: float | None = None
    pids_max: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot to take; without a name it is given one."""

    name: str | None = None
    memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewForks:
    """Sandboxes to make from another, as it is now or as a snapshot has it."""

    count: int = 1
    name: str | None = None  # they are called NAME-1, NAME-2 …
    snapshot: str | None = None
    ttl_s: float | None = None  # None: as long as their origin has left


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to queue.  None means: as the profile says."""

    repo: RepoSource
    task: str
    profile: str = "yolo-ephemeral"
    agent: str | None = None
    backend: str | None = None
    ttl_s: float | None = None
    timeout_s: float | None = None
    keepalive: bool | None = None
    env: dict[str, Secret] = field(default_factory=dict)
    artifact_globs: tuple[str, ...] = ()
