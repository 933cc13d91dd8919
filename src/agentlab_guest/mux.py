"""The control link of a VM: one byte stream, many channels with credit.  Both ends, sans I/O.

A connection begins with the host's preamble, magic and a random token, which the guest answers with the same token.
Until then both ends throw away what they read: stale bytes of an earlier daemon may lie in the virtqueues and in QEMU.
Afterwards either direction is a sequence of frames: kind, channel, length, payload.

A channel is opened by its first message, from the host with an even number, from the guest with an odd one, always
rising.  It ends when both ends have sent CLOSE; an end that has sent it drops the data that still arrive.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL_MIN, PROTOCOL_MAX = 1, 1
MAGIC, ANSWER_MAGIC = b"\xa7aglab\r\n", b"\xa8aglab\r\n"
TOKEN_BYTES = 32
_PREAMBLE = struct.Struct(">8sBB32s")  # magic, lowest and highest protocol, token
_ANSWER = struct.Struct(">8sBBB32s")  # magic, the protocol (0: none fits), lowest and highest, token

HEADER = struct.Struct(">BII")
# A zero byte between frames is padding: see `HostEnd.flood`.
DATA, ERR, END, ERR_END, DEAF, CREDIT, MESSAGE, PART, CLOSE = range(1, 10)
RESET, LOST, READY = 100, 101, 102  # not frames: a new connection, one that cannot be understood, the guest's answer
DATA_BYTES_MAX = {"host": (64 << 10) - HEADER.size, "guest": (256 << 10) - HEADER.size}  # by who sends
WINDOW_BYTES = {"host": 1 << 20, "guest": 2 << 20}  # of one channel, by who sends; unread data may lie in memory
MESSAGE_BYTES_MAX = {"host": 3 << 20, "guest": 256 << 10}
CHANNELS_MAX = {"host": 256, "guest": 8}  # open at a time, by who opened them
HUNT_BYTES_MAX = 64 << 20  # of an earlier connection, thrown away before the guest's answer
_NO_PAYLOAD = frozenset((END, ERR_END, DEAF, CLOSE))
_OTHER = {"host": "guest", "guest": "host"}
Happening = tuple[int, int, bytes]  # kind, channel, payload


class MuxError(Exception):
    """The other end broke the protocol; the connection must end."""


class _Channel:
    __slots__ = ("closed", "closed_by_peer", "consumed", "credit", "ended", "window")

    def __init__(self, credit: int, window: int) -> None:
        self.credit, self.window = credit, window  # what we may send, what the other may
        self.consumed = 0  # received and used, and not yet told as credit
        self.ended: set[int] = set()  # END, ERR_END that were received
        self.closed = self.closed_by_peer = False


class _End:
    """What both ends share: frames, channels, credit."""

    def __init__(self, me: str) -> None:
        self._me, self._peer = me, _OTHER[me]
        self._buffer = bytearray()
        self._needed = 0  # bytes that the buffer must hold before it is worth looking again
        self._limits = {DATA: DATA_BYTES_MAX[self._peer], ERR: DATA_BYTES_MAX[self._peer], CREDIT: 4}
        self._limits |= {MESSAGE: DATA_BYTES_MAX[self._peer], PART: DATA_BYTES_MAX[self._peer]}
        self.clear()

    def clear(self) -> None:
        """Forget all channels: a new connection."""
        self._channels: dict[int, _Channel] = {}
        self._parts = bytearray()
        self._last = 0 if self._me == "host" else -1  # the number of the channel that we opened last
        self._last_theirs = 0 if self._peer == "host" else -1

    # Sending

    @property
    def pending(self) -> int:
        """Bytes held of what is not complete."""
        return len(self._buffer) + len(self._parts)

    @property
    def room(self) -> bool:
        """Whether one more channel may be opened from here."""
        return self._open_of(self._me) < CHANNELS_MAX[self._me]

    def open(self, raw: bytes) -> tuple[int, bytes]:
        """A new channel that begins with this message: its number, and the bytes to send."""
        assert self.room
        self._last += 2
        self._channels[self._last] = _Channel(WINDOW_BYTES[self._me], WINDOW_BYTES[self._peer])
        return self._last, self.message(self._last, raw)

    def message(self, channel: int, raw: bytes) -> bytes:
        """The frames of a message; channel 0 is the connection itself.  ValueError if it is too long."""
        if len(raw) > MESSAGE_BYTES_MAX[self._me]:
            raise ValueError(f"a message of {len(raw)} bytes exceeds MESSAGE_BYTES_MAX")
        size = DATA_BYTES_MAX[self._me]
        if len(raw) <= size:
            return HEADER.pack(MESSAGE, channel, len(raw)) + raw
        cuts = range(0, len(raw), size)
        kinds = [PART] * (len(cuts) - 1) + [MESSAGE]
        pieces = [raw[at : at + size] for at in cuts]
        return b"".join(
            HEADER.pack(kind, channel, len(piece)) + piece for kind, piece in zip(kinds, pieces, strict=True)
        )

    def credit(self, channel: int) -> int:
        """How many bytes of data may be sent on it now."""
        found = self._channels.get(channel)
        return 0 if found is None or found.closed or found.closed_by_peer else found.credit

    def data_head(self, kind: int, channel: int, size: int) -> bytes:
        """The header of `size` bytes of DATA or ERR, which follow it; `credit` and DATA_BYTES_MAX allow them."""
        found = self._channels[channel]
        assert 0 < size <= min(found.credit, DATA_BYTES_MAX[self._me])
        found.credit -= size
        return HEADER.pack(kind, channel, size)

    def consumed(self, channel: int, size: int) -> bytes:
        """Data of that size has been used: the bytes to send, if it is time to say so."""
        found = self._channels.get(channel)
        if found is None or found.closed:
            return b""
        found.consumed += size
        if found.consumed < WINDOW_BYTES[self._peer] // 4 or found.closed_by_peer:
            return b""
        more, found.consumed = found.consumed, 0
        found.window += more
        return HEADER.pack(CREDIT, channel, 4) + more.to_bytes(4, "big")

    def mark(self, kind: int, channel: int) -> bytes:
        """The frame of END, ERR_END or DEAF."""
        return HEADER.pack(kind, channel, 0)

    def close(self, channel: int) -> bytes:
        """End a channel; data that still arrive on it are dropped.  Nothing to send if that was done before."""
        found = self._channels.get(channel)
        if found is None or found.closed:
            return b""
        found.closed = True
        if found.closed_by_peer:
            del self._channels[channel]
        return HEADER.pack(CLOSE, channel, 0)

    def is_open(self, channel: int) -> bool:
        """Whether frames may be sent on it."""
        found = self._channels.get(channel)
        return found is not None and not found.closed and not found.closed_by_peer

    def is_known(self, channel: int) -> bool:
        """Whether frames of it may still come or go."""
        return channel in self._channels

    # Receiving

    def _take(self, data: bytes | bytearray | memoryview) -> bool:
        """Add to the buffer; whether it is worth looking."""
        self._buffer += data
        return len(self._buffer) >= self._needed

    def _frames(self, buffer: bytes, at: int) -> Iterator[tuple[int, Happening | None]]:
        """Each complete frame's end and what happened.  Raises MuxError."""
        length = len(buffer)
        while length - at >= HEADER.size and self._is_kind(buffer[at]):
            kind, channel, size = HEADER.unpack_from(buffer, at)
            if kind in _NO_PAYLOAD:
                if size:
                    raise MuxError(f"a frame of kind {kind} with a payload")
            elif size > self._limits[kind]:
                raise MuxError(f"a frame of kind {kind} with {size} bytes")
            begin = at + HEADER.size
            if length - begin < size:
                self._needed = HEADER.size + size
                return
            at = begin + size
            yield at, self._received(kind, channel, buffer[begin:at])

    def _is_kind(self, kind: int) -> bool:
        return kind in self._limits or kind in _NO_PAYLOAD

    def _received(self, kind: int, channel: int, payload: bytes) -> Happening | None:
        if kind in (MESSAGE, PART):
            return self._message(kind, channel, payload)
        found = self._channels.get(channel)
        if found is None or found.closed_by_peer:
            raise MuxError(f"kind {kind} on a channel that is not open")
        if kind in (DATA, ERR):
            self._data(found, kind, len(payload))
        elif kind == CREDIT:
            found.credit += int.from_bytes(payload, "big") if len(payload) == 4 else WINDOW_BYTES[self._me] + 1
            if found.credit > WINDOW_BYTES[self._me]:
                raise MuxError("more credit than was used")
        elif kind in (END, ERR_END):
            if kind in found.ended:
                raise MuxError("an end after the end")
            found.ended.add(kind)
        elif kind == CLOSE:
            found.closed_by_peer = True
            if found.closed:
                del self._channels[channel]
        return None if found.closed and kind != CLOSE else (kind, channel, payload)

    def _data(self, found: _Channel, kind: int, size: int) -> None:
        if (END if kind == DATA else ERR_END) in found.ended:
            raise MuxError("data after the end")
        if not 0 < size <= found.window:
            raise MuxError(f"{size} bytes where {found.window} are allowed")
        found.window -= size

    def _message(self, kind: int, channel: int, payload: bytes) -> Happening | None:
        if len(self._parts) + len(payload) > MESSAGE_BYTES_MAX[self._peer]:
            raise MuxError("a message that is too long")
        if kind == PART:
            if not payload:
                raise MuxError("an empty part")
            self._parts += payload
            return None
        whole, self._parts = bytes(self._parts) + payload, bytearray()
        found = self._channels.get(channel)
        if found is None and channel:
            self._opened(channel)
        elif found is not None and found.closed_by_peer:
            raise MuxError("a message on a channel that is not open")
        return MESSAGE, channel, whole

    def _opened(self, channel: int) -> None:
        if channel % 2 != self._last_theirs % 2 or channel <= self._last_theirs:
            raise MuxError(f"channel {channel} cannot be opened")
        if self._open_of(self._peer) >= CHANNELS_MAX[self._peer]:
            raise MuxError("too many channels")
        self._last_theirs = channel
        self._channels[channel] = _Channel(WINDOW_BYTES[self._me], WINDOW_BYTES[self._peer])

    def _open_of(self, who: str) -> int:
        parity = 0 if who == "host" else 1
        return sum(number % 2 == parity for number in self._channels)


