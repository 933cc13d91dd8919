"""The control link inside the guest: channels on a port, and descriptors that are copied to and from them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from agentlab_guest import mux
from agentlab_guest.orders import Order, encode
from agentlab_guest.port import Port
from agentlab_guest.reactor import READ, WRITE, Reactor

SMALL_BYTES = 8 << 10  # reads up to this size are copied, so that several fit into one write to the port


class Wire:
    """Channels; `happened` is told what comes in.  `dropped` is called when all of them are no more."""

    def __init__(
        self, port: Port, reactor: Reactor, happened: Callable[[int, int, bytes], None], dropped: Callable[[], None]
    ) -> None:
        self.reactor = reactor
        self._happened, self._dropped = happened, dropped
        self._end = mux.GuestEnd()
        self._waiting: dict[int, list[Source]] = {}  # for credit, by channel
        self._held: list[Source] = []  # for room in the port's queue
        self.port = port
        port.begin(arrived=self._arrived, gone=self._gone, thinned=self._thinned)

    def _arrived(self, data: bytes) -> None:
        for kind, channel, payload in self._end.receive(data):
            if kind in (mux.RESET, mux.LOST):
                self._drop()
                self.port.send(payload)
            if kind == mux.CREDIT:
                for source in self._waiting.pop(channel, ()):
                    source.resume()
            elif kind != mux.LOST:
                self._happened(kind, channel, payload)

    def _gone(self) -> None:
        self._end.lose()
        self._drop()

    def _drop(self) -> None:
        self.port.drop()
        self._waiting.clear()
        self._held.clear()
        self._dropped()

    def _thinned(self) -> None:
        held, self._held = self._held, []
        for source in held:
            source.resume()

    @property
    def room(self) -> bool:
        """Whether the guest may open one more channel."""
        return self._end.room

    def open(self, order: Order) -> int:
        """A channel of our own that begins with this."""
        channel, data = self._end.open(encode(order))
        self.port.send(data)
        return channel

    def order(self, channel: int, order: Order) -> None:
        """Send a message, unless the channel is closed."""
        if channel == 0 or self._end.is_open(channel):
            self.port.send(self._end.message(channel, encode(order)))

    def mark(self, channel: int, kind: int) -> None:
        """Send END, ERR_END or DEAF, unless the channel is closed."""
        if self._end.is_open(channel):
            self.port.send(self._end.mark(kind, channel))

    def say(self, channel: int, kind: int, data: bytes) -> None:
        """Send a few bytes of our own making as DATA or ERR, as many as credit allows."""
        if size := min(len(data), self._end.credit(channel), mux.DATA_BYTES_MAX["guest"]):
            self.port.send(self._end.data_head(kind, channel, size) + data[:size])

    def close(self, channel: int) -> None:
        """End a channel.  Quiet if it is."""
        self._waiting.pop(channel, None)
        self.port.send(self._end.close(channel))

    def consumed(self, channel: int, size: int) -> None:
        """Data that came was used."""
        self.port.send(self._end.consumed(channel, size))

    def pour(self, source: Source, channel: int, kind: int, descriptor: int) -> bool:
        """Read once from the descriptor and send it.  False at its end.  The source waits if nothing can be sent."""
        if self.port.full:
            source.pause()
            self._held.append(source)
            return True
        size = min(self._end.credit(channel), mux.DATA_BYTES_MAX["guest"])
        if size == 0:
            source.pause()
            self._waiting.setdefault(channel, []).append(source)
            return True
        buffer, head = self.port.buffer(), mux.HEADER.size
        try:
            got = os.readv(descriptor, [memoryview(buffer)[head : head + size]])
        except BlockingIOError:
            self.port.send_buffer(buffer, 0)
            return True
        except OSError:
            got = 0  # EIO: the last holder of a terminal has closed it; ECONNRESET: the other end of a socket
        if got:
            buffer[:head] = self._end.data_head(kind, channel, got)
        if got > SMALL_BYTES:
            self.port.send_buffer(buffer, head + got)
        else:
            data = bytes(memoryview(buffer)[: head + got]) if got else b""
            self.port.send_buffer(buffer, 0)
            self.port.send(data)
        return got > 0


class Source:
    """A descriptor whose bytes go to the host, as fast as it takes them.  Owns the descriptor."""

    def __init__(self, wire: Wire, channel: int, kind: int, descriptor: int, ended: Callable[[], None]) -> None:
        self._wire, self._channel, self._kind, self._ended = wire, channel, kind, ended
        self._descriptor = descriptor
        self._watched = False
        self.resume()

    def resume(self) -> None:
        """Go on reading."""
        if self._descriptor >= 0 and not self._watched:
            self._watched = True
            self._wire.reactor.watch(self._descriptor, READ, self._ready)

    def pause(self) -> None:
        """Read no more for now."""
        if self._watched:
            self._watched = False
            self._wire.reactor.forget(self._descriptor)

    def close(self) -> None:
        """Let go of the descriptor; `ended` is not called."""
        if self._descriptor >= 0:
            self.pause()
            os.close(self._descriptor)
            self._descriptor = -1

    def _ready(self, _: int) -> None:
        if self._descriptor >= 0 and not self._wire.pour(self, self._channel, self._kind, self._descriptor):
            self.close()
            self._wire.mark(self._channel, mux.END if self._kind == mux.DATA else mux.ERR_END)
            self._ended()


class Sink:
    """A descriptor that gets the host's bytes, as fast as it takes them.  Owns the descriptor."""

    def __init__(self, wire: Wire, channel: int, descriptor: int, finish: Callable[[int], None] = os.close) -> None:
        self._wire, self._channel, self._finish = wire, channel, finish
        self._descriptor = descriptor
        self._queue: deque[memoryview] = deque()
        self._ending = self._watched = False

    def add(self, data: bytes) -> None:
        """Write it, or keep it until the descriptor takes it; credit bounds how much."""
        if self._descriptor >= 0:
            self._queue.append(memoryview(data))
            if len(self._queue) == 1:
                self._ready(WRITE)

    def end(self) -> None:
        """Nothing more comes: close it when all is written."""
        self._ending = True
        if not self._queue:
            self.close()

    def close(self) -> None:
        """Let go of the descriptor, and forget what is not written."""
        if self._descriptor >= 0:
            self._rest()
            self._queue.clear()
            self._finish(self._descriptor)
            self._descriptor = -1

    def _rest(self) -> None:
        if self._watched:
            self._watched = False
            self._wire.reactor.forget(self._descriptor)

    def _ready(self, _: int) -> None:
        try:
            while self._queue:
                first = self._queue[0]
                size = os.write(self._descriptor, first)
                self._wire.consumed(self._channel, size)
                if size < len(first):
                    self._queue[0] = first[size:]
                else:
                    self._queue.popleft()
        except BlockingIOError:
            if not self._watched:
                self._watched = True
                self._wire.reactor.watch(self._descriptor, WRITE, self._ready)
            return
        except OSError:
            self._wire.mark(self._channel, mux.DEAF)
            self.close()
            return
        self._rest()
        if self._ending:
            self.close()
