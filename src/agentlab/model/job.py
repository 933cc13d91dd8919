"""A job: a repository, a task and an agent, run in a sandbox, ending with a result."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.model.failure import Failure
from agentlab.model.ids import Digest, JobId, SandboxId
from agentlab.model.machine import JobState

TASK_BYTES_MAX = 1 << 20
ENV_COUNT_MAX = 256
ENV_BYTES_MAX = 256 << 10
GLOBS_MAX = 64
TIMEOUT_S_MAX = 7 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoSource:
    """Where the work tree comes from: exactly one of `url` and `bundle`, or neither for an empty repository.

    A bundle is a blob that the client uploaded: a git bundle whose head `ref` names the commit to start from.
    """

    url: str | None = None
    bundle: Digest | None = None
    ref: str | None = None  # branch, tag or commit; None: the remote's or the bundle's HEAD
    origin: str = ""  # what the user named, for display: a path or URL without credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What the guest reported, bounded and checked.  Artifacts are kept beside it."""

    outcome: str  # succeeded, failed, timed_out, cancelled: what the runner saw
    exit_status: int | None  # of the agent; None if it never ran
    summary: str  # one printable line
    base_commit: str | None = None
    head_commit: str | None = None
    files_changed: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    skipped: tuple[str, ...] = ()  # what could not be brought back, each with its reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of the store.  Environment values are not here: they are sealed beside it and never shown."""

    id: JobId
    owner: str
    state: JobState
    profile: str
    agent: str
    task: str
    repo: RepoSource
    env_names: tuple[str, ...]
    artifact_globs: tuple[str, ...]
    timeout_s: float
    ttl_s: float
    keepalive: bool
    queued_at: float
    backend: str | None = None  # None: as the profile or the daemon says
    sandbox: SandboxId | None = None
    phase: str = ""  # the runner's: fetch, prepare, run, collect, report
    started_at: float | None = None  # claimed from the queue
    running_at: float | None = None  # the agent program started
    collecting_at: float | None = None
    ended_at: float | None = None
    stop_reason: str | None = None  # cancelled or timed_out, once decided; the guest is told until it reports
    stop_at: float | None = None
    result: JobResult | None = None
    failure: Failure | None = None
    output_bytes: int = 0  # acknowledged output of the agent
    rescues: int = 0  # how often a lost guest program was started again to save the work
