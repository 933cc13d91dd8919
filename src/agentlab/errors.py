"""Every error that a user can meet: code, message, remedy, HTTP status, exit code.  Documented from the classes."""

from __future__ import annotations

from typing import Any, ClassVar, Self

DOCS = "docs/reference/errors.md"


class AgentLabError(Exception):
    """Base of every error a user may see."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    message: ClassVar[str] = "Something failed inside agentlabd: {cause}"
    remedy: ClassVar[str] = "See the daemon's log; `agentlab doctor` checks the machine."

    request_id: str | None = None  # set on errors that a daemon told
    _told: str | None = None

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__(self.message.format(**facts))

    @classmethod
    def received(cls, *, message: str, cause: str, remedy: str, facts: dict[str, Any]) -> Self:
        """This error as a daemon told it: its sentences are taken as they are, whatever facts came with them."""
        error = cls.__new__(cls)
        Exception.__init__(error, message)
        error.facts, error._told = {**facts, "cause": cause}, remedy
        return error

    @property
    def advice(self) -> str:
        """What to do, with this case's facts filled in."""
        return self._told if self._told is not None else self.remedy.format(**self.facts)

    @property
    def cause(self) -> str:
        """The underlying reason in a sentence; the message itself where there is none beside it."""
        return str(self.facts.get("cause", "")) or str(self)


class Internal(AgentLabError):
    """A defect of ours, or something nobody foresaw.  The daemon's log has the traceback under the same request id."""


# Requests


class Invalid(AgentLabError):
    """The request, or a value in it, is not understood.  Every problem is named with its place."""

    code, status, exit_code = "request/invalid", 400, 2
    message = "The request is not valid: {cause}"
    remedy = "Correct what is named; docs/reference/api.md lists every field."


class TooLarge(AgentLabError):
    """A body, task or upload exceeds its named limit."""

    code, status, exit_code = "request/too-large", 413, 2
    message = "{what} is larger than its limit: {limit_name} = {limit}."
    remedy = "Make it smaller; for a long task, put the text into a file of the repository and name that file."


class RouteUnknown(AgentLabError):
    """No route has this path and method."""

    code, status, exit_code = "request/no-route", 404, 2
    message = "There is no {method} {path}."
    remedy = "docs/reference/api.md lists the routes.  Client and daemon may differ in version: `agentlab status`."


class Forbidden(AgentLabError):
    """The caller's role does not permit this."""

    code, status, exit_code = "request/forbidden", 403, 5
    message = "{identity} may not do this: it needs the permission {permission}."
    remedy = "Ask an administrator of this daemon, or use an account that has the permission."


class IdempotencyConflict(AgentLabError):
    """The same Idempotency-Key came with a different request."""

    code, status, exit_code = "request/key-reused", 409, 2
    message = "Idempotency-Key {key} was used before for a different request."
    remedy = "Use a new key for a new request."


class Draining(AgentLabError):
    """The daemon is stopping and takes no new work."""

    code, status, exit_code, retryable = "daemon/draining", 503, 7, True
    message = "The daemon is stopping and takes no new work."
    remedy = "Try again once it has started again."


class LimitReached(AgentLabError):
    """A named limit of the daemon is reached."""

    code, status, exit_code, retryable = "limit/reached", 429, 8, True
    message = "{limit_name} = {limit} is reached: {cause}"
    remedy = "{what_to_do}"


class DiskFull(AgentLabError):
    """The file system that holds AgentLab's state has too little space left to accept work safely."""

    code, status, exit_code, retryable = "disk/full", 507, 8, True
    message = "Too little disk space at {path}: {free} are free, {needed} are needed."
    remedy = "Free some space: `agentlab template list` and `agentlab job list` show what AgentLab keeps; remove some."


# Things that are named


class NotFound(AgentLabError):
    """Nothing of this kind has this id, id prefix or name, or the caller may not see it."""

    code, status, exit_code = "not-found", 404, 4
    message = "There is no {noun} {name!r}.{hint}"
    remedy = "`agentlab {noun} list` shows what there is."


class Ambiguous(AgentLabError):
    """An id prefix fits several."""

    code, status, exit_code = "not-unique", 409, 4
    message = "{name!r} fits several: {found}."
    remedy = "Give more letters of the id."


class NameTaken(AgentLabError):
    """A living sandbox has this name."""

    code, status, exit_code = "name/taken", 409, 6
    message = "A {noun} named {name!r} exists: {existing}."
    remedy = "Choose another name, or destroy the other first."


class WrongState(AgentLabError):
    """The thing is in a state in which this cannot be done."""

    code, status, exit_code = "state/wrong", 409, 6
    message = "{noun} {name} is {state}; this needs {needed}."
    remedy = "`agentlab {noun} show {name}` tells what happened and what it waits for."


class LeaseExpired(AgentLabError):
    """The lease ended before the request; the sandbox is being destroyed."""

    code, status, exit_code = "lease/expired", 410, 6
    message = "The lease of sandbox {name} ended {ago}."
    remedy = "Make a new sandbox: `agentlab sandbox new`; `--ttl` sets how long it lives."


