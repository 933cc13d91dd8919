"""The daemon's end of a control link's connection: channels that tasks read from and write to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from agentlab.base.text import one_line
from agentlab_guest import mux, orders
from agentlab_guest.strict import Data, Malformed

STREAM_BYTES_HIGH = 4 << 20  # queued towards a guest before we wait for it
READ_BYTES_MAX = 1 << 20  # of what one read returns
ORDERS_MAX = 8  # of the guest on one channel, not yet looked at
STREAMS = {mux.DATA: "stdout", mux.ERR: "stderr"}


class LinkGone(ConnectionError):
    """The connection to the guest program has ended, and why."""


class Channel:
    """One channel: what came waits until it is asked for; credit bounds how much that can be."""

    def __init__(self, link: Link, number: int) -> None:
        self._link, self.number = link, number
        self._received: deque[tuple[int, bytes]] = deque()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._ending = False  # END follows what is queued
        self._closing = False  # CLOSE follows what is queued
        self.ended: set[int] = set()  # mux.END and mux.ERR_END that came
        self.deaf = False  # the other side takes no more data
        self.closed = False  # by the other side, or with the link
        self.cause = ""  # why the link ended, if it did
        self.orders: deque[orders.Order] = deque()
        self.changed = asyncio.Event()

    # Receiving

    def take(self) -> tuple[int, bytes] | None:
        """The next data and their kind, several pieces of a kind as one; None if nothing waits."""
        if not self._received:
            return None
        kind, data = self._received.popleft()
        if self._received and self._received[0][0] == kind:
            pieces, size = [data], len(data)
            while self._received and self._received[0][0] == kind and size < READ_BYTES_MAX:
                pieces.append(self._received.popleft()[1])
                size += len(pieces[-1])
            data = b"".join(pieces)
        self._link.consumed(self.number, len(data))
        return kind, data

    def happened(self, kind: int, payload: bytes) -> None:
        """Something came.  MuxError if it makes no sense."""
        if kind in STREAMS:
            self._received.append((kind, payload))
        elif kind == mux.MESSAGE:
            if len(self.orders) >= ORDERS_MAX:
                raise mux.MuxError("more answers than questions")
            self.orders.append(_parsed(payload))
        elif kind in (mux.END, mux.ERR_END):
            self.ended.add(kind)
        elif kind == mux.CREDIT:
            self._pour()
        elif kind == mux.DEAF:
            self._no_longer_heard()
        elif kind == mux.CLOSE:
            self.lost("")
            self._link.close(self.number)
        self.changed.set()

    def lost(self, cause: str) -> None:
        """Nothing more comes."""
        self.closed, self.cause = True, cause
        self._no_longer_heard()
        self.changed.set()

    async def change(self) -> None:
        """Return when something has come since the last `change`."""
        await self.changed.wait()
        self.changed.clear()

    # Sending

    @property
    def queued(self) -> int:
        """Bytes that wait for credit."""
        return self._queued

    def write(self, data: Data | memoryview) -> None:
        """Queue data."""
        if data and not self.deaf:
            self._queue.append(memoryview(data))
            self._queued += len(data)
            self._pour()

    def end(self) -> None:
        """No more data after what is queued.  Calling twice is quiet."""
        if not self._ending:
            self._ending = True
            self._pour()

    def close(self) -> None:
        """End the channel after what is queued; what still arrives is dropped."""
        self._closing = True
        self._received.clear()
        self._pour()

    def abort(self) -> None:
        """End the channel now."""
        self._drop()
        self.close()

    def order(self, order: orders.Order) -> None:
        """Send a message."""
        self._link.message(self.number, order)

    def _pour(self) -> None:
        while self._queue and (size := self._link.room(self.number)):
            first = self._queue[0]
            piece = first[:size]
            self._link.data(self.number, piece)
            self._queued -= len(piece)
            if len(piece) < len(first):
                self._queue[0] = first[len(piece) :]
            else:
                self._queue.popleft()
        if not self._queue:
            if self._closing:
                self._link.close(self.number)
            elif self._ending and not self.deaf:
                self._link.mark(self.number, mux.END)
                self.deaf = True
        if self._queued < STREAM_BYTES_HIGH:
            self.changed.set()

    def _no_longer_heard(self) -> None:
        self.deaf = True
        self._drop()

    def _drop(self) -> None:
        self._queue.clear()
        self._queued = 0


class Link(asyncio.Protocol):
    """The connection itself.  `opened` is told the channels that the guest opens; `peer` names who is connected to."""

    def __init__(self, token: bytes, opened: Callable[[Channel], None], peer: str) -> None:
        self._end = mux.HostEnd(token)
        self._opened, self._peer = opened, peer
        self._transport: asyncio.WriteTransport | None = None
        self._channels: dict[int, Channel] = {}
        self._pending: list[bytes | memoryview] = []
        self.received_bytes = 0
        self.answered = False
        self.hello: orders.Hello | None = None
        self.cause = ""  # why it ended
        self.changed = asyncio.Event()  # answered, greeted or ended
        self.gone = asyncio.Event()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open, which says nothing about the guest."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.write(self._end.preamble())

    def data_received(self, data: bytes) -> None:
        """Bytes of the guest, who may be hostile."""
        if self.gone.is_set():
            return
        self.received_bytes += len(data)
        try:
            for kind, channel, payload in self._end.receive(data):
                self._happened(kind, channel, payload)
        except (mux.MuxError, Malformed) as error:
            self.end(f"the guest broke the control link's protocol: {one_line(str(error))}")

    def connection_lost(self, error: Exception | None) -> None:
        """The socket has closed."""
        self.end(f"{self._peer} closed the control link" if error is None else str(error))

    # The connection

    @property
    def protocol(self) -> int:
        """What both ends speak, once the guest has answered."""
        return self._end.protocol

    @property
    def room_for_channels(self) -> bool:
        """Whether one more channel may be opened."""
        return self._end.room

    def flood(self) -> None:
        """The answer fails to come: pass over what an earlier daemon may have left half sent."""
        if self._transport is not None and not self.answered:
            self._transport.write(self._end.flood())

    def end(self, cause: str) -> None:
        """Nothing more goes or comes; all channels are told why."""
        if self.gone.is_set():
            return
        self.cause = cause
        self.gone.set()
        self.changed.set()
        if self._transport is not None:
            self._transport.abort()
        for channel in tuple(self._channels.values()):
            channel.lost(cause)
        self._channels.clear()

    def open(self, order: orders.Order) -> Channel:
        """A new channel that begins with this.  LinkGone; ValueError if the order is too long."""
        if self.gone.is_set():
            raise LinkGone(self.cause)
        number, data = self._end.open(orders.encode(order))
        channel = self._channels[number] = Channel(self, number)
        self._send(data)
        return channel

    def _happened(self, kind: int, number: int, payload: bytes) -> None:
        if kind == mux.READY:
            self.answered = True
        elif number == 0:
            order = _parsed(payload)
            if self.hello is not None or not isinstance(order, orders.Hello):
                raise mux.MuxError("only one hello belongs there")
            self.hello = order
            self.changed.set()
        elif (channel := self._channels.get(number)) is not None:
            channel.happened(kind, payload)
        elif kind == mux.MESSAGE and number % 2:
            if not isinstance(_parsed(payload), orders.Relay):
                raise mux.MuxError("a guest opens nothing but relays")
            channel = self._channels[number] = Channel(self, number)
            self._opened(channel)

    # For channels

    def room(self, number: int) -> int:
        """How many bytes may be sent now."""
        return min(self._end.credit(number), mux.DATA_BYTES_MAX["host"])

    def data(self, number: int, piece: memoryview) -> None:
        """Send data for which there is room."""
        self._send(self._end.data_head(mux.DATA, number, len(piece)), piece)

    def consumed(self, number: int, size: int) -> None:
        """Data was used."""
        if more := self._end.consumed(number, size):
            self._send(more)

    def mark(self, number: int, kind: int) -> None:
        """Send a frame without payload."""
        if self._end.is_open(number):
            self._send(self._end.mark(kind, number))

    def message(self, number: int, order: orders.Order) -> None:
        """Send a message on an open channel; on a closed one, nothing."""
        if self._end.is_open(number):
            self._send(self._end.message(number, orders.encode(order)))

    def close(self, number: int) -> None:
        """End a channel."""
        if data := self._end.close(number):
            self._send(data)
        if not self._end.is_known(number):
            self._channels.pop(number, None)

    def _send(self, *pieces: bytes | memoryview) -> None:
        """Pieces that are sent in one turn of the loop go out together."""
        if self.gone.is_set():
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending += pieces

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if self._transport is not None and not self.gone.is_set():
            self._transport.writelines(pending)


class GuestStream:
    """A connection of the guest link inside the VM, as what serves it wants to have it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(self) -> bytes:
        """The next bytes; empty at the end, whatever ended it."""
        while (found := self._channel.take()) is None:
            if mux.END in self._channel.ended or self._channel.closed:
                return b""
            await self._channel.change()
        return found[1]

    def write(self, buffers: Sequence[Data]) -> None:
        """Queue bytes; dropped if nobody hears them any more."""
        for each in buffers:
            self._channel.write(each)

    async def drain(self) -> None:
        """Wait while too much is queued.  ConnectionResetError if the connection has ended."""
        while self._channel.queued >= STREAM_BYTES_HIGH:
            await self._channel.change()
        if self._channel.closed:
            raise ConnectionResetError(self._channel.cause or "the guest closed the connection")

    def close(self) -> None:
        """End it, after what is queued."""
        self._channel.close()


def _parsed(payload: bytes) -> orders.Order:
    return orders.parse(payload, orders.GUEST_ORDERS)
