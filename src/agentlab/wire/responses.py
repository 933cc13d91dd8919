"""What the daemon answers.  Instants are RFC 3339 in UTC; durations are seconds and sizes bytes, as the suffixes say.

A reader passes over fields that it does not know, so that an older client understands a newer daemon.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from agentlab.model import (
    agents,
    artifact,
    event,
    failure,
    finding,
    job,
    profile,
    resources,
    sandbox,
    snapshot,
    template,
)
from agentlab.model.machine import JobState, SandboxState, SnapshotState
from agentlab.model.network import NetworkMode
from agentlab.model.sandbox import SnapshotOf, Wish


def instant(seconds: float | None) -> datetime | None:
    """Seconds since the epoch as the wire has them."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Failure(Answer):
    """Why something failed, and what to do."""

    code: str
    step: str
    cause: str
    remedy: str
    at: datetime

    @classmethod
    def of(cls, value: failure.Failure | None) -> Failure | None:
        """From the model."""
        if value is None:
            return None
        return cls(code=value.code, step=value.step, cause=value.cause, remedy=value.remedy, at=_when(value.at))


class Resources(Answer):
    """Hard limits."""

    memory_bytes: int
    cpus: float
    pids_max: int
    disk_bytes: int

    @classmethod
    def of(cls, value: resources.Resources) -> Resources:
        """From the model."""
        return cls(
            memory_bytes=value.memory_bytes, cpus=value.cpus, pids_max=value.pids_max, disk_bytes=value.disk_bytes
        )


class Origin(Answer):
    """What a fork began as."""

    sandbox: str
    snapshot: str

    @classmethod
    def of(cls, value: SnapshotOf | None) -> Origin | None:
        """From the model."""
        return None if value is None else cls(sandbox=value.mark.sandbox, snapshot=value.name)


class Sandbox(Answer):
    """A sandbox: what was asked for and what was achieved."""

    id: str
    name: str | None
    owner: str
    state: SandboxState
    wish: Wish
    backend: str
    profile: str
    template: str
    template_digest: str
    network: NetworkMode
    address: str | None
    user: str
    resources: Resources
    job: str | None
    keepalive: bool
    created_at: datetime
    ready_at: datetime | None
    lease_until: datetime
    ended_at: datetime | None
    ended_reason: str
    missing_guarantees: list[str]
    failure: Failure | None
    origin: Origin | None = None  # of a fork
    restore_to: str | None = None  # the snapshot that it is being brought back to

    @classmethod
    def of(cls, value: sandbox.Sandbox, address: str | None) -> Sandbox:
        """From the model.  Built without a second check: the row was checked when it was read."""
        return cls.model_construct(
            id=value.id,
            name=value.name,
            owner=value.owner,
            state=value.state,
            wish=value.wish,
            backend=value.backend,
            profile=value.profile,
            template=value.template,
            template_digest=value.template_digest,
            network=value.network,
            address=address,
            user=value.user,
            resources=Resources.of(value.resources),
            job=value.job,
            keepalive=value.keepalive,
            created_at=_when(value.created_at),
            ready_at=instant(value.ready_at),
            lease_until=_when(value.lease.until),
            ended_at=instant(value.ended_at),
            ended_reason=value.ended_reason,
            missing_guarantees=list(value.missing_guarantees),
            failure=Failure.of(value.failure),
            origin=Origin.of(value.source),
            restore_to=value.restore_to,
        )


class SandboxPage(Answer):
    """Some sandboxes, and where the next ones begin; no cursor: these were the last."""

    items: list[Sandbox]
    next_cursor: str | None


class Forks(Answer):
    """Sandboxes that were asked for together."""

    items: list[Sandbox]


class Snapshot(Answer):
    """A sandbox as it was: asked for, complete, failed, or on its way out."""

    sandbox: str
    name: str
    state: SnapshotState
    memory: bool
    transient: bool  # taken for forks alone: it goes when they are ready
    requested_at: datetime
    taken_at: datetime | None
    bytes_count: int
    failure: Failure | None

    @classmethod
    def of(cls, value: snapshot.SnapshotRecord) -> Snapshot:
        """From the model."""
        return cls(
            sandbox=value.sandbox,
            name=value.name,
            state=value.state,
            memory=value.memory,
            transient=value.transient,
            requested_at=_when(value.requested_at),
            taken_at=instant(value.taken_at),
            bytes_count=value.bytes_count,
            failure=Failure.of(value.failure),
        )