# Sandboxes and what they are made of


class ProvisionFailed(AgentLabError):
    """A sandbox could not be made.  The failing step, its cause and its remedy are kept with the sandbox."""

    code, status, exit_code = "sandbox/provision-failed", 502, 10
    message = "Sandbox {sandbox} could not be made: {step} failed: {cause}"
    remedy = "{what_to_do}"


class BackendUnusable(AgentLabError):
    """The backend lacks something on this machine."""

    code, status, exit_code = "backend/unusable", 503, 9
    message = "Backend {backend} cannot make sandboxes here: {cause}"
    remedy = "{what_to_do}"


class BackendUnknown(AgentLabError):
    """No backend has this name, or it is not enabled."""

    code, status, exit_code = "backend/unknown", 404, 4
    message = "There is no backend {name!r}.{hint}"
    remedy = "`agentlab status` lists the backends of this daemon."


class BackendCallFailed(AgentLabError):
    """The backend could not do what was asked of it."""

    code, status, exit_code = "backend/failed", 502, 9
    message = "Backend {backend} failed: {cause}"
    remedy = "{what_to_do}"


class SandboxHasJob(AgentLabError):
    """A job works in the sandbox: what it holds, its grant and its secrets among it, must exist once."""

    code, status, exit_code = "sandbox/has-job", 409, 6
    message = "Sandbox {name} cannot be {what} while {job} works in it (that job is {state})."
    remedy = "Wait for the job (`agentlab job wait {job}`) or cancel it (`agentlab job cancel {job}`)."


class SnapshotNotFound(AgentLabError):
    """The sandbox has no snapshot of this name."""

    code, status, exit_code = "snapshot/not-found", 404, 4
    message = "Sandbox {sandbox} has no snapshot {name!r}.{hint}"
    remedy = "`agentlab sandbox snapshots {sandbox}` lists them."


class SnapshotExists(AgentLabError):
    """The sandbox has a snapshot of this name, whether it is complete or not."""

    code, status, exit_code = "snapshot/exists", 409, 6
    message = "Sandbox {sandbox} has a snapshot {name!r}, which is {state}."
    remedy = "Choose another name, or remove that one first: `agentlab sandbox snapshot-remove {sandbox} {name}`."


class SnapshotUnusable(AgentLabError):
    """The snapshot is not there yet, or not any more, or something needs it."""

    code, status, exit_code = "snapshot/unusable", 409, 6
    message = "Snapshot {name} of sandbox {sandbox} cannot be {what}: {cause}"
    remedy = "`agentlab sandbox snapshots {sandbox}` shows its state."


class SnapshotFailed(AgentLabError):
    """A snapshot could not be taken, or a sandbox could not be brought back to one.  The cause is kept with it."""

    code, status, exit_code = "snapshot/failed", 502, 10
    message = "Sandbox {sandbox}: {step} {name} failed: {cause}"
    remedy = "{what_to_do}"


class HostMountRefused(AgentLabError):
    """A directory of the host was asked for inside a sandbox."""

    code, status, exit_code = "profile/host-mount", 400, 2
    message = "Host mounts are refused: {where} asks for {path!r}."
    remedy = (
        "A mounted host folder is a hole in the wall: what the agent writes there runs on the host later.  "
        "Send files with the repository, and bring them back with `--artifact`."
    )


class TemplateNotReady(AgentLabError):
    """The template has a recipe but no finished build."""

    code, status, exit_code = "template/not-ready", 409, 6
    message = "Template {name} is not built{detail}."
    remedy = "Build it: `agentlab template build {name}`."


class TemplateInUse(AgentLabError):
    """A template cannot be removed while sandboxes live on it."""

    code, status, exit_code = "template/in-use", 409, 6
    message = "Template {name} is used by {users}."
    remedy = "Destroy these sandboxes first."


class TemplateBuildFailed(AgentLabError):
    """A step of a template's build failed; finished steps are kept and will not be repeated."""

    code, status, exit_code = "template/build-failed", 502, 10
    message = "Building template {name} failed at {step}: {cause}"
    remedy = "{what_to_do}"


class ImageUnusable(AgentLabError):
    """A virtual machine's image lacks a file, is truncated, or is not what was built; nothing is started from it."""

    code, status, exit_code = "template/image-unusable", 500, 10
    message = "The VM image in {path} cannot be used: {cause}"
    remedy = "Destroy the sandboxes that were made from it and delete the folder; the next sandbox builds it anew."


# Jobs


class RepositoryUnreadable(AgentLabError):
    """A local path is not a git repository, or git could not read it."""

    code, status, exit_code = "repo/unreadable", 400, 2
    message = "{path} cannot be used as a repository: {cause}"
    remedy = "Give the path of a git work tree or bare repository, or a URL that git can clone."


