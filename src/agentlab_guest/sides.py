"""The two ends of the guest link as state machines without I/O: they say which message may come now."""

from __future__ import annotations

from agentlab_guest.frames import Decoder, ProtocolError, daemon_decoder, encode, encode_head, guest_decoder
from agentlab_guest.messages import (
    ARTIFACT_OFFERS_OPEN_MAX,
    ARTIFACTS_MAX,
    CHUNK_BYTES_MAX,
    OUTPUT_BYTES_MAX,
    Accepted,
    ArtifactChunk,
    ArtifactOffer,
    ArtifactRefused,
    ArtifactStored,
    ArtifactWant,
    BlobChunk,
    BlobMissing,
    BlobWant,
    Event,
    EventAck,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Message,
    Output,
    OutputAck,
    Refused,
    ReportAck,
    ReportMessage,
    Stop,
    Welcome,
)
from agentlab_guest.strict import Data

PROTOCOL_MIN, PROTOCOL_MAX = 1, 1


def agreed_protocol(hello: Hello) -> int:
    """The newest protocol that both ends speak.  Raises ProtocolError `protocol-version` if there is none."""
    version = min(PROTOCOL_MAX, hello.protocol_max)
    if version < max(PROTOCOL_MIN, hello.protocol_min):
        ours, theirs = f"{PROTOCOL_MIN} to {PROTOCOL_MAX}", f"{hello.protocol_min} to {hello.protocol_max}"
        raise ProtocolError("protocol-version", f"the daemon speaks {ours}, the guest {theirs}")
    return version


