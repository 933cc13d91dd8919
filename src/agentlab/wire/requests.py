"""What clients send: bodies and query strings.  Strict, and an unknown field is refused.

Durations are seconds and sizes are bytes, as the suffixes say.  Left out or null means: as the profile says.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agentlab.model.artifact import ARTIFACT_NAME_LENGTH_MAX
from agentlab.model.ids import is_digest, is_name
from agentlab.model.job import ENV_COUNT_MAX, GLOBS_MAX, TASK_BYTES_MAX, TIMEOUT_S_MAX
from agentlab.model.lease import LEASE_TTL_S_MAX
from agentlab.model.machine import JobState, SandboxState
from agentlab.model.network import NetworkMode
from agentlab.model.resources import DISK_BYTES_MIN, MEMORY_BYTES_MIN

REQUEST_BYTES_MAX = 8 << 20  # a task of TASK_BYTES_MAX still fits when every character of it is escaped
BLOB_BYTES_MAX = 4 << 30
WAIT_S_MAX = 60.0
PAGE_MAX = 1000
PAGE_DEFAULT = 100
EXEC_TIMEOUT_S_MAX = 3600.0
EXEC_OUTPUT_BYTES_MAX = 1 << 20
EXEC_INPUT_BYTES_MAX = 4 << 20
OUTPUT_READ_BYTES_MAX = 16 << 20
PROFILE_BYTES_MAX = 1 << 20
SIZE_MAX = 1 << 50  # beyond any machine; keeps arithmetic on sizes inside 63 bits


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("not a name: lower-case letters, digits and inner dashes, at most 63, not like an id")
    return text


def _digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError("not a SHA-256 in lower-case hex")
    return text


def _plain(text: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise ValueError("contains control characters")
    return text


def _variable(text: str) -> str:
    if not text.isascii() or not text.replace("_", "a").isalnum() or text[0].isdigit():
        raise ValueError("not a variable name: letters, digits and underscores")
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character")
    return text


def _base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64") from error
    return text


Name = Annotated[str, Field(max_length=63), AfterValidator(_name)]
DigestText = Annotated[str, Field(min_length=64, max_length=64), AfterValidator(_digest)]
Plain = Annotated[str, Field(max_length=4096), AfterValidator(_plain)]
Word = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_plain)]
Variable = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_variable)]
Argument = Annotated[str, Field(max_length=128 << 10), AfterValidator(_no_nul)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(gt=0, le=SIZE_MAX)]


class Body(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Query(BaseModel):
    """A query string; its values arrive as text, so they are read leniently."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CreateSandbox(Body):
    """A sandbox to make."""

    profile: Word = "yolo-ephemeral"
    name: Name | None = None
    template: Word | None = None
    backend: Word | None = None
    user: Word | None = None
    network: NetworkMode | None = None
    ttl_s: Annotated[Seconds, Field(le=LEASE_TTL_S_MAX)] | None = None
    memory_bytes: Annotated[Size, Field(ge=MEMORY_BYTES_MIN)] | None = None
    cpus: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)] | None = None
    pids_max: Annotated[int, Field(ge=8, le=1 << 22)] | None = None
    disk_bytes: Annotated[Size, Field(ge=DISK_BYTES_MIN)] | None = None


class RenewLease(Body):
    """How long a sandbox shall live, from now."""

    ttl_s: Annotated[Seconds, Field(le=LEASE_TTL_S_MAX)]


class TakeSnapshot(Body):
    """A snapshot to take of a sandbox.  Without a name it is given one; with `memory` what runs is kept too."""

    name: Name | None = None
    memory: bool = False


class RestoreSnapshot(Body):
    """What a sandbox shall be again."""

    snapshot: Name


class ForkSandbox(Body):
    """Sandboxes to make from one as it is now, or as its snapshot has it.

    They are called NAME-1, NAME-2 …, or have no name; their leases end with the origin's unless ttl_s says otherwise.
    """

    count: Annotated[int, Field(ge=1, le=1000)] = 1
    name: Annotated[Name, Field(max_length=58)] | None = None
    snapshot: Name | None = None
    ttl_s: Annotated[Seconds, Field(le=LEASE_TTL_S_MAX)] | None = None


