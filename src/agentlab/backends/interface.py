"""What a backend promises.  `agentlab.testing.contract` holds every implementation to it."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from agentlab.model.finding import Finding
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark, Observed, SandboxSpec
from agentlab.model.snapshot import Snapshot, WorkspaceDisk


class Capability(enum.StrEnum):
    """What planning may ask of a backend.  Nobody meets NotImplementedError: an absent capability is not asked for."""

    EXEC = "exec"  # commands can be run from outside, without a guest program
    PAUSE = "pause"
    DISK_QUOTA = "disk-quota"
    MEMORY_LIMIT = "memory-limit"
    CPU_LIMIT = "cpu-limit"
    PIDS_LIMIT = "pids-limit"
    USER_RANGES = "user-ranges"  # every sandbox has uids of its own
    NETWORK = "network"  # mode `nat` is possible
    SNAPSHOT = "snapshot"  # of a disk
    MEMORY_SNAPSHOT = "memory-snapshot"  # of what runs, too
    FORK = "fork"  # a new sandbox can begin as another's snapshot
    WORKSPACE = "workspace"  # disks of their own can be plugged in and mounted


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a backend can do on this machine, and why not more."""

    findings: tuple[Finding, ...]
    capabilities: frozenset[Capability]
    missing_guarantees: tuple[str, ...] = ()  # sentences, shown by doctor and on each sandbox
    facts: Mapping[str, str] = field(default_factory=dict)  # what it works with, such as {"accelerator": "kvm"}

    @property
    def usable(self) -> bool:
        """Whether sandboxes can be made at all."""
        return all(finding.ok or not finding.fatal for finding in self.findings)


class BackendError(Exception):
    """A sandbox or the machinery below it could not be asked.  A command that fails inside is a result, not this.

    `cause` is for people; `remedy` says what to do; `retryable` whether the same call may succeed later.
    """

    code = "backend/failed"
    retryable = False

    def __init__(self, cause: str, remedy: str = "See the daemon's log and `agentlab doctor`.") -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


class Refused(BackendError):
    """The backend said no, and will say so again: a missing feature, a bad template, a limit out of range."""

    code = "backend/refused"


class Unavailable(BackendError):
    """The backend could not be asked now: busy, locked, out of a resource that may come back."""

    code = "backend/unavailable"
    retryable = True


class Gone(BackendError):
    """The sandbox does not exist, or does not run, although the call needs it to."""

    code = "backend/gone"


class NotOurs(BackendError):
    """What bears the sandbox's name does not bear our mark.  Nothing was touched."""

    code = "backend/not-ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to run inside a sandbox."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    user: str = "root"
    tty: bool = False
    rows: int = 24
    columns: int = 80


class Execution(Protocol):
    """A command that runs inside a sandbox.  Leaving its context ends it if it still runs."""

    async def write(self, data: bytes) -> None:
        """Give bytes to its standard input; waits while the program does not read.  BrokenPipeError once it ended."""
        ...

    async def close_input(self) -> None:
        """End of its standard input.  Calling twice is quiet."""
        ...

    def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """Pairs of stream ("stdout", "stderr"; a terminal has only stdout) and bytes, until both are closed."""
        ...

    async def wait(self) -> int:
        """The exit status; 128 + n for signal n.  Output should be consumed first or meanwhile."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size; without a terminal, nothing."""
        ...

    async def signal(self, number: int) -> None:
        """Send a signal to the program; once it ended, nothing."""
        ...


class Snapshots(Protocol):
    """Sandboxes as they were, by name.  Names are unique within a sandbox, and its destruction takes them with it.

    A snapshot whose name is known is complete: what a crash or a full disk cut short is not listed.
    """

    async def take(self, mark: Mark, name: str, *, memory: bool) -> None:
        """Keep the sandbox as it is now; afterwards it goes on as it was.  The name again is quiet and takes nothing.

        A running one's file system is frozen for a moment; with `memory` all of it is paused for a moment, and it
        must run or be paused: Gone otherwise.  Unavailable without space for it.
        """
        ...

    async def list(self, mark: Mark) -> Sequence[Snapshot]:
        """All that are complete, oldest first.  Gone for a sandbox that does not exist."""
        ...

    async def restore(self, mark: Mark, name: str) -> None:
        """Give a STOPPED sandbox the disk of that moment; the next `arm` brings back the memory if the snapshot has it.

        All or nothing; twice is as once.  Later snapshots stay.  Refused while it is not stopped, Gone if the name is
        unknown.
        """
        ...

    async def remove(self, mark: Mark, name: str) -> None:
        """Forget it; quiet if absent, the sandbox's absence included.  Forks that were created from it stay whole.

        Refused only if something stands on it that cannot be kept alive otherwise.
        """
        ...


