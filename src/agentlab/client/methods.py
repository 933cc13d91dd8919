"""The SDK's methods, synchronous.  Written by agentlab.client.generate from the route table: do not edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agentlab.wire import requests, responses


class Link(Protocol):
    """What carries out a call."""

    def typed(self, name: str, answer: Any, arguments: dict[str, Any]) -> Any:
        """The answer of the row `name` as the type `answer`; bytes where that is None."""
        ...


class Sandboxes:
    """The rows `sandboxes.*`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def create(
        self,
        *,
        profile: str | None = None,
        name: str | None = None,
        template: str | None = None,
        backend: str | None = None,
        user: str | None = None,
        network: str | None = None,
        ttl_s: float | None = None,
        memory_bytes: int | None = None,
        cpus: float | None = None,
        pids_max: int | None = None,
        disk_bytes: int | None = None,
    ) -> responses.Sandbox:
        """Ask for a sandbox.  The answer comes at once; the sandbox is made in the background.

        Raises Invalid, TooLarge, NotFound, BackendUnknown, BackendUnusable, TemplateNotReady, HostMountRefused,
        LimitReached, DiskFull, Draining, IdempotencyConflict, NameTaken.
        """
        arguments: dict[str, Any] = {
            "profile": profile,
            "name": name,
            "template": template,
            "backend": backend,
            "user": user,
            "network": network,
            "ttl_s": ttl_s,
            "memory_bytes": memory_bytes,
            "cpus": cpus,
            "pids_max": pids_max,
            "disk_bytes": disk_bytes,
        }
        found: responses.Sandbox = self._link.typed("sandboxes.create", responses.Sandbox, arguments)
        return found

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        state: Sequence[str] | None = None,
        all: bool | None = None,
    ) -> responses.SandboxPage:
        """The caller's sandboxes, newest first; an administrator or viewer sees everybody's.

        Raises Invalid.
        """
        arguments: dict[str, Any] = {
            "cursor": cursor,
            "limit": limit,
            "state": state,
            "all": all,
        }
        found: responses.SandboxPage = self._link.typed("sandboxes.list", responses.SandboxPage, arguments)
        return found

    def get(self, sandbox: str, *, wait_s: float | None = None) -> responses.Sandbox:
        """One sandbox, by id, name or unique id prefix.  With wait_s: answer once nothing is under way.

        Raises Invalid, NotFound, Ambiguous.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "wait_s": wait_s,
        }
        found: responses.Sandbox = self._link.typed("sandboxes.get", responses.Sandbox, arguments)
        return found

    def steps(self, sandbox: str) -> responses.Steps:
        """The steps of a sandbox's operations, oldest first, with their times and what they wait for.

        Raises NotFound, Ambiguous.
        """
        found: responses.Steps = self._link.typed("sandboxes.steps", responses.Steps, {"sandbox": sandbox})
        return found

    def destroy(self, sandbox: str) -> responses.Sandbox:
        """Destroy a sandbox and all that is in it.  Twice is quiet.

        Raises NotFound, Ambiguous, WrongState, IdempotencyConflict.
        """
        found: responses.Sandbox = self._link.typed("sandboxes.destroy", responses.Sandbox, {"sandbox": sandbox})
        return found

    def stop(self, sandbox: str) -> responses.Sandbox:
        """Stop a sandbox; its disk stays.

        Raises NotFound, Ambiguous, WrongState, IdempotencyConflict.
        """
        found: responses.Sandbox = self._link.typed("sandboxes.stop", responses.Sandbox, {"sandbox": sandbox})
        return found

    def start(self, sandbox: str) -> responses.Sandbox:
        """Start a stopped sandbox.

        Raises NotFound, Ambiguous, WrongState, IdempotencyConflict.
        """
        found: responses.Sandbox = self._link.typed("sandboxes.start", responses.Sandbox, {"sandbox": sandbox})
        return found

    def pause(self, sandbox: str) -> responses.Sandbox:
        """Freeze every process of a sandbox.

        Raises NotFound, Ambiguous, WrongState, IdempotencyConflict.
        """
        found: responses.Sandbox = self._link.typed("sandboxes.pause", responses.Sandbox, {"sandbox": sandbox})
        return found

    def resume(self, sandbox: str) -> responses.Sandbox:
        """Let a paused sandbox go on.

        Raises NotFound, Ambiguous, WrongState, IdempotencyConflict.
        """
        found: responses.Sandbox = self._link.typed("sandboxes.resume", responses.Sandbox, {"sandbox": sandbox})
        return found

    def renew(self, sandbox: str, *, ttl_s: float) -> responses.Sandbox:
        """Let a sandbox live at least ttl_s from now.  A lease is never shortened.

        Raises Invalid, NotFound, Ambiguous, LeaseExpired, WrongState, IdempotencyConflict.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "ttl_s": ttl_s,
        }
        found: responses.Sandbox = self._link.typed("sandboxes.renew", responses.Sandbox, arguments)
        return found

    def snapshot(self, sandbox: str, *, name: str | None = None, memory: bool | None = None) -> responses.Snapshot:
        """Keep a sandbox as it is now.  The answer comes at once; follow it by `GET` of the same path.

        Raises Invalid, TooLarge, NotFound, Ambiguous, WrongState, LeaseExpired, SandboxHasJob, BackendUnusable,
        Draining, IdempotencyConflict, SnapshotExists, LimitReached.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "name": name,
            "memory": memory,
        }
        found: responses.Snapshot = self._link.typed("sandboxes.snapshot", responses.Snapshot, arguments)
        return found

    def snapshots(self, sandbox: str, *, wait_s: float | None = None) -> responses.Snapshots:
        """A sandbox's snapshots, oldest first.  With wait_s: answer once none is being taken or removed.

        Raises Invalid, NotFound, Ambiguous.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "wait_s": wait_s,
        }
        found: responses.Snapshots = self._link.typed("sandboxes.snapshots", responses.Snapshots, arguments)
        return found

    def snapshot_remove(self, sandbox: str, snapshot: str) -> responses.Done:
        """Remove a snapshot.  Forks that began as it stay whole.

        Raises NotFound, Ambiguous, SnapshotNotFound, SnapshotUnusable, WrongState, LeaseExpired,
        IdempotencyConflict.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "snapshot": snapshot,
        }
        found: responses.Done = self._link.typed("sandboxes.snapshot_remove", responses.Done, arguments)
        return found

    def restore(self, sandbox: str, *, snapshot: str) -> responses.Sandbox:
        """Let a sandbox be again what it was.  What it has become since is lost, except in other snapshots.  One that
        runs runs again; one that is stopped stays so.

        Raises Invalid, TooLarge, NotFound, Ambiguous, WrongState, LeaseExpired, SandboxHasJob, BackendUnusable,
        Draining, IdempotencyConflict, SnapshotNotFound, SnapshotUnusable.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "snapshot": snapshot,
        }
        found: responses.Sandbox = self._link.typed("sandboxes.restore", responses.Sandbox, arguments)
        return found

    def fork(
        self,
        sandbox: str,
        *,
        count: int | None = None,
        name: str | None = None,
        snapshot: str | None = None,
        ttl_s: float | None = None,
    ) -> responses.Forks:
        """Make sandboxes that begin as this one is, or as its snapshot has it, each with an identity of its own.  The
        origin goes on.  A sandbox that runs is forked with its memory, where its backend can.

        Raises Invalid, TooLarge, NotFound, Ambiguous, WrongState, LeaseExpired, SandboxHasJob, BackendUnusable,
        Draining, IdempotencyConflict, SnapshotNotFound, SnapshotUnusable, BackendUnknown, NameTaken,
        LimitReached.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "count": count,
            "name": name,
            "snapshot": snapshot,
            "ttl_s": ttl_s,
        }
        found: responses.Forks = self._link.typed("sandboxes.fork", responses.Forks, arguments)
        return found

    def execute(
        self,
        sandbox: str,
        *,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin_b64: str | None = None,
        timeout_s: float | None = None,
    ) -> responses.Executed:
        """Run a command to its end and return what it wrote, up to EXEC_OUTPUT_BYTES_MAX for each stream.  Waits for a
        sandbox that is being made.  Ends the command when the caller goes away.

        Raises Invalid, TooLarge, NotFound, Ambiguous, WrongState, ProvisionFailed, BackendCallFailed.
        """
        arguments: dict[str, Any] = {
            "sandbox": sandbox,
            "argv": argv,
            "env": env,
            "cwd": cwd,
            "user": user,
            "stdin_b64": stdin_b64,
            "timeout_s": timeout_s,
        }
        found: responses.Executed = self._link.typed("sandboxes.execute", responses.Executed, arguments)
        return found

    def console(self, sandbox: str) -> responses.Console:
        """The tail of what the sandbox's own processes wrote.

        Raises NotFound, Ambiguous, BackendCallFailed.
        """
        found: responses.Console = self._link.typed("sandboxes.console", responses.Console, {"sandbox": sandbox})
        return found


class Jobs:
    """The rows `jobs.*`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def create(
        self,
        *,
        task: str,
        repo: requests.Repo | None = None,
        profile: str | None = None,
        agent: str | None = None,
        backend: str | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        keepalive: bool | None = None,
        env: Mapping[str, str] | None = None,
        artifact_globs: Sequence[str] | None = None,
    ) -> responses.Job:
        """Queue a job: a repository, a task and an agent.

        Raises Invalid, TooLarge, NotFound, BackendUnknown, BackendUnusable, TemplateNotReady, HostMountRefused,
        LimitReached, DiskFull, Draining, IdempotencyConflict, TaskInvalid, RepositoryUnreadable,
        RefMissing.
        """
        arguments: dict[str, Any] = {
            "task": task,
            "repo": repo,
            "profile": profile,
            "agent": agent,
            "backend": backend,
            "ttl_s": ttl_s,
            "timeout_s": timeout_s,
            "keepalive": keepalive,
            "env": env,
            "artifact_globs": artifact_globs,
        }
        found: responses.Job = self._link.typed("jobs.create", responses.Job, arguments)
        return found

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        state: Sequence[str] | None = None,
    ) -> responses.JobPage:
        """The caller's jobs, newest first; an administrator or viewer sees everybody's.  Long tasks are cut.

        Raises Invalid.
        """
        arguments: dict[str, Any] = {
            "cursor": cursor,
            "limit": limit,
            "state": state,
        }
        found: responses.JobPage = self._link.typed("jobs.list", responses.JobPage, arguments)
        return found

    def get(self, job: str, *, wait_s: float | None = None) -> responses.Job:
        """One job, by id or unique id prefix.  With wait_s: answer once it has ended.

        Raises Invalid, NotFound, Ambiguous.
        """
        found: responses.Job = self._link.typed("jobs.get", responses.Job, {"job": job, "wait_s": wait_s})
        return found

    def steps(self, job: str) -> responses.Steps:
        """The steps of a job and of its sandbox, oldest first.

        Raises NotFound, Ambiguous.
        """
        found: responses.Steps = self._link.typed("jobs.steps", responses.Steps, {"job": job})
        return found

    def cancel(self, job: str) -> responses.Job:
        """Stop a job.  The work that is there is brought back first.

        Raises NotFound, Ambiguous, WrongState, IdempotencyConflict.
        """
        found: responses.Job = self._link.typed("jobs.cancel", responses.Job, {"job": job})
        return found

    def output(self, job: str, *, offset: int | None = None, limit: int | None = None) -> bytes:
        """What the agent wrote, from a byte offset, up to `limit` bytes.  Hostile text: do not print it unfiltered.

        Raises Invalid, NotFound, Ambiguous.
        """
        found: bytes = self._link.typed("jobs.output", None, {"job": job, "offset": offset, "limit": limit})
        return found

    def artifacts(self, job: str) -> responses.Artifacts:
        """What the job brought back.

        Raises NotFound, Ambiguous.
        """
        found: responses.Artifacts = self._link.typed("jobs.artifacts", responses.Artifacts, {"job": job})
        return found

    def artifact(self, job: str, name: str) -> bytes:
        """One artifact's content; its digest is in the header Digest-SHA256.

        Raises NotFound, Ambiguous, ResultMissing.
        """
        found: bytes = self._link.typed("jobs.artifact", None, {"job": job, "name": name})
        return found

    def patch(self, job: str) -> bytes:
        """The work as one patch.

        Raises NotFound, Ambiguous, ResultMissing.
        """
        found: bytes = self._link.typed("jobs.patch", None, {"job": job})
        return found

    def bundle(self, job: str) -> bytes:
        """The work's commits as a git bundle.

        Raises NotFound, Ambiguous, ResultMissing.
        """
        found: bytes = self._link.typed("jobs.bundle", None, {"job": job})
        return found


