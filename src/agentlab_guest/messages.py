"""The messages of the guest link, as values.  The table of docs/internals/guest-link.md, in code."""

from __future__ import annotations

from collections.abc import Mapping

from agentlab_guest.record import record
from agentlab_guest.strict import Check, Data, count, digest, flag, maybe, one_of, seconds, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

META_BYTES_MAX = 64 << 10
DATA_BYTES_MAX = 8 << 20
CHUNK_BYTES_MAX = 1 << 20
OUTPUT_BYTES_MAX = 1 << 30  # of one job; what the agent writes beyond it is dropped, with a note
ARTIFACTS_MAX = 10_100  # offers in one connection: the declared files, the bundle and the patch, and some reserve
ARTIFACT_OFFERS_OPEN_MAX = 16  # offered and neither stored nor refused
STOP_REASONS = ("cancelled", "timed_out")

_word, _token, _line = text(64), text(512), text(4096)


class Message:
    """What all messages share: their kind, who sends them, the shape of their meta, and the name of their data."""

    KIND: ClassVar[int]
    FROM_GUEST: ClassVar[bool]
    META: ClassVar[Mapping[str, Check]] = {}
    DATA: ClassVar[str | None] = None
    DATA_MAX: ClassVar[int] = 0
    __slots__ = ()


@record
class Hello(Message):
    """The first frame of a connection.  Exactly one of `grant` and `credential`."""

    KIND, FROM_GUEST = 1, True
    META = {
        "protocol_min": count,
        "protocol_max": count,
        "version": _word,
        "nonce": _token,
        "grant": maybe(_token),
        "credential": maybe(_token),
    }
    protocol_min: int
    protocol_max: int
    version: str
    nonce: str
    grant: str | None = None
    credential: str | None = None


@record
class Accepted(Message):
    """Credential and bootstrap lie safely in the guest: the grant is spent."""

    KIND, FROM_GUEST = 2, True


@record
class Output(Message):
    """Bytes of the agent's merged output, already redacted."""

    KIND, FROM_GUEST, DATA, DATA_MAX = 3, True, "data", CHUNK_BYTES_MAX
    META = {"offset": count}
    offset: int
    data: Data


@record
class Event(Message):
    """Something that happened in the runner.  `at`: seconds since the epoch by the guest's clock."""

    KIND, FROM_GUEST = 4, True
    META = {"seq": count, "at": seconds, "phase": _word, "detail": _line}
    seq: int
    at: float
    phase: str
    detail: str


@record
class BlobWant(Message):
    """Send this blob from `offset` on."""

    KIND, FROM_GUEST = 5, True
    META = {"digest": digest, "offset": count}
    digest: str
    offset: int


@record
class ArtifactOffer(Message):
    """A file that came out of the job.  `kind`: file, bundle or patch."""

    KIND, FROM_GUEST = 6, True
    META = {"id": count, "name": _line, "kind": one_of("file", "bundle", "patch"), "bytes": count, "digest": digest}
    id: int
    name: str
    kind: str
    bytes: int
    digest: str


@record
class ArtifactChunk(Message):
    """Part of an artifact that the daemon wants."""

    KIND, FROM_GUEST, DATA, DATA_MAX = 7, True, "data", CHUNK_BYTES_MAX
    META = {"id": count, "offset": count}
    id: int
    offset: int
    data: Data


@record
class Heartbeat(Message):
    """The guest lives.  `output`: bytes of output spooled so far."""

    KIND, FROM_GUEST = 8, True
    META = {"phase": _word, "output": count}
    phase: str
    output: int


@record
class ReportMessage(Message):
    """How the job ended: the JSON of `report.Report`.  The last thing a guest has to say."""

    KIND, FROM_GUEST, DATA, DATA_MAX = 9, True, "data", DATA_BYTES_MAX
    data: Data


