"""Frames: bytes to messages and back.  No I/O."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from agentlab_guest.messages import DAEMON_KINDS, GUEST_KINDS, META_BYTES_MAX, Hello, Message, Welcome
from agentlab_guest.record import fields
from agentlab_guest.strict import Data, Malformed, checked, dump, parse_object

HEADER = struct.Struct(">BII")


class ProtocolError(Exception):
    """The other end broke the protocol; the connection must end.

    `code` is one of `REFUSALS`; `before` are the messages of the same `receive` that were still in order.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail
        self.before: list[Message] = []


def encode(message: Message) -> list[Data]:
    """The frame as buffers to send one after the other; a chunk's bytes are not copied.

    ValueError if a limit is exceeded: the sender's own mistake.
    """
    values = fields(message)
    data: Data = values.pop(message.DATA) if message.DATA else b""
    head = encode_head(type(message), values, len(data))
    return [head, data] if data else [head]


def encode_head(kind: type[Message], values: dict[str, object], data_bytes: int) -> bytes:
    """Header and meta of a frame whose `data_bytes` of data are sent by other means, such as sendfile."""
    raw = dump({name: value for name, value in values.items() if value is not None})
    if len(raw) > META_BYTES_MAX or data_bytes > kind.DATA_MAX:
        raise ValueError(f"{kind.__name__} exceeds its limit: {len(raw)} + {data_bytes} bytes")
    return HEADER.pack(kind.KIND, len(raw), data_bytes) + raw


class Decoder:
    """Bytes in, messages out.  Holds at most one frame; each byte of bulk data is copied once or twice."""

    def __init__(self, kinds: Mapping[int, type[Message]]) -> None:
        self._kinds = kinds
        self._head = bytearray()  # of the current frame: header, then meta
        self._expected: tuple[type[Message], int, int] | None = None  # once the header is there
        self._data = bytearray()

    @property
    def pending(self) -> int:
        """Bytes held of a frame that is not complete."""
        return len(self._head) + len(self._data)

    def feed(self, piece: Data) -> list[Message]:
        """The messages that `piece` completes.  Raises ProtocolError; the decoder is of no use afterwards."""
        found: list[Message] = []
        at, view = 0, memoryview(piece)
        try:
            while (step := self._step(view, at, found)) is not None:
                at = step
        except ProtocolError as error:
            error.before = found
            raise
        return found

    def _step(self, view: memoryview, at: int, found: list[Message]) -> int | None:
        """Take something from `view`; where to go on, or None if more bytes are needed."""
        if self._expected is None:
            at = self._fill(view, at, HEADER.size)
            if len(self._head) < HEADER.size:
                return None
            self._expected = self._parse_header()
        kind, meta_bytes, data_bytes = self._expected
        at = self._fill(view, at, HEADER.size + meta_bytes)
        if len(self._head) < HEADER.size + meta_bytes:
            return None
        if not self._data and len(view) - at >= data_bytes:
            data: Data = bytes(view[at : at + data_bytes])
            at += data_bytes
        else:
            end = min(len(view), at + data_bytes - len(self._data))
            self._data += view[at:end]
            at = end
            if len(self._data) < data_bytes:
                return None
            data = self._data
        meta = self._head[HEADER.size :]
        self._head, self._data, self._expected = bytearray(), bytearray(), None
        found.append(_message(kind, meta, data))
        return at

    def _fill(self, view: memoryview, at: int, length: int) -> int:
        end = min(len(view), at + max(0, length - len(self._head)))
        self._head += view[at:end]
        return end

    def _parse_header(self) -> tuple[type[Message], int, int]:
        number, meta_bytes, data_bytes = HEADER.unpack_from(self._head)
        kind = self._kinds.get(number)
        if kind is None:
            raise ProtocolError("malformed", f"unknown kind {number}")
        if meta_bytes > META_BYTES_MAX:
            raise ProtocolError("too-large", f"META_BYTES_MAX = {META_BYTES_MAX}")
        if data_bytes > kind.DATA_MAX:
            raise ProtocolError("too-large", f"{kind.__name__} may carry {kind.DATA_MAX} bytes of data")
        return kind, meta_bytes, data_bytes


def guest_decoder() -> Decoder:
    """A decoder of what daemons send."""
    return Decoder(DAEMON_KINDS)


def daemon_decoder() -> Decoder:
    """A decoder of what guests send."""
    return Decoder(GUEST_KINDS)


def _message(kind: type[Message], meta: Data, data: Data) -> Message:
    try:
        values = checked(parse_object(meta), kind.META, kind.__name__)
    except Malformed as error:
        raise ProtocolError("malformed", str(error)) from None
    if kind.DATA:
        values[kind.DATA] = data
    message: Message = kind(**values)
    if isinstance(message, Hello) and (message.grant is None) == (message.credential is None):
        raise ProtocolError("malformed", "Hello: needs one of grant and credential")
    if isinstance(message, Welcome) and (message.credential is None) != (not message.data):
        raise ProtocolError("malformed", "Welcome: credential and bootstrap belong together")
    return message