class Templates:
    """The rows `templates.*`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def list(self) -> responses.Templates:
        """Every template that has a recipe or a build."""
        found: responses.Templates = self._link.typed("templates.list", responses.Templates, {})
        return found

    def get(self, template: str) -> responses.Template:
        """One template with its provenance.

        Raises NotFound.
        """
        found: responses.Template = self._link.typed("templates.get", responses.Template, {"template": template})
        return found

    def build(self, template: str) -> responses.Template:
        """Begin a template's build, or join the one under way.  Follow it by `GET /v1/templates/{template}`.

        Raises NotFound, SettingsInvalid, DiskFull, Draining.
        """
        found: responses.Template = self._link.typed("templates.build", responses.Template, {"template": template})
        return found

    def remove(self, template: str) -> responses.Done:
        """Remove a template's files; its recipe stays.

        Raises NotFound, TemplateInUse.
        """
        found: responses.Done = self._link.typed("templates.remove", responses.Done, {"template": template})
        return found


class Profiles:
    """The rows `profiles.*`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def list(self) -> responses.Profiles:
        """Every profile."""
        found: responses.Profiles = self._link.typed("profiles.list", responses.Profiles, {})
        return found

    def get(self, profile: str) -> responses.Profile:
        """One profile with every value.

        Raises NotFound.
        """
        found: responses.Profile = self._link.typed("profiles.get", responses.Profile, {"profile": profile})
        return found

    def validate(self, *, text: str, source: str | None = None) -> responses.Profiles:
        """Check the text of a profile file as this daemon would; nothing is kept.

        Raises Invalid, TooLarge, SettingsInvalid, HostMountRefused.
        """
        arguments: dict[str, Any] = {
            "text": text,
            "source": source,
        }
        found: responses.Profiles = self._link.typed("profiles.validate", responses.Profiles, arguments)
        return found