class HostEnd(_End):
    """The daemon's end.  `token` is random and never used twice."""

    def __init__(self, token: bytes) -> None:
        super().__init__("host")
        assert len(token) == TOKEN_BYTES
        self._token = token
        self._hunted = 0
        self.protocol = 0  # once the guest has answered

    def preamble(self) -> bytes:
        """What the connection begins with."""
        return _PREAMBLE.pack(MAGIC, PROTOCOL_MIN, PROTOCOL_MAX, self._token)

    def flood(self) -> bytes:
        """To send when the answer fails to come: the guest may still be inside a frame that another daemon began."""
        return bytes(HEADER.size + DATA_BYTES_MAX["host"]) + self.preamble()

    def receive(self, data: bytes | memoryview) -> list[Happening]:
        """What the guest's bytes mean.  Raises MuxError; the connection is of no use afterwards."""
        found: list[Happening] = []
        if not self._take(data):
            return found
        at, buffer = 0, bytes(self._buffer)
        self._needed = 0
        if not self.protocol:
            if (at := self._hunt(buffer)) < 0:
                return found
            found.append((READY, 0, b""))
        for end, happening in self._frames(buffer, at):
            at = end
            if happening is not None:
                found.append(happening)
        if len(buffer) > at and not self._is_kind(buffer[at]):
            raise MuxError(f"unknown kind {buffer[at]}")
        del self._buffer[:at]
        return found

    def _hunt(self, buffer: bytes) -> int:
        at = 0
        while (at := buffer.find(ANSWER_MAGIC, at)) >= 0:
            if len(buffer) - at < _ANSWER.size:
                break
            _, protocol, lowest, highest, token = _ANSWER.unpack_from(buffer, at)
            if token == self._token:
                if not PROTOCOL_MIN <= protocol <= PROTOCOL_MAX:
                    ours = f"the daemon {PROTOCOL_MIN} to {PROTOCOL_MAX}"
                    raise MuxError(f"the guest speaks control protocols {lowest} to {highest}, {ours}")
                self.protocol = protocol
                return at + _ANSWER.size
            at += 1
        keep = len(ANSWER_MAGIC) - 1 if at < 0 else len(buffer) - at
        self._hunted += len(buffer) - keep
        if self._hunted > HUNT_BYTES_MAX:
            raise MuxError("the guest sends without answering")
        del self._buffer[: max(0, len(buffer) - keep)]
        return -1