class Snapshots(Answer):
    """Snapshots of one sandbox, in the order in which they were asked for."""

    items: list[Snapshot]


class Step(Answer):
    """One step of an operation, as it happened."""

    subject: str
    operation: str
    step: str
    outcome: str  # running, done, failed
    started_at: datetime
    ended_at: datetime | None
    detail: str  # what it waits for, or why it failed

    @classmethod
    def of(cls, value: sandbox.StepRecord) -> Step:
        """From the model."""
        return cls(
            subject=value.subject,
            operation=value.operation,
            step=value.step,
            outcome=value.outcome,
            started_at=_when(value.started_at),
            ended_at=instant(value.ended_at),
            detail=value.detail,
        )


class Steps(Answer):
    """Steps, oldest first."""

    items: list[Step]


class Executed(Answer):
    """A command that ended.  `truncated`: it wrote more than EXEC_OUTPUT_BYTES_MAX; the rest was dropped."""

    exit_code: int | None  # None: it was ended after timeout_s
    timed_out: bool
    stdout_b64: str
    stderr_b64: str
    truncated: bool
    took_s: float


class Console(Answer):
    """The tail of a sandbox's own output; hostile text."""

    text: str


class Repo(Answer):
    """Where a job's work tree comes from."""

    url: str | None
    bundle: str | None
    ref: str | None
    origin: str


class JobResult(Answer):
    """What a job's runner reported."""

    outcome: str
    exit_status: int | None
    summary: str
    base_commit: str | None
    head_commit: str | None
    files_changed: int
    lines_added: int
    lines_removed: int
    skipped: list[str]


class Job(Answer):
    """A job.  Values of its environment are never shown."""

    id: str
    owner: str
    state: JobState
    phase: str
    profile: str
    agent: str
    task: str
    repo: Repo
    env_names: list[str]
    artifact_globs: list[str]
    timeout_s: float
    ttl_s: float
    keepalive: bool
    queue_position: int | None  # 1: next; None: not waiting
    sandbox: str | None
    queued_at: datetime
    started_at: datetime | None
    running_at: datetime | None
    collecting_at: datetime | None
    ended_at: datetime | None
    stop_reason: str | None
    output_bytes: int
    rescues: int
    result: JobResult | None
    failure: Failure | None

    @classmethod
    def of(cls, value: job.Job, queue_position: int | None = None) -> Job:
        """From the model."""
        return cls.model_construct(
            id=value.id,
            owner=value.owner,
            state=value.state,
            phase=value.phase,
            profile=value.profile,
            agent=value.agent,
            task=value.task,
            repo=Repo.model_construct(
                url=value.repo.url, bundle=value.repo.bundle, ref=value.repo.ref, origin=value.repo.origin
            ),
            env_names=list(value.env_names),
            artifact_globs=list(value.artifact_globs),
            timeout_s=value.timeout_s,
            ttl_s=value.ttl_s,
            keepalive=value.keepalive,
            queue_position=queue_position,
            sandbox=value.sandbox,
            queued_at=_when(value.queued_at),
            started_at=instant(value.started_at),
            running_at=instant(value.running_at),
            collecting_at=instant(value.collecting_at),
            ended_at=instant(value.ended_at),
            stop_reason=value.stop_reason,
            output_bytes=value.output_bytes,
            rescues=value.rescues,
            result=_job_result(value.result),
            failure=Failure.of(value.failure),
        )


def _job_result(value: job.JobResult | None) -> JobResult | None:
    return None if value is None else JobResult(**{**asdict(value), "skipped": list(value.skipped)})


class JobPage(Answer):
    """Some jobs, and where the next ones begin; no cursor: these were the last."""

    items: list[Job]
    next_cursor: str | None


class Artifact(Answer):
    """A file that came out of a job."""

    name: str
    kind: str
    bytes_count: int
    digest: str
    created_at: datetime

    @classmethod
    def of(cls, value: artifact.Artifact) -> Artifact:
        """From the model."""
        return cls(
            name=value.name,
            kind=value.kind,
            bytes_count=value.bytes_count,
            digest=value.digest,
            created_at=_when(value.created_at),
        )