class Agents:
    """The rows `agents.*`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def list(self) -> responses.Agents:
        """The agents that a job can run."""
        found: responses.Agents = self._link.typed("agents.list", responses.Agents, {})
        return found


class Events:
    """The rows `events.*`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def list(
        self,
        *,
        since: int | None = None,
        subject: str | None = None,
        types: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> responses.EventPage:
        """Events after a sequence number, oldest first.  A user sees those of own sandboxes and jobs.

        Raises Invalid.
        """
        arguments: dict[str, Any] = {
            "since": since,
            "subject": subject,
            "types": types,
            "limit": limit,
        }
        found: responses.EventPage = self._link.typed("events.list", responses.EventPage, arguments)
        return found


class Daemon:
    """The rows `daemon.*`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def status(self) -> responses.Status:
        """What this daemon is and holds."""
        found: responses.Status = self._link.typed("daemon.status", responses.Status, {})
        return found

    def doctor(self) -> responses.Findings:
        """Look at the machine: what is there, what is missing and how to get it."""
        found: responses.Findings = self._link.typed("daemon.doctor", responses.Findings, {})
        return found

    def reload(self) -> responses.Done:
        """Read profiles and recipes again.

        Raises SettingsInvalid.
        """
        found: responses.Done = self._link.typed("daemon.reload", responses.Done, {})
        return found

    def metrics(self) -> bytes:
        """Counters and gauges in the text format of Prometheus."""
        found: bytes = self._link.typed("daemon.metrics", None, {})
        return found

    def openapi(self) -> bytes:
        """This API as an OpenAPI 3.1 document."""
        found: bytes = self._link.typed("daemon.openapi", None, {})
        return found

    def whoami(self) -> responses.Whoami:
        """Whom the daemon takes the caller for, and what that one may do."""
        found: responses.Whoami = self._link.typed("daemon.whoami", responses.Whoami, {})
        return found