@record
class Welcome(Message):
    """The answer to a hello.  `credential` and `data` (the bootstrap) only after a grant."""

    KIND, FROM_GUEST, DATA, DATA_MAX = 129, False, "data", DATA_BYTES_MAX
    META = {
        "protocol": count,
        "credential": maybe(_token),
        "output_acked": count,
        "event_acked": count,
        "reported": flag,
        "stop": maybe(one_of(*STOP_REASONS)),
    }
    protocol: int
    output_acked: int
    event_acked: int
    reported: bool
    credential: str | None = None
    stop: str | None = None
    data: Data = b""


@record
class Refused(Message):
    """The daemon ends the connection.  `code` is one of `REFUSALS`."""

    KIND, FROM_GUEST = 130, False
    META = {"code": _word, "message": _line}
    code: str
    message: str


@record
class OutputAck(Message):
    """All output before `offset` is durable."""

    KIND, FROM_GUEST = 131, False
    META = {"offset": count}
    offset: int


@record
class EventAck(Message):
    """All events up to `seq` are durable."""

    KIND, FROM_GUEST = 132, False
    META = {"seq": count}
    seq: int


@record
class BlobChunk(Message):
    """Part of the blob that the guest wants; they follow each other until `total`."""

    KIND, FROM_GUEST, DATA, DATA_MAX = 133, False, "data", CHUNK_BYTES_MAX
    META = {"digest": digest, "offset": count, "total": count}
    digest: str
    offset: int
    total: int
    data: Data


@record
class BlobMissing(Message):
    """The blob cannot be had."""

    KIND, FROM_GUEST = 134, False
    META = {"digest": digest, "reason": _line}
    digest: str
    reason: str


@record
class ArtifactWant(Message):
    """Send this artifact from `offset` on."""

    KIND, FROM_GUEST = 135, False
    META = {"id": count, "offset": count}
    id: int
    offset: int


@record
class ArtifactStored(Message):
    """The artifact is durable, its digest checked."""

    KIND, FROM_GUEST = 136, False
    META = {"id": count}
    id: int


@record
class ArtifactRefused(Message):
    """The artifact is not taken."""

    KIND, FROM_GUEST = 137, False
    META = {"id": count, "reason": _line}
    id: int
    reason: str


@record
class HeartbeatAck(Message):
    """The daemon lives."""

    KIND, FROM_GUEST = 138, False


@record
class Stop(Message):
    """End the agent, then collect and report as usual."""

    KIND, FROM_GUEST = 139, False
    META = {"reason": one_of(*STOP_REASONS)}
    reason: str


@record
class ReportAck(Message):
    """The report, and everything before it, is durable: the guest may end."""

    KIND, FROM_GUEST = 140, False


_GUEST = (Hello, Accepted, Output, Event, BlobWant, ArtifactOffer, ArtifactChunk, Heartbeat, ReportMessage)
_DAEMON = (
    *(Welcome, Refused, OutputAck, EventAck, BlobChunk, BlobMissing, ArtifactWant, ArtifactStored, ArtifactRefused),
    *(HeartbeatAck, Stop, ReportAck),
)
GUEST_KINDS: dict[int, type[Message]] = {each.KIND: each for each in _GUEST}
DAEMON_KINDS: dict[int, type[Message]] = {each.KIND: each for each in _DAEMON}
assert len(GUEST_KINDS) == len(_GUEST)
assert len(DAEMON_KINDS) == len(_DAEMON)

# Why a daemon refuses.  A guest that was welcome before tries again whatever the code: its work is at stake.
REFUSALS = {
    "malformed": "a frame or its meta cannot be understood",
    "too-large": "a frame exceeds its limit",
    "out-of-order": "a message came that may not come now",
    "protocol-version": "the two ends have no protocol version in common",
    "grant-unknown": "no such grant, or it has expired",
    "grant-spent": "the grant was redeemed before: a security event",
    "credential-unknown": "no such session",
    "busy": "the daemon is stopping or at a limit; try again",
}