class Artifacts(Answer):
    """Everything that a job brought back."""

    items: list[Artifact]


class Blob(Answer):
    """Bytes that the daemon holds."""

    digest: str
    bytes_count: int


class Package(Answer):
    """A package inside a template."""

    name: str
    version: str


class Template(Answer):
    """A template; `absent` when it has a recipe but no build."""

    name: str
    state: str  # absent, building, ready, failed
    digest: str | None
    recipe_digest: str | None
    bytes_count: int
    built_at: datetime | None
    build_s: float | None
    step: str
    packages: list[Package]
    failure: Failure | None

    @classmethod
    def of(cls, value: template.Template) -> Template:
        """From the model."""
        return cls(
            name=value.name,
            state=value.state,
            digest=value.digest or None,
            recipe_digest=value.recipe_digest or None,
            bytes_count=value.bytes_count,
            built_at=instant(value.built_at),
            build_s=value.build_s,
            step=value.step,
            packages=[Package(name=name, version=version) for name, version in value.packages],
            failure=Failure.of(value.failure),
        )


class Templates(Answer):
    """Every template."""

    items: list[Template]


class ArtifactLimits(Answer):
    """What a job of a profile may bring back beside its commits."""

    globs: list[str]
    file_bytes_max: int
    total_bytes_max: int


class Profile(Answer):
    """A profile with every value.  Environment values are shown as names only."""

    name: str
    description: str
    template: str
    backend: str | None
    agent: str
    user: str
    resources: Resources
    network: NetworkMode
    ttl_s: float
    timeout_s: float
    keepalive: bool
    nested_sandboxes: bool
    env_names: list[str]
    artifacts: ArtifactLimits
    source: str

    @classmethod
    def of(cls, value: profile.Profile) -> Profile:
        """From the model."""
        return cls(
            name=value.name,
            description=value.description,
            template=value.template,
            backend=value.backend,
            agent=value.agent,
            user=value.user,
            resources=Resources.of(value.resources),
            network=value.network,
            ttl_s=value.ttl_s,
            timeout_s=value.timeout_s,
            keepalive=value.keepalive,
            nested_sandboxes=value.nested_sandboxes,
            env_names=[name for name, _ in value.env],
            artifacts=ArtifactLimits(
                globs=list(value.artifacts.globs),
                file_bytes_max=value.artifacts.file_bytes_max,
                total_bytes_max=value.artifacts.total_bytes_max,
            ),
            source=value.source,
        )


class Profiles(Answer):
    """Several profiles."""

    items: list[Profile]


class Agent(Answer):
    """An agent that a job can run."""

    name: str
    title: str
    template: str
    key_names: list[str]
    transcript: str

    @classmethod
    def of(cls, value: agents.Agent) -> Agent:
        """From the model."""
        return cls(
            name=value.name,
            title=value.title,
            template=value.template,
            key_names=list(value.key_names),
            transcript=value.transcript,
        )


class Agents(Answer):
    """Every agent."""

    items: list[Agent]


class Event(Answer):
    """A fact in the log."""

    seq: int
    at: datetime
    type: str
    subject: str
    data: dict[str, Any]

    @classmethod
    def of(cls, value: event.Recorded) -> Event:
        """From the model."""
        return cls(seq=value.seq, at=_when(value.at_ms / 1000), type=value.type, subject=value.subject, data=value.data)


class EventPage(Answer):
    """Some events, and the sequence number after which the next ones come."""

    items: list[Event]
    next_since: int


class Finding(Answer):
    """One thing that a probe looked at."""

    name: str
    ok: bool
    detail: str
    remedy: str
    fatal: bool

    @classmethod
    def of(cls, value: finding.Finding) -> Finding:
        """From the model."""
        return cls(name=value.name, ok=value.ok, detail=value.detail, remedy=value.remedy, fatal=value.fatal)


class Findings(Answer):
    """What `doctor` found."""

    ok: bool
    items: list[Finding]


class Status(Answer):
    """What a daemon is and holds; `facts` may grow."""

    version: str
    facts: dict[str, Any]


class Whoami(Answer):
    """Whom the daemon takes the caller for."""

    name: str
    role: str
    permissions: list[str]


class Done(Answer):
    """It was done; `changed` tells whether there was anything to do."""

    changed: bool = True