class RefMissing(AgentLabError):
    """The repository has no such branch, tag or commit."""

    code, status, exit_code = "repo/no-such-ref", 400, 4
    message = "{repo} has no ref {ref!r}.{hint}"
    remedy = "`git -C {repo} branch -a` and `git -C {repo} tag` show what there is."


class TaskInvalid(AgentLabError):
    """The task is empty, not UTF-8 text, or too long."""

    code, status, exit_code = "task/invalid", 400, 2
    message = "The task cannot be used: {cause}"
    remedy = "A task is UTF-8 text of at most 1 MiB: `--task TEXT`, `--task @FILE`, or `--task -` for standard input."


class ResultMissing(AgentLabError):
    """The job has not brought back what was asked for."""

    code, status, exit_code = "job/no-result", 404, 6
    message = "Job {job} has no {what}: {cause}"
    remedy = "`agentlab job show {job}` tells its state; `agentlab job logs {job}` its output."


class ApplyFailed(AgentLabError):
    """The job's commits could not be put into the clone; the clone is unchanged."""

    code, status, exit_code = "job/apply-failed", 409, 11
    message = "The work of {job} could not be applied to {clone}: {cause}"
    remedy = "{what_to_do}"


class JobEnded(AgentLabError):
    """`job run` and `job wait`: the job ended otherwise than well.  Not an error of AgentLab."""

    code, status, exit_code = "job/not-succeeded", 409, 20
    message = "Job {job} {state}: {cause}"
    remedy = "{what_to_do}"


# The daemon and its settings


class SettingsInvalid(AgentLabError):
    """The configuration file or a profile or recipe has errors; all of them are listed."""

    code, status, exit_code = "settings/invalid", 400, 2
    message = "{problems}"
    remedy = "Correct the named lines; docs/reference/settings.md lists every setting."


class DaemonNotRunning(AgentLabError):
    """Nothing answers on the daemon's socket."""

    code, status, exit_code, retryable = "daemon/not-running", 503, 7, True
    message = "No daemon answers at {socket}: {cause}"
    remedy = "Start one with `agentlab up`, or the service with `systemctl start agentlabd`."


class DaemonAlreadyRunning(AgentLabError):
    """Another daemon holds the state directory."""

    code, status, exit_code = "daemon/already-running", 409, 6
    message = "Another agentlabd (process {pid}) holds {path}."
    remedy = "Use it, or stop it first: `agentlab down`.  A second daemon needs a state directory of its own."


class AddressInUse(AgentLabError):
    """A socket, port or subnet that the daemon needs is taken."""

    code, status, exit_code = "daemon/address-in-use", 409, 6
    message = "{what} is in use: {cause}"
    remedy = "{what_to_do}"


class PermissionMissing(AgentLabError):
    """The operating system refused access to something the daemon or the CLI needs."""

    code, status, exit_code = "os/permission", 403, 5
    message = "No permission for {path}: {cause}"
    remedy = "{what_to_do}"


class SchemaTooNew(AgentLabError):
    """The database was written by a newer AgentLab."""

    code, status, exit_code = "store/too-new", 409, 6
    message = "The database {path} has schema {found}; this agentlabd knows up to {known}."
    remedy = "Install the newer agentlabd again, or restore the copy that was kept before the migration: {copies}"


class StoreUnreadable(AgentLabError):
    """The database is damaged or is not ours."""

    code, status, exit_code = "store/unreadable", 500, 6
    message = "The database {path} cannot be used: {cause}"
    remedy = "Stop the daemon and keep the file; copies made before migrations lie beside it."


class PreflightFailed(AgentLabError):
    """The machine lacks something without which the daemon cannot start."""

    code, status, exit_code = "daemon/preflight", 503, 9
    message = "The daemon cannot start: {cause}"
    remedy = "{what_to_do}"


class SetupFailed(AgentLabError):
    """Setting something up for AgentLab was refused or did not come to its end.  Run again, it goes on from there."""

    code, status, exit_code = "setup/failed", 502, 9
    message = "Setting up {what} failed: {cause}"
    remedy = "{what_to_do}"


class HostNetworkRefused(AgentLabError):
    """Something of the host stands in the way of the agent bridge; nothing was changed."""

    code, status, exit_code = "host-network/refused", 409, 6
    message = "The agent bridge cannot be {what} here: {cause}"
    remedy = "{what_to_do}"


class HostNetworkFailed(AgentLabError):
    """A step of making the agent bridge or of taking it away failed; the steps before it were carried out."""

    code, status, exit_code = "host-network/failed", 500, 10
    message = "{step} failed: {cause}"
    remedy = "{what_to_do}"


def _subclasses(of: type[AgentLabError]) -> list[type[AgentLabError]]:
    direct = of.__subclasses__()
    return direct + [below for each in direct for below in _subclasses(each)]


_ALL: list[type[AgentLabError]] = [AgentLabError, *_subclasses(AgentLabError)]
ERRORS: dict[str, type[AgentLabError]] = {each.code: each for each in _ALL}

# Exit codes of the CLI beyond those on the classes.
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