class GuestEnd(_End):
    """The guest's end.  Nothing that arrives raises: what cannot be understood is LOST, and a preamble begins anew.

    The payload of RESET and LOST is to be sent before anything else.
    """

    def __init__(self) -> None:
        super().__init__("guest")
        self._token = b""

    def lose(self) -> None:
        """The host has gone: everything is thrown away until the next preamble."""
        self.clear()
        self._buffer.clear()
        self._token, self._needed = b"", 0

    def receive(self, data: bytes | bytearray | memoryview) -> list[Happening]:
        """What the host's bytes mean."""
        found: list[Happening] = []
        if not self._take(data):
            return found
        buffer, at = bytes(self._buffer), 0
        self._needed = 0
        while at < len(buffer):
            if not self._token or buffer[at] == MAGIC[0]:
                step = self._preamble(buffer, at, found)
            elif buffer[at] == 0:
                step = len(buffer) - len(buffer[at:].lstrip(b"\0"))
            else:
                step = self._ordinary(buffer, at, found)
            if step == at:
                break
            at = step
        del self._buffer[:at]
        return found

    def _ordinary(self, buffer: bytes, at: int, found: list[Happening]) -> int:
        try:
            if not self._is_kind(buffer[at]):
                raise MuxError(f"unknown kind {buffer[at]}")
            for end, happening in self._frames(buffer, at):
                at = end
                if happening is not None:
                    found.append(happening)
        except MuxError:
            return self._lost(at + 1, found)
        return at

    def _preamble(self, buffer: bytes, at: int, found: list[Happening]) -> int:
        """Where to go on; the same place if more bytes are needed."""
        hunting = not self._token
        begin = buffer.find(MAGIC, at) if hunting else at
        if begin < 0:
            return max(at, len(buffer) - len(MAGIC) + 1)
        if len(buffer) - begin < _PREAMBLE.size:
            if hunting or MAGIC.startswith(buffer[begin : begin + len(MAGIC)]):
                return begin
            return self._lost(at + 1, found)
        magic, lowest, highest, token = _PREAMBLE.unpack_from(buffer, begin)
        if magic != MAGIC:
            return self._lost(at + 1, found)
        if (inside := buffer.find(MAGIC, begin + 1, begin + _PREAMBLE.size)) >= 0:
            return inside  # the one before was cut short when its daemon died
        if token != self._token:
            self.clear()
            protocol = min(highest, PROTOCOL_MAX)
            fits = protocol >= max(lowest, PROTOCOL_MIN)
            self._token = token if fits else b""
            answer = _ANSWER.pack(ANSWER_MAGIC, protocol if fits else 0, PROTOCOL_MIN, PROTOCOL_MAX, token)
            found.append((RESET if fits else LOST, 0, answer))
        return begin + _PREAMBLE.size

    def _lost(self, at: int, found: list[Happening]) -> int:
        self.clear()
        self._token = b""
        found.append((LOST, 0, b""))
        return at
