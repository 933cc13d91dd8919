"""The routes of the API: one row each.

The dispatcher, the SDK, the OpenAPI file, the reference page and the authorisation tests are derived from these rows.
Types are named as text and looked up on use, so that the CLI can read the table without importing pydantic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from agentlab import errors as e

if TYPE_CHECKING:
    from pydantic import BaseModel

Target = Literal["sandbox", "job", "template", "profile"]
Stream = Literal["sse", "websocket", "bytes", "text"]
Errors = tuple[type[e.AgentLabError], ...]

PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One row.  `permission` is what the caller's role must have; `target` the noun whose owner decides besides."""

    name: str  # noun.verb, which is also the SDK's attribute path
    method: str
    path: str
    permission: str
    doc: str
    target: Target | None = None
    request: str | None = None  # a class of wire.requests, sent as a JSON body
    query: str | None = None  # a class of wire.requests, sent as a query string
    response: str | None = None  # a class of wire.responses
    upload: bool = False  # the body is bytes, streamed
    stream: Stream | None = None
    status: int = 200
    mutates: bool = False  # takes an Idempotency-Key
    errors: Errors = ()

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names in the path, in order."""
        return tuple(match[1] for match in PARAMETER.finditer(self.path))

    @property
    def request_type(self) -> type[BaseModel] | None:
        """The class of the body."""
        return _type("requests", self.request)

    @property
    def query_type(self) -> type[BaseModel] | None:
        """The class of the query string."""
        return _type("requests", self.query)

    @property
    def response_type(self) -> type[BaseModel] | None:
        """The class of the answer."""
        return _type("responses", self.response)


@cache
def _type(module: str, name: str | None) -> type[BaseModel] | None:
    if name is None:
        return None
    found: type[BaseModel] = getattr(import_module(f"agentlab.wire.{module}"), name)
    return found


def _sandbox_verb(verb: str, doc: str) -> Route:
    return Route(
        name=f"sandboxes.{verb}",
        method="DELETE" if verb == "destroy" else "POST",
        path="/v1/sandboxes/{sandbox}" + ("" if verb == "destroy" else f"/{verb}"),
        permission="sandbox:write",
        target="sandbox",
        response="Sandbox",
        status=202,
        mutates=True,
        errors=(e.NotFound, e.Ambiguous, e.WrongState, e.IdempotencyConflict),
        doc=doc,
    )


_NAMED: Errors = (e.NotFound, e.Ambiguous)
_NEW: Errors = (
    e.Invalid, e.TooLarge, e.NotFound, e.BackendUnknown, e.BackendUnusable, e.TemplateNotReady, e.HostMountRefused,
    e.LimitReached, e.DiskFull, e.Draining, e.IdempotencyConflict,
)  # fmt: skip

_KEPT: Errors = (
    e.Invalid, e.TooLarge, *_NAMED, e.WrongState, e.LeaseExpired, e.SandboxHasJob, e.BackendUnusable, e.Draining,
    e.IdempotencyConflict,
)  # fmt: skip

SANDBOXES = (
    Route(
        name="sandboxes.create", method="POST", path="/v1/sandboxes", permission="sandbox:write",
        request="CreateSandbox", response="Sandbox", status=202, mutates=True, errors=(*_NEW, e.NameTaken),
        doc="Ask for a sandbox.  The answer comes at once; the sandbox is made in the background.",
    ),
    Route(
        name="sandboxes.list", method="GET", path="/v1/sandboxes", permission="sandbox:read",
        query="ListSandboxes", response="SandboxPage", errors=(e.Invalid,),
        doc="The caller's sandboxes, newest first; an administrator or viewer sees everybody's.",
    ),
    Route(
        name="sandboxes.get", method="GET", path="/v1/sandboxes/{sandbox}", permission="sandbox:read",
        target="sandbox", query="WaitSettled", response="Sandbox", errors=(e.Invalid, *_NAMED),
        doc="One sandbox, by id, name or unique id prefix.  With wait_s: answer once nothing is under way.",
    ),
    Route(
        name="sandboxes.steps", method="GET", path="/v1/sandboxes/{sandbox}/steps", permission="sandbox:read",
        target="sandbox", response="Steps", errors=_NAMED,
        doc="The steps of a sandbox's operations, oldest first, with their times and what they wait for.",
    ),
    _sandbox_verb("destroy", "Destroy a sandbox and all that is in it.  Twice is quiet."),
    _sandbox_verb("stop", "Stop a sandbox; its disk stays."),
    _sandbox_verb("start", "Start a stopped sandbox."),
    _sandbox_verb("pause", "Freeze every process of a sandbox."),
    _sandbox_verb("resume", "Let a paused sandbox go on."),
    Route(
        name="sandboxes.renew", method="POST", path="/v1/sandboxes/{sandbox}/lease", permission="sandbox:write",
        target="sandbox", request="RenewLease", response="Sandbox", mutates=True,
        errors=(e.Invalid, *_NAMED, e.LeaseExpired, e.WrongState, e.IdempotencyConflict),
        doc="Let a sandbox live at least ttl_s from now.  A lease is never shortened.",
    ),
    Route(
        name="sandboxes.snapshot", method="POST", path="/v1/sandboxes/{sandbox}/snapshots",
        permission="sandbox:write", target="sandbox", request="TakeSnapshot", response="Snapshot", status=202,
        mutates=True, errors=(*_KEPT, e.SnapshotExists, e.LimitReached),
        doc="Keep a sandbox as it is now.  The answer comes at once; follow it by `GET` of the same path.",
    ),
    Route(
        name="sandboxes.snapshots", method="GET", path="/v1/sandboxes/{sandbox}/snapshots", permission="sandbox:read",
        target="sandbox", query="WaitSettled", response="Snapshots", errors=(e.Invalid, *_NAMED),
        doc="A sandbox's snapshots, oldest first.  With wait_s: answer once none is being taken or removed.",
    ),
    Route(
        name="sandboxes.snapshot_remove", method="DELETE", path="/v1/sandboxes/{sandbox}/snapshots/{snapshot}",
        permission="sandbox:write", target="sandbox", response="Done", status=202, mutates=True,
        errors=(
            *_NAMED, e.SnapshotNotFound, e.SnapshotUnusable, e.WrongState, e.LeaseExpired, e.IdempotencyConflict,
        ),
        doc="Remove a snapshot.  Forks that began as it stay whole.",
    ),
    Route(
        name="sandboxes.restore", method="POST", path="/v1/sandboxes/{sandbox}/restore",
        permission="sandbox:write", target="sandbox", request="RestoreSnapshot", response="Sandbox", status=202,
        mutates=True, errors=(*_KEPT, e.SnapshotNotFound, e.SnapshotUnusable),
        doc="Let a sandbox be again what it was.  What it has become since is lost, except in other snapshots.  "
        "One that runs runs again; one that is stopped stays so.",
    ),
    Route(
        name="sandboxes.fork", method="POST", path="/v1/sandboxes/{sandbox}/fork", permission="sandbox:write",
        target="sandbox", request="ForkSandbox", response="Forks", status=202, mutates=True,
        errors=(
            *_KEPT, e.SnapshotNotFound, e.SnapshotUnusable, e.BackendUnknown, e.NameTaken, e.LimitReached,
        ),
        doc="Make sandboxes that begin as this one is, or as its snapshot has it, each with an identity of its own.  "
        "The origin goes on.  A sandbox that runs is forked with its memory, where its backend can.",
    ),
    Route(
        name="sandboxes.execute", method="POST", path="/v1/sandboxes/{sandbox}/exec", permission="sandbox:write",
        target="sandbox", request="Execute", response="Executed",
        errors=(e.Invalid, e.TooLarge, *_NAMED, e.WrongState, e.ProvisionFailed, e.BackendCallFailed),
        doc="Run a command to its end and return what it wrote, up to EXEC_OUTPUT_BYTES_MAX for each stream.  "
        "Waits for a sandbox that is being made.  Ends the command when the caller goes away.",
    ),
    Route(
        name="sandboxes.attach", method="GET", path="/v1/sandboxes/{sandbox}/attach", permission="sandbox:write",
        target="sandbox", stream="websocket", status=101,
        errors=(*_NAMED, e.WrongState, e.ProvisionFailed, e.BackendCallFailed),
        doc="Run a command with its streams connected, with or without a terminal.  See the attach protocol.",
    ),
    Route(
        name="sandboxes.console", method="GET", path="/v1/sandboxes/{sandbox}/console", permission="sandbox:read",
        target="sandbox", response="Console", errors=(*_NAMED, e.BackendCallFailed),
        doc="The tail of what the sandbox's own processes wrote.",
    ),
)  # fmt: skip

JOBS = (
    Route(
        name="jobs.create", method="POST", path="/v1/jobs", permission="job:write",
        request="CreateJob", response="Job", status=202, mutates=True,
        errors=(*_NEW, e.TaskInvalid, e.RepositoryUnreadable, e.RefMissing),
        doc="Queue a job: a repository, a task and an agent.",
    ),
    Route(
        name="jobs.list", method="GET", path="/v1/jobs", permission="job:read",
        query="ListJobs", response="JobPage", errors=(e.Invalid,),
        doc="The caller's jobs, newest first; an administrator or viewer sees everybody's.  Long tasks are cut.",
    ),
    Route(
        name="jobs.get", method="GET", path="/v1/jobs/{job}", permission="job:read",
        target="job", query="WaitEnded", response="Job", errors=(e.Invalid, *_NAMED),
        doc="One job, by id or unique id prefix.  With wait_s: answer once it has ended.",
    ),
    Route(
        name="jobs.steps", method="GET", path="/v1/jobs/{job}/steps", permission="job:read",
        target="job", response="Steps", errors=_NAMED,
        doc="The steps of a job and of its sandbox, oldest first.",
    ),
    Route(
        name="jobs.cancel", method="POST", path="/v1/jobs/{job}/cancel", permission="job:write",
        target="job", response="Job", status=202, mutates=True,
        errors=(*_NAMED, e.WrongState, e.IdempotencyConflict),
        doc="Stop a job.  The work that is there is brought back first.",
    ),
    Route(
        name="jobs.output", method="GET", path="/v1/jobs/{job}/output", permission="job:read",
        target="job", query="ReadOutput", stream="bytes", errors=(e.Invalid, *_NAMED),
        doc="What the agent wrote, from a byte offset, up to `limit` bytes.  Hostile text: do not print it unfiltered.",
    ),
    Route(
        name="jobs.follow", method="GET", path="/v1/jobs/{job}/output/stream", permission="job:read",
        target="job", query="FollowOutput", stream="sse", errors=(e.Invalid, *_NAMED),
        doc="A job as it happens: events `state`, `step`, `output` (its id is the offset after it) and `end`.  "
        "Resumes with Last-Event-ID.",
    ),
    Route(
        name="jobs.artifacts", method="GET", path="/v1/jobs/{job}/artifacts", permission="job:read",
        target="job", response="Artifacts", errors=_NAMED,
        doc="What the job brought back.",
    ),
    Route(
        name="jobs.artifact", method="GET", path="/v1/jobs/{job}/artifacts/{name:path}", permission="job:read",
        target="job", stream="bytes", errors=(*_NAMED, e.ResultMissing),
        doc="One artifact's content; its digest is in the header Digest-SHA256.",
    ),
    Route(
        name="jobs.patch", method="GET", path="/v1/jobs/{job}/patch", permission="job:read",
        target="job", stream="bytes", errors=(*_NAMED, e.ResultMissing),
        doc="The work as one patch.",
    ),
    Route(
        name="jobs.bundle", method="GET", path="/v1/jobs/{job}/bundle", permission="job:read",
        target="job", stream="bytes", errors=(*_NAMED, e.ResultMissing),
        doc="The work's commits as a git bundle.",
    ),
)  # fmt: skip

OTHERS = (
    Route(
        name="blobs.put", method="PUT", path="/v1/blobs/{digest}", permission="blob:write", upload=True,
        response="Blob", status=201, errors=(e.Invalid, e.TooLarge, e.DiskFull, e.Draining),
        doc="Upload bytes, such as a repository's bundle, under their SHA-256.  Twice is quiet.",
    ),
    Route(
        name="blobs.head", method="HEAD", path="/v1/blobs/{digest}", permission="blob:write",
        errors=(e.Invalid, e.NotFound),
        doc="Whether these bytes are there already.",
    ),
    Route(
        name="templates.list", method="GET", path="/v1/templates", permission="template:read",
        response="Templates", doc="Every template that has a recipe or a build.",
    ),
    Route(
        name="templates.get", method="GET", path="/v1/templates/{template}", permission="template:read",
        target="template", response="Template", errors=(e.NotFound,),
        doc="One template with its provenance.",
    ),
    Route(
        name="templates.build", method="POST", path="/v1/templates/{template}/build", permission="template:write",
        target="template", response="Template", status=202,
        errors=(e.NotFound, e.SettingsInvalid, e.DiskFull, e.Draining),
        doc="Begin a template's build, or join the one under way.  Follow it by `GET /v1/templates/{template}`.",
    ),
    Route(
        name="templates.remove", method="DELETE", path="/v1/templates/{template}", permission="template:write",
        target="template", response="Done", errors=(e.NotFound, e.TemplateInUse),
        doc="Remove a template's files; its recipe stays.",
    ),
    Route(
        name="profiles.list", method="GET", path="/v1/profiles", permission="profile:read",
        response="Profiles", doc="Every profile.",
    ),
    Route(
        name="profiles.get", method="GET", path="/v1/profiles/{profile}", permission="profile:read",
        target="profile", response="Profile", errors=(e.NotFound,), doc="One profile with every value.",
    ),
    Route(
        name="profiles.validate", method="POST", path="/v1/profiles/validate", permission="profile:read",
        request="ValidateProfile", response="Profiles",
        errors=(e.Invalid, e.TooLarge, e.SettingsInvalid, e.HostMountRefused),
        doc="Check the text of a profile file as this daemon would; nothing is kept.",
    ),
    Route(
        name="agents.list", method="GET", path="/v1/agents", permission="profile:read",
        response="Agents", doc="The agents that a job can run.",
    ),
    Route(
        name="events.list", method="GET", path="/v1/events", permission="event:read",
        query="ListEvents", response="EventPage", errors=(e.Invalid,),
        doc="Events after a sequence number, oldest first.  A user sees those of own sandboxes and jobs.",
    ),
    Route(
        name="events.follow", method="GET", path="/v1/events/stream", permission="event:read",
        query="FollowEvents", stream="sse", errors=(e.Invalid,),
        doc="Events as they happen; the id of each is its sequence number.  Resumes with Last-Event-ID.",
    ),
    Route(
        name="daemon.status", method="GET", path="/v1/status", permission="daemon:read",
        response="Status", doc="What this daemon is and holds.",
    ),
    Route(
        name="daemon.doctor", method="GET", path="/v1/doctor", permission="daemon:read",
        response="Findings", doc="Look at the machine: what is there, what is missing and how to get it.",
    ),
    Route(
        name="daemon.reload", method="POST", path="/v1/reload", permission="daemon:admin",
        response="Done", errors=(e.SettingsInvalid,), doc="Read profiles and recipes again.",
    ),
    Route(
        name="daemon.metrics", method="GET", path="/v1/metrics", permission="daemon:read", stream="text",
        doc="Counters and gauges in the text format of Prometheus.",
    ),
    Route(
        name="daemon.openapi", method="GET", path="/v1/openapi.json", permission="daemon:read", stream="text",
        doc="This API as an OpenAPI 3.1 document.",
    ),
    Route(
        name="daemon.whoami", method="GET", path="/v1/whoami", permission="daemon:read",
        response="Whoami", doc="Whom the daemon takes the caller for, and what that one may do.",
    ),
)  # fmt: skip

ROUTES: dict[str, Route] = {route.name: route for route in (*SANDBOXES, *JOBS, *OTHERS)}

# Any route may answer with these besides its own.
ALWAYS: Errors = (e.Internal, e.Forbidden)

assert len({(route.method, route.path) for route in ROUTES.values()}) == len(ROUTES)  # no row hides another