class _Transfer:
    """An artifact under way, as either end sees it."""

    __slots__ = ("next", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.next: int | None = None  # where the next chunk begins, once wanted


class _Blob:
    """A blob under way."""

    __slots__ = ("digest", "next", "total")

    def __init__(self, digest: str, offset: int) -> None:
        self.digest, self.next = digest, offset
        self.total: int | None = None


class _Side:
    """The state that both ends track in the same way: `_from_guest` and `_from_daemon` are the rules."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._hello: Hello | None = None
        self._welcome: Welcome | None = None
        self._accepted = self._reported = self._report_acked = self._closed = False
        self._output_next = self._output_acked = 0
        self._event_next, self._event_acked = 1, 0
        self._heartbeats = 0  # not yet answered
        self._offered_last = self._offers = 0
        self._artifacts: dict[int, _Transfer] = {}
        self._dropped: dict[int, int] = {}  # refused in mid-transfer: where its remaining chunks go on
        self._blob: _Blob | None = None

    @property
    def welcome(self) -> Welcome | None:
        """What the daemon answered, once it has."""
        return self._welcome

    @property
    def accepted(self) -> bool:
        """Whether the guest is settled: it accepted its bootstrap, or came with a credential."""
        return self._accepted

    @property
    def output_next(self) -> int:
        """Where the next output begins."""
        return self._output_next

    @property
    def event_next(self) -> int:
        """The number of the next event."""
        return self._event_next

    def _from_guest(self, message: Message) -> None:
        if isinstance(message, Hello):
            _in_order(self._hello is None, "hello may come once")
            self._hello = message
            return
        _in_order(self._welcome is not None and not self._closed, "only hello may come before welcome")
        if isinstance(message, Accepted):
            _in_order(not self._accepted, "accepted may come once, after a grant")
            self._accepted = True
            return
        _in_order(self._accepted, "after a grant, accepted comes first")
        if isinstance(message, Heartbeat):
            self._heartbeats += 1
            return
        _in_order(not self._reported, "nothing but heartbeats may come after the report")
        self._work_from_guest(message)

    def _work_from_guest(self, message: Message) -> None:
        if isinstance(message, Output):
            _in_order(message.offset == self._output_next, f"output must go on at {self._output_next}")
            _in_order(len(message.data) > 0, "output must not be empty")
            self._output_next += len(message.data)
            if self._output_next > OUTPUT_BYTES_MAX:
                raise ProtocolError("too-large", f"OUTPUT_BYTES_MAX = {OUTPUT_BYTES_MAX}")
        elif isinstance(message, Event):
            _in_order(message.seq == self._event_next, f"event {self._event_next} must come next")
            self._event_next += 1
        elif isinstance(message, BlobWant):
            _in_order(self._blob is None, "one blob at a time")
            self._blob = _Blob(message.digest, message.offset)
        elif isinstance(message, ArtifactOffer):
            self._offer(message)
        elif isinstance(message, ArtifactChunk):
            self._chunk(message)
        else:
            _in_order(isinstance(message, ReportMessage), "a guest does not send this")
            _in_order(not self._artifacts, "every offer must be settled before the report")
            self._reported = True

    def _offer(self, message: ArtifactOffer) -> None:
        _in_order(message.id > self._offered_last, "ids of offers must grow")
        _in_order(len(self._artifacts) < ARTIFACT_OFFERS_OPEN_MAX, f"{ARTIFACT_OFFERS_OPEN_MAX} offers are open")
        self._offers += 1
        if self._offers > ARTIFACTS_MAX:
            raise ProtocolError("too-large", f"ARTIFACTS_MAX = {ARTIFACTS_MAX}")
        self._offered_last = message.id
        self._artifacts[message.id] = _Transfer(message.bytes)

    def _chunk(self, message: ArtifactChunk) -> None:
        _in_order(len(message.data) > 0, "a chunk must not be empty")
        transfer = self._artifacts.get(message.id)
        if transfer is None:  # chunks that were under way when the daemon refused the rest
            _in_order(self._dropped.get(message.id) == message.offset, "a chunk of what was not wanted")
            self._dropped[message.id] += len(message.data)
            return
        _in_order(transfer.next is not None, "a chunk of what was not wanted")
        _in_order(transfer.next == message.offset, f"artifact {message.id} must go on at {transfer.next}")
        transfer.next = message.offset + len(message.data)
        _in_order(transfer.next <= transfer.total, "more bytes than were offered")

    def _from_daemon(self, message: Message) -> None:
        _in_order(not self._closed, "nothing may come after refused")
        if isinstance(message, Refused):
            self._closed = True
            return
        _in_order(self._hello is not None, "the guest speaks first")
        if isinstance(message, Welcome):
            self._welcomed(message)
            return
        _in_order(self._welcome is not None, "welcome comes first")
        if isinstance(message, OutputAck):
            _in_order(self._output_acked <= message.offset <= self._output_next, "output_ack out of range")
            self._output_acked = message.offset
        elif isinstance(message, EventAck):
            _in_order(self._event_acked <= message.seq < self._event_next, "event_ack out of range")
            self._event_acked = message.seq
        elif isinstance(message, HeartbeatAck):
            _in_order(self._heartbeats > 0, "heartbeat_ack without heartbeat")
            self._heartbeats -= 1
        elif isinstance(message, ReportAck):
            _in_order(self._reported and not self._report_acked, "report_ack comes once, after the report")
            self._report_acked = True
        elif isinstance(message, BlobChunk | BlobMissing):
            self._blob_part(message)
        elif isinstance(message, ArtifactWant | ArtifactStored | ArtifactRefused):
            self._artifact_answer(message)
        else:
            _in_order(isinstance(message, Stop), "a daemon does not send this")

    def _welcomed(self, message: Welcome) -> None:
        hello = self._hello
        assert hello is not None
        _in_order(self._welcome is None, "welcome may come once")
        _in_order((hello.grant is None) == (message.credential is None), "a credential is given for a grant, only")
        _in_order(hello.protocol_min <= message.protocol <= hello.protocol_max, "a protocol nobody offered")
        self._welcome = message
        self._accepted = message.credential is None
        self._reported = message.reported
        self._output_next = self._output_acked = message.output_acked
        self._event_acked, self._event_next = message.event_acked, message.event_acked + 1

    def _blob_part(self, message: BlobChunk | BlobMissing) -> None:
        blob = self._blob
        _in_order(blob is not None and blob.digest == message.digest, "a blob nobody asked for")
        assert blob is not None
        if isinstance(message, BlobMissing):
            self._blob = None
            return
        _in_order(message.offset == blob.next, f"the blob must go on at {blob.next}")
        _in_order(blob.total in (None, message.total), "the blob's total changed")
        blob.total, blob.next = message.total, message.offset + len(message.data)
        _in_order(blob.next <= message.total, "more bytes than the blob's total")
        _in_order(len(message.data) > 0 or blob.next == message.total, "a chunk must not be empty")
        if blob.next == message.total:
            self._blob = None

    def _artifact_answer(self, message: ArtifactWant | ArtifactStored | ArtifactRefused) -> None:
        transfer = self._artifacts.get(message.id)
        _in_order(transfer is not None, "an answer to no open offer")
        assert transfer is not None
        if isinstance(message, ArtifactWant):
            _in_order(transfer.next is None, "an artifact is wanted once")
            _in_order(message.offset <= transfer.total, "wanted from beyond its end")
            transfer.next = message.offset
            return
        if isinstance(message, ArtifactRefused) and transfer.next is not None:
            self._dropped[message.id] = transfer.next
        del self._artifacts[message.id]


class DaemonSide(_Side):
    """The daemon's end of one connection.  A chunk that was under way while its artifact was refused is swallowed."""

    def __init__(self) -> None:
        super().__init__(daemon_decoder())

    def receive(self, data: Data) -> list[Message]:
        """The messages that `data` completes, each in order.  Raises ProtocolError, then the connection must end:
        send `Refused(code=error.code, message=error.detail)` and close."""
        return _receive(self, data)

    def send(self, message: Message) -> list[Data]:
        """Buffers to write for `message`.  Raises ValueError if it may not be sent now: our own mistake."""
        _own(self._from_daemon, message)
        return encode(message)

    @property
    def hello(self) -> Hello | None:
        """What the guest said first, once it has."""
        return self._hello

    @property
    def reported(self) -> bool:
        """Whether the report has come, in this connection or before."""
        return self._reported

    def _check(self, message: Message) -> bool:
        swallowed = isinstance(message, ArtifactChunk) and message.id in self._dropped
        self._from_guest(message)
        return not swallowed


class GuestSide(_Side):
    """The guest's end of one connection."""

    def __init__(self) -> None:
        super().__init__(guest_decoder())

    def receive(self, data: Data) -> list[Message]:
        """The messages that `data` completes.  Raises ProtocolError: close, connect again."""
        return _receive(self, data)

    def send(self, message: Message) -> list[Data]:
        """Buffers to write for `message`.  Raises ValueError if it may not be sent now: our own mistake."""
        _own(self._from_guest, message)
        return encode(message)

    def send_chunk_head(self, artifact: int, offset: int, data_bytes: int) -> bytes:
        """The head of an artifact_chunk whose `data_bytes` follow from the file itself, by sendfile."""
        assert 0 < data_bytes <= CHUNK_BYTES_MAX
        transfer = self._artifacts.get(artifact)
        if transfer is None or transfer.next != offset or offset + data_bytes > transfer.total:
            raise ValueError(f"artifact {artifact} is not wanted at {offset}")
        transfer.next += data_bytes
        return encode_head(ArtifactChunk, {"id": artifact, "offset": offset}, data_bytes)

    @property
    def offers_open(self) -> int:
        """Offers that are neither stored nor refused."""
        return len(self._artifacts)

    def _check(self, message: Message) -> bool:
        self._from_daemon(message)
        return True


def _receive(side: DaemonSide | GuestSide, data: Data) -> list[Message]:
    failed: ProtocolError | None = None
    try:
        found = side._decoder.feed(data)
    except ProtocolError as error:
        found, failed = error.before, error
    passed: list[Message] = []
    try:
        passed.extend(message for message in found if side._check(message))
    except ProtocolError as error:
        failed = error
    if failed is not None:
        failed.before = passed
        raise failed
    return passed


def _own(rule: object, message: Message) -> None:
    try:
        rule(message)  # type: ignore[operator]
    except ProtocolError as error:
        raise ValueError(str(error)) from None


def _in_order(condition: bool, rule: str) -> None:
    if not condition:
        raise ProtocolError("out-of-order", rule)