class Workspaces(Protocol):
    """Disks that outlive sandboxes, plugged into running ones."""

    async def attach(self, mark: Mark, disk: WorkspaceDisk) -> None:
        """Plug it into a running sandbox and mount it, after making a file system on an empty one.  Twice is quiet.

        Refused while it is plugged into another sandbox or its place is taken; Gone if the sandbox does not run.
        """
        ...

    async def detach(self, mark: Mark, serial: str) -> None:
        """Write back, unmount and unplug it; quiet if absent.  Unavailable while the guest will not let go of it."""
        ...

    async def list(self, mark: Mark) -> Sequence[WorkspaceDisk]:
        """What is plugged into it now.  Empty once it has stopped: a start does not plug anything in again."""
        ...


class Backend(Protocol):
    """Makes sandboxes.  All calls are idempotent and may be repeated after a lost answer or a crash.

    Each raises BackendError's subclasses and nothing else that the world causes; cancellation passes through and
    leaves at worst something that `list` shows.
    """

    name: str
    step_s_max: Mapping[
        str, float
    ]  # limits of steps, by name, where the plan's own do not fit: a first boot takes longer
    parallel_max: int  # sandboxes that are made at the same time; others wait
    guest_arguments: tuple[str, ...]  # for a job's guest program: how a rescue finds all that its agent left running

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Fixed once `probe` has run."""
        ...

    @property
    def snapshots(self) -> Snapshots | None:
        """None without Capability.SNAPSHOT."""
        ...

    @property
    def workspaces(self) -> Workspaces | None:
        """None without Capability.WORKSPACE."""
        ...

    async def probe(self) -> Probe:
        """Look at this machine; changes nothing that outlives the call."""
        ...

    async def list(self) -> Sequence[Observed]:
        """All that bears our installation's mark, half-made things included."""
        ...

    async def inspect(self, sandbox: SandboxId) -> Observed | None:
        """One sandbox as it is now, or None.  Cheap: called after every step."""
        ...

    async def create(self, spec: SandboxSpec) -> Observed:
        """Make its disk and record its mark; no guest code runs.  The same id again returns what exists.

        With `spec.source` the disk is that snapshot's, and the sandbox is a fork: its first `arm` loads the snapshot's
        memory if it has one, and `start` gives it an identity of its own in any case (random seed, machine-id, host
        keys, hostname, MAC and address).  From here on it stands for itself: removing the snapshot or destroying its
        origin leaves it whole.  Gone if the snapshot is not there.
        """
        ...

    async def arm(self, spec: SandboxSpec) -> Observed:
        """Bring it to ARMED: held, with a network namespace, before the first guest instruction.  Quiet if it runs."""
        ...

    async def start(self, mark: Mark) -> None:
        """From ARMED, let guest code run.  Quiet if it runs."""
        ...

    async def stop(self, mark: Mark, grace_s: float) -> None:
        """Ask it to end, then make it; the disk stays.  Quiet if it is stopped."""
        ...

    async def pause(self, mark: Mark) -> None:
        """Freeze every process.  Quiet if paused."""
        ...

    async def resume(self, mark: Mark) -> None:
        """Let it go on.  Quiet if it runs."""
        ...

    async def destroy(self, mark: Mark) -> None:
        """Remove all of it, running or not, after reading the mark back.  Quiet if absent; NotOurs if foreign."""
        ...

    def execute(self, mark: Mark, command: Command) -> AbstractAsyncContextManager[Execution]:
        """Run a command in a running sandbox, with no_new_privs and the sandbox's own limits."""
        ...

    async def launch(self, mark: Mark, command: Command, stdin: bytes) -> None:
        """Start a program inside that outlives this daemon, give it `stdin`, and return once it has started."""
        ...

    async def console(self, sandbox: SandboxId, bytes_max: int = 4096) -> str:
        """The tail of what its first process and launched programs wrote, for failures; empty if there is nothing."""
        ...

    async def close(self) -> None:
        """Let go of what this process holds; sandboxes go on."""
        ...
