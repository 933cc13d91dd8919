"""A sandbox: what was asked for, what was achieved, what was observed."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from agentlab.model.failure import Failure
from agentlab.model.ids import Digest, InstallationId, JobId, SandboxId
from agentlab.model.lease import Lease
from agentlab.model.machine import SandboxState
from agentlab.model.network import LinkEnd, NetworkMode, Port
from agentlab.model.resources import Resources


class Wish(enum.StrEnum):
    """What the user wants of a sandbox."""

    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    DESTROYED = "destroyed"


class Power(enum.StrEnum):
    """What a backend sees.  ARMED: made and held, with a network namespace or port, but no guest code has run."""

    STOPPED = "stopped"
    ARMED = "armed"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The ownership mark that everything we make outside the database bears."""

    installation: InstallationId
    sandbox: SandboxId
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOf:
    """A sandbox's snapshot by name: what a fork begins as."""

    mark: Mark  # of the origin
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One sandbox as its backend sees it now."""

    mark: Mark
    power: Power
    end: LinkEnd | None = None  # where its network port leads, from ARMED on
    whole: bool = True  # False: half made; `create` goes on with it, `destroy` removes it
    exit_detail: str = ""  # why it stopped, as far as can be told: "out of memory", "signal 9", "exit status 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A row of the store: desire (wish, lease, limits) and achievement (state, failure)."""

    id: SandboxId
    name: str | None
    owner: str  # the identity that asked, such as "uid:0"
    backend: str
    profile: str
    template: str  # the template's name
    template_digest: Digest  # which build of it
    wish: Wish
    state: SandboxState
    mark: Mark
    slot: int  # the allocator's number: decides address, MAC and uid range; unique among what is not destroyed
    resources: Resources
    network: NetworkMode
    lease: Lease
    created_at: float
    user: str = "root"  # whom commands run as inside
    job: JobId | None = None  # the job it was made for
    nested_sandboxes: bool = False  # its agents may make user namespaces of their own
    keepalive: bool = False  # stays after its job has ended, until its lease does
    failure: Failure | None = None
    ready_at: float | None = None
    ended_at: float | None = None
    ended_reason: str = ""
    missing_guarantees: tuple[str, ...] = ()
    lease_warned_s: int | None = None  # the last warning threshold that was told
    source: SnapshotOf | None = None  # what it began as, if it is a fork
    restore_to: str | None = None  # the snapshot that it shall become again; None once it has


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of an operation on a sandbox or job, as it happened."""

    subject: str  # the sandbox or job id
    operation: str  # provision, stop, destroy, launch …
    step: str
    started_at: float
    ended_at: float | None = None
    outcome: str = "running"  # running, done, failed
    detail: str = ""  # what it waits for, or why it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """All that a backend needs to make one sandbox.  Values only: the backend looks nothing up."""

    mark: Mark
    name: str
    template: str
    template_digest: Digest
    slot: int
    resources: Resources
    network: NetworkMode
    port: Port | None  # its place on the network; None in mode `off`
    hostname: str
    nameserver: str | None  # the resolver's address as the guest shall see it; None without a network
    nested_sandboxes: bool = False  # profile switch: let agents use user namespaces of their own (bubblewrap)
    source: SnapshotOf | None = None  # a fork: what `create` makes its disk from
    labels: dict[str, str] = field(default_factory=dict)
