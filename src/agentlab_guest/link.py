"""The connection to the daemon: made again for ever, resumed without losing or repeating a byte."""

from __future__ import annotations

import os
import selectors
import socket
from collections import deque
from collections.abc import Callable

from agentlab_guest import __version__
from agentlab_guest.frames import ProtocolError
from agentlab_guest.messages import (
    CHUNK_BYTES_MAX,
    Accepted,
    ArtifactRefused,
    ArtifactStored,
    ArtifactWant,
    BlobChunk,
    BlobMissing,
    EventAck,
    Heartbeat,
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
from agentlab_guest.sides import PROTOCOL_MAX, PROTOCOL_MIN, GuestSide
from agentlab_guest.spool import EventSpool, OutputSpool
from agentlab_guest.transfers import Download, Pending, Range, Uploads

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 5.0
WELCOME_S_MAX = 15.0
SILENCE_S_MIN = 15.0  # a connection without a sign of life for this long, or three heartbeats, is given up
PENDING_BYTES = 2 << 20
OUTPUT_WINDOW_BYTES = 32 << 20  # sent and not acknowledged
RECEIVE_BYTES = 512 << 10


class LinkRefused(Exception):
    """The daemon does not want this guest, which has nothing to lose yet."""


class Cargo:
    """What the link carries for a job."""

    def __init__(self, output: OutputSpool, events: EventSpool, uploads: Uploads, heartbeat_s: float) -> None:
        self.output, self.events, self.uploads, self.heartbeat_s = output, events, uploads, heartbeat_s
        self.download: Download | None = None
        self.report: bytes | None = None  # sent when everything else is
        self.phase = ""


class Link:
    """One connection at a time, without threads: call `pump` whenever the selector or the clock says so.

    `welcomed` is told each welcome and answers what the link carries from then on; `told` gets stop and report_ack.
    """

    def __init__(
        self,
        address: str,
        selector: selectors.BaseSelector,
        *,
        nonce: str,
        grant: str | None,
        credential: str | None,
        welcomed: Callable[[Welcome], Cargo],
        told: Callable[[Message], None],
    ) -> None:
        self._family, self._address = parse_address(address)
        self._selector, self._nonce, self._grant, self._credential = selector, nonce, grant, credential
        self._welcomed, self._told = welcomed, told
        self._socket: socket.socket | None = None
        self._side = GuestSide()
        self._pending = Pending()
        self._control: deque[Message] = deque()
        self._mask = 0
        self._connecting = self._report_sent = False
        self._backoff_s, self._retry_at = BACKOFF_S_MIN, 0.0
        self._heard_at = self._beat_at = 0.0
        self._cargo: Cargo | None = None

    @property
    def up(self) -> bool:
        """Whether the daemon has welcomed this connection."""
        return self._socket is not None and self._side.welcome is not None

    def deadline(self) -> float:
        """When `pump` has something to do even if nothing happens."""
        if self._socket is None:
            return self._retry_at
        if self._cargo is None or not self.up:
            return self._heard_at + WELCOME_S_MAX
        return min(self._beat_at, self._heard_at + self._silence_s())

    def pump(self, now: float) -> None:
        """Connect if it is time, keep up the heartbeat, and write what there is to write.  Raises LinkRefused."""
        if self._socket is None:
            if now < self._retry_at:
                return
            self._connect(now)
        elif now - self._heard_at > (self._silence_s() if self.up else WELCOME_S_MAX):
            self._cut(now)
        if self._socket is None or self._connecting:
            return
        cargo = self._cargo
        if cargo is not None and self.up and now >= self._beat_at:
            self._control.append(Heartbeat(phase=cargo.phase, output=cargo.output.end))
            self._beat_at = now + cargo.heartbeat_s
        try:
            while self._pending.bytes < PENDING_BYTES and self._load():
                pass
            self._flush()
        except OSError:
            self._cut(now)
            return
        self._watch()

    def close(self) -> None:
        """End the connection for good."""
        if self._socket is not None:
            self._cut(0.0)

    def ready(self, mask: int, now: float) -> None:
        """The selector says that the socket can be read or written.  Raises LinkRefused."""
        if self._connecting and mask & selectors.EVENT_WRITE:
            assert self._socket is not None
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._cut(now)
                return
            self._connecting = False
        if mask & selectors.EVENT_READ and self._socket is not None:
            self._read(now)
        self.pump(now)

    # Receiving

    def _read(self, now: float) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._cut(now)
            return
        self._heard_at = now
        try:
            received, broken = self._side.receive(data), False
        except ProtocolError as error:
            received, broken = error.before, True
        for message in received:
            if isinstance(message, Refused):
                self._refused(message, now)
                return
            self._receive(message, now)
        if broken:
            self._cut(now)

    def _receive(self, message: Message, now: float) -> None:
        if isinstance(message, Welcome):
            self._settle(message, now)
            return
        cargo = self._cargo
        assert cargo is not None
        if isinstance(message, OutputAck):
            cargo.output.ack(message.offset)
        elif isinstance(message, EventAck):
            cargo.events.ack(message.seq)
        elif isinstance(message, BlobChunk | BlobMissing):
            if cargo.download is not None and cargo.download.receive(message):
                cargo.download = None
        elif isinstance(message, ArtifactWant | ArtifactStored | ArtifactRefused):
            cargo.uploads.receive(message)
        elif isinstance(message, Stop | ReportAck):
            self._told(message)

    def _settle(self, message: Welcome, now: float) -> None:
        self._backoff_s = BACKOFF_S_MIN
        self._cargo = cargo = self._welcomed(message)
        if message.credential is not None:
            self._credential, self._grant = message.credential, None
            self._control.append(Accepted())
        cargo.output.ack(message.output_acked)
        cargo.events.ack(message.event_acked)
        cargo.uploads.connected()
        if cargo.download is not None:
            cargo.download.connected()
        self._report_sent, self._beat_at = message.reported, now
        if message.stop is not None:
            self._told(Stop(reason=message.stop))
        if message.reported:
            self._told(ReportAck())

    def _refused(self, message: Refused, now: float) -> None:
        if self._credential is None and message.code != "busy":
            raise LinkRefused(f"{message.code}: {message.message}")
        self._cut(now)
        self._retry_at = now + BACKOFF_S_MAX

    # Sending

    def _load(self) -> bool:
        """Queue the most urgent message; False if there is none."""
        message = self._next()
        if message is not None:
            for buffer in self._side.send(message):
                self._pending.add(buffer)
            return True
        return self._load_chunk()

    def _next(self) -> Message | None:
        if self._control:
            return self._control.popleft()
        cargo, side = self._cargo, self._side
        if cargo is None or side.welcome is None or self._report_sent:
            return None
        if cargo.download is not None and cargo.download.want is not None:
            want, cargo.download.want = cargo.download.want, None
            return want
        for event in cargo.events.waiting:
            if event.seq == side.event_next:
                return event
        room = side.output_next - cargo.output.acked < OUTPUT_WINDOW_BYTES
        if room and (data := cargo.output.read(side.output_next, CHUNK_BYTES_MAX)):
            return Output(offset=side.output_next, data=data)
        if (offer := cargo.uploads.next_offer()) is not None:
            return offer
        if cargo.report is not None and cargo.uploads.idle and side.output_next == cargo.output.end:
            self._report_sent = True
            return ReportMessage(data=cargo.report)
        return None

    def _load_chunk(self) -> bool:
        if self._cargo is None or self._side.welcome is None or (chunk := self._cargo.uploads.next_chunk()) is None:
            return False
        number, offset, size, file = chunk
        self._pending.add(self._side.send_chunk_head(number, offset, size))
        self._pending.add_range(Range(number, file, offset, size))
        return True

    def _flush(self) -> None:
        assert self._socket is not None
        while self._pending.bytes:
            front = self._pending.front()
            try:
                if isinstance(front, Range):
                    sent = os.sendfile(self._socket.fileno(), front.file, front.offset, front.size)
                    if sent == 0:
                        assert self._cargo is not None
                        self._cargo.uploads.broken(front.artifact)
                        raise ConnectionAbortedError
                else:
                    sent = self._socket.sendmsg(front)
            except BlockingIOError:
                return
            self._pending.sent(sent)
            if self._pending.bytes < PENDING_BYTES // 2:
                while self._pending.bytes < PENDING_BYTES and self._load():
                    pass

    # The socket

    def _connect(self, now: float) -> None:
        made = socket.socket(self._family, socket.SOCK_STREAM)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        problem = made.connect_ex(self._address)
        if problem not in (0, 115):  # 115: EINPROGRESS
            made.close()
            self._retry_at = now + self._backoff_s
            self._backoff_s = min(BACKOFF_S_MAX, self._backoff_s * 2)
            return
        self._socket, self._connecting, self._side = made, problem != 0, GuestSide()
        self._heard_at, self._report_sent, self._mask = now, False, 0
        self._control.clear()
        self._control.append(
            Hello(
                protocol_min=PROTOCOL_MIN,
                protocol_max=PROTOCOL_MAX,
                version=__version__,
                nonce=self._nonce,
                grant=self._grant,
                credential=self._credential if self._grant is None else None,
            )
        )
        self._watch()

    def _cut(self, now: float) -> None:
        assert self._socket is not None
        if self._mask:
            self._selector.unregister(self._socket)
        self._socket.close()
        self._socket, self._mask, self._connecting = None, 0, False
        self._pending.clear()
        self._control.clear()
        self._retry_at = now + self._backoff_s
        self._backoff_s = min(BACKOFF_S_MAX, self._backoff_s * 2)

    def _watch(self) -> None:
        assert self._socket is not None
        mask = selectors.EVENT_READ
        if self._connecting or self._pending.bytes:
            mask |= selectors.EVENT_WRITE
        if self._mask == 0:
            self._selector.register(self._socket, mask, self.ready)
        elif mask != self._mask:
            self._selector.modify(self._socket, mask, self.ready)
        self._mask = mask

    def _silence_s(self) -> float:
        return SILENCE_S_MIN if self._cargo is None else max(SILENCE_S_MIN, 3 * self._cargo.heartbeat_s)


def parse_address(address: str) -> tuple[int, str | tuple[str, int]]:
    """`unix:PATH` or `tcp:HOST:PORT` as family and address.  Raises ValueError."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest.startswith("/"):
        return socket.AF_UNIX, rest
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host and port.isdigit():
            return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, int(port))
    raise ValueError(f"{address!r} is not a link address; write unix:/PATH or tcp:HOST:PORT")
