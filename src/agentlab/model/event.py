"""Events: typed facts in the past tense, append-only, part of the API."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events.  `subject` is the id of the sandbox, job or template that the fact is about."""

    type: ClassVar[str] = ""
    subject: str

    def data(self) -> dict[str, Any]:
        """The fields beside the subject, ready for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "subject"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRequested(Event):
    """A sandbox was asked for and its row, slot and mark were recorded."""

    type = "sandbox.requested"
    backend: str
    profile: str
    template: str
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """A step of an operation ended well."""

    type = "step.done"
    operation: str
    step: str
    took_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(Event):
    """A step of an operation failed; cause and remedy say why and what to do."""

    type = "step.failed"
    operation: str
    step: str
    took_ms: int
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStateChanged(Event):
    """A sandbox went from one state to another."""

    type = "sandbox.state"
    before: str
    after: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFailed(Event):
    """A sandbox could not be made or kept; step, cause and remedy say why."""

    type = "sandbox.failed"
    step: str
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxDestroyed(Event):
    """A sandbox's absence was observed; nothing of it is left."""

    type = "sandbox.destroyed"
    reason: str
    lived_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxForked(Event):
    """A sandbox was asked for that begins as a snapshot of another."""

    type = "sandbox.forked"
    origin: str
    snapshot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRestored(Event):
    """A sandbox is again what it was when a snapshot was taken."""

    type = "sandbox.restored"
    snapshot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTaken(Event):
    """A snapshot is complete."""

    type = "snapshot.taken"
    name: str
    memory: bool
    bytes_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFailed(Event):
    """A snapshot could not be taken or removed; step, cause and remedy say which, why, and what to do."""

    type = "snapshot.failed"
    name: str
    step: str
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRemoved(Event):
    """A snapshot is gone."""

    type = "snapshot.removed"
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxQuarantined(Event):
    """Something showed that a sandbox is hostile or duplicated; it was cut off and will be destroyed."""

    type = "sandbox.quarantined"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRenewed(Event):
    """A lease was extended."""

    type = "lease.renewed"
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseWarned(Event):
    """A lease ends soon."""

    type = "lease.warned"
    remaining_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded(Event):
    """A lease ended; the sandbox is being destroyed."""

    type = "lease.ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRedeemed(Event):
    """A guest redeemed its grant for the first time."""

    type = "grant.redeemed"
    sandbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRefused(Event):
    """Security: a grant or credential was presented that is spent, expired, foreign or unknown."""

    type = "grant.refused"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBroken(Event):
    """Security: a network policy no longer read back as applied; it was applied again or the sandbox was cut off."""

    type = "network.policy-broken"
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFound(Event):
    """Something bears a name of ours without our mark; it was not touched."""

    type = "ownership.foreign"
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanFound(Event):
    """Something bears our mark but nothing wants it; it is being destroyed."""

    type = "ownership.orphan"
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQueued(Event):
    """A job was accepted and waits for its turn."""

    type = "job.queued"
    agent: str
    profile: str
    repo: str
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStateChanged(Event):
    """A job went from one state to another."""

    type = "job.state"
    before: str
    after: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPhase(Event):
    """The runner inside the sandbox entered a phase or has something to tell."""

    type = "job.phase"
    phase: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStopAsked(Event):
    """A job was told to stop: cancelled by a user, or out of time."""

    type = "job.stop-asked"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRescued(Event):
    """The guest program was lost and has been started again to save the work."""

    type = "job.rescued"
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestAbandoned(Event):
    """The named limit for bringing back the work was reached; what had arrived is kept, the rest is lost."""

    type = "job.harvest-abandoned"
    limit_name: str
    limit_s: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactStored(Event):
    """An artifact arrived completely and its digest was checked."""

    type = "job.artifact"
    name: str
    kind: str
    bytes_count: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRefused(Event):
    """An artifact was not taken."""

    type = "job.artifact-refused"
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(Event):
    """A job reached its final state."""

    type = "job.ended"
    state: str
    cause: str = ""
    ran_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateBuildStarted(Event):
    """A template's build began."""

    type = "template.build-started"
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateStep(Event):
    """A step of a template's build ended, or was found in the cache."""

    type = "template.step"
    step: str
    took_ms: int
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateBuilt(Event):
    """A template is ready."""

    type = "template.built"
    digest: str
    took_s: int
    bytes_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFailed(Event):
    """A template's build failed; finished steps are kept."""

    type = "template.failed"
    step: str
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRemoved(Event):
    """A template's files were removed."""

    type = "template.removed"
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStarted(Event):
    """The daemon began to serve."""

    type = "daemon.started"
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStopped(Event):
    """The daemon drained and ended cleanly."""

    type = "daemon.stopped"


EVENTS: dict[str, type[Event]] = {each.type: each for each in Event.__subclasses__()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An event as the log holds it."""

    seq: int
    at_ms: int
    type: str
    subject: str
    data: dict[str, Any]