class Execute(Body):
    """A command to run to its end."""

    argv: Annotated[list[Argument], Field(min_length=1, max_length=4096)]
    env: Annotated[dict[Variable, Argument], Field(max_length=ENV_COUNT_MAX)] = {}
    cwd: Plain = "/"
    user: Word | None = None
    stdin_b64: Annotated[str, Field(max_length=EXEC_INPUT_BYTES_MAX * 4 // 3 + 4), AfterValidator(_base64)] = ""
    timeout_s: Annotated[Seconds, Field(le=EXEC_TIMEOUT_S_MAX)] = 60.0


class Repo(Body):
    """Where the work tree comes from: `url`, or `bundle` (the digest of an uploaded git bundle), or neither."""

    url: Plain | None = None
    bundle: DigestText | None = None
    ref: Annotated[Plain, Field(min_length=1, max_length=1024)] | None = None
    origin: Plain = ""

    @model_validator(mode="after")
    def _one_source(self) -> Repo:
        if self.url is not None and self.bundle is not None:
            raise ValueError("give url or bundle, not both")
        if self.url is not None and self.url.startswith("-"):
            raise ValueError("url: must not begin with a dash")
        if self.ref is not None and self.ref.startswith("-"):
            raise ValueError("ref: must not begin with a dash")
        return self


class CreateJob(Body):
    """A job to queue.  Values in `env` are sealed at once and never shown again."""

    task: Annotated[str, Field(max_length=TASK_BYTES_MAX)]
    repo: Repo = Repo()
    profile: Word = "yolo-ephemeral"
    agent: Word | None = None
    backend: Word | None = None
    ttl_s: Annotated[Seconds, Field(le=LEASE_TTL_S_MAX)] | None = None
    timeout_s: Annotated[Seconds, Field(le=TIMEOUT_S_MAX)] | None = None
    keepalive: bool | None = None
    env: Annotated[dict[Variable, Argument], Field(max_length=ENV_COUNT_MAX, repr=False)] = {}
    artifact_globs: Annotated[
        list[Annotated[Plain, Field(min_length=1, max_length=ARTIFACT_NAME_LENGTH_MAX)]],
        Field(max_length=GLOBS_MAX),
    ] = []


class ValidateProfile(Body):
    """The text of a profile file."""

    text: Annotated[str, Field(max_length=PROFILE_BYTES_MAX)]
    source: Plain = "profile.yaml"


class ListSandboxes(Query):
    """Which sandboxes, and how many at once."""

    cursor: Plain | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    state: list[SandboxState] = []
    all: bool = False  # destroyed ones too


class ListJobs(Query):
    """Which jobs, and how many at once."""

    cursor: Plain | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    state: list[JobState] = []


class WaitSettled(Query):
    """How long to wait until nothing is under way for a sandbox; it is answered as it is after that."""

    wait_s: Annotated[float, Field(ge=0, le=WAIT_S_MAX)] = 0.0


class WaitEnded(Query):
    """How long to wait for a job's end; it is answered as it is after that."""

    wait_s: Annotated[float, Field(ge=0, le=WAIT_S_MAX)] = 0.0


class ReadOutput(Query):
    """Which part of a job's output."""

    offset: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    limit: Annotated[int, Field(ge=1, le=OUTPUT_READ_BYTES_MAX)] = OUTPUT_READ_BYTES_MAX


class FollowOutput(Query):
    """Where in a job's output to begin; Last-Event-ID comes first."""

    offset: Annotated[int, Field(ge=0, le=1 << 62)] = 0


class ListEvents(Query):
    """Which events."""

    since: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    subject: Word | None = None
    types: list[Word] = []
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT


class FollowEvents(Query):
    """Which events, from where; Last-Event-ID comes first.  Without `since`: from now on."""

    since: Annotated[int, Field(ge=0, le=1 << 62)] | None = None
    subject: Word | None = None
    types: list[Word] = []


class AttachStart(Body):
    """The first message of an attach: what to run."""

    type: Literal["start"]
    argv: Annotated[list[Argument], Field(min_length=1, max_length=4096)]
    env: Annotated[dict[Variable, Argument], Field(max_length=ENV_COUNT_MAX)] = {}
    cwd: Plain = "/"
    user: Word | None = None
    tty: bool = False
    rows: Annotated[int, Field(ge=1, le=10_000)] = 24
    columns: Annotated[int, Field(ge=1, le=10_000)] = 80


class AttachControl(Body):
    """A later text message of an attach."""

    type: Literal["eof", "resize", "signal"]
    rows: Annotated[int, Field(ge=1, le=10_000)] = 24
    columns: Annotated[int, Field(ge=1, le=10_000)] = 80
    number: Annotated[int, Field(ge=1, le=64)] = 15
