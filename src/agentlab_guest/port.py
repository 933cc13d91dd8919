"""The guest's end of the wire: a virtio-serial port, or a Unix socket that stands in for one."""

from __future__ import annotations

import os
import socket
import stat
from collections import deque
from collections.abc import Callable

from agentlab_guest.reactor import EDGE, GONE, READ, WRITE, Reactor

READ_BYTES = 64 << 10
READS_MAX = 64  # in one go, before others get their turn
QUEUE_BYTES_MAX = 768 << 10  # waiting to be written; beyond it nothing more is read from programs
BUFFER_BYTES = 256 << 10
BUFFERS_SPARE_MAX = 4
AWAY = READ | WRITE | EDGE  # while no host is there: it can be written to as soon as one is
WRITE_BYTES = 32 << 10  # what the kernel takes in one write to a port


class Port:
    """Bytes to and from the host, whoever is there.

    `arrived` gets what was read, `gone` is called when the host has left, `thinned` when the queue has room again.
    """

    def __init__(
        self,
        path: str,
        reactor: Reactor,
        *,
        arrived: Callable[[bytes], None],
        gone: Callable[[], None],
        thinned: Callable[[], None],
    ) -> None:
        self._reactor, self._arrived, self._gone, self._thinned = reactor, arrived, gone, thinned
        self._queue: deque[tuple[memoryview | bytes, bytearray | None]] = deque()  # with the buffer to give back
        self._spare: list[bytearray] = []
        self._queued = 0
        self._full = False
        self._mask = 0
        self._wire = -1
        self._listener: socket.socket | None = None
        # A port of a machine of its own, or a stand-in on somebody's machine.
        self.is_device = stat.S_ISCHR(os.stat(path).st_mode) if os.path.exists(path) else False
        if self.is_device:
            self._wire = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            # Without a host the port is "hung up" for ever: only its edges are told.
            self._connected, self._mask = False, AWAY
            reactor.watch(self._wire, self._mask, self._ready)
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            self._listener.listen(1)
            self._connected = False
            reactor.watch(self._listener.fileno(), READ, self._accept)

    @property
    def full(self) -> bool:
        """Enough is queued: read no more from programs until `thinned`."""
        if self._queued >= QUEUE_BYTES_MAX:
            self._full = True
        return self._full

    def buffer(self) -> bytearray:
        """A buffer of BUFFER_BYTES to fill and `send_buffer`, or to give back with a size of 0."""
        return self._spare.pop() if self._spare else bytearray(BUFFER_BYTES)

    def send_buffer(self, buffer: bytearray, size: int) -> None:
        """Queue the first `size` bytes of a buffer that came from `buffer`, without copying them."""
        if size == 0 or not self._connected:
            self._give_back(buffer)
            return
        self._queue.append((memoryview(buffer)[:size], buffer))
        self._queued += size
        if self._queued > BUFFER_BYTES // 2:
            self.flush()

    def send(self, data: bytes) -> None:
        """Queue bytes; dropped if no host is there."""
        if data and self._connected:
            self._queue.append((data, None))
            self._queued += len(data)

    def flush(self) -> None:
        """Write what is queued, as far as it goes."""
        try:
            while self._queue:
                self._write_first()
        except BlockingIOError:
            self._watch(READ | WRITE)
        except OSError:
            self._lose()
        else:
            self._watch(READ)
        if self._full and self._queued < QUEUE_BYTES_MAX // 2:
            self._full = False
            self._thinned()

    def _write_first(self) -> None:
        data, buffer = self._queue[0]
        if buffer is None and len(self._queue) > 1 and len(data) < WRITE_BYTES:
            data = self._joined()
        if len(data) > WRITE_BYTES:
            # One call for all: the kernel makes a write of each piece.
            whole = memoryview(data)
            size = os.writev(self._wire, [whole[at : at + WRITE_BYTES] for at in range(0, len(whole), WRITE_BYTES)])
        else:
            size = os.write(self._wire, data)
        self._queued -= size
        if size < len(data):
            self._queue[0] = (memoryview(data)[size:], buffer)
            return
        self._queue.popleft()
        if buffer is not None:
            self._give_back(buffer)

    def _joined(self) -> bytes:
        """The small pieces at the head as one: each write disturbs the host."""
        pieces: list[memoryview | bytes] = []
        size = 0
        while self._queue:
            data, buffer = self._queue[0]
            if buffer is not None or (size and size + len(data) > WRITE_BYTES):
                break
            pieces.append(data)
            size += len(data)
            self._queue.popleft()
        whole = b"".join(pieces)
        self._queue.appendleft((whole, None))
        return whole

    def _give_back(self, buffer: bytearray) -> None:
        if len(self._spare) < BUFFERS_SPARE_MAX:
            self._spare.append(buffer)

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        made, _address = self._listener.accept()
        if self._connected:
            self._lose()  # QEMU has one connection at a time: the one before has ended
        made.setblocking(False)
        self._wire, self._connected, self._mask = made.detach(), True, READ
        self._reactor.watch(self._wire, READ, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & GONE and not self._connected:
            # A host's first bytes may be here before its arrival is.  They keep: an answer to nobody would be lost.
            return
        if mask & GONE and not mask & READ:
            self._lose()
            return
        if not self._connected:
            self._connected = True
            self._watch(READ)
        if mask & READ:
            self._read()
        if mask & WRITE and self._connected:
            self.flush()

    def _read(self) -> None:
        pieces: list[bytes] = []
        for _ in range(READS_MAX):
            try:
                piece = os.read(self._wire, READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                self._lose()
                return
            pieces.append(piece)
        if pieces:
            self._arrived(b"".join(pieces))

    def _lose(self) -> None:
        was, self._connected = self._connected, False
        self.drop()
        if self.is_device:
            self._watch(AWAY)
        elif self._wire >= 0:
            self._reactor.forget(self._wire)
            os.close(self._wire)
            self._wire = -1
        if was:
            self._gone()

    def drop(self) -> None:
        """Forget what is queued: it belongs to a connection that is no more."""
        for _, buffer in self._queue:
            if buffer is not None:
                self._give_back(buffer)
        self._queue.clear()
        self._queued, self._full = 0, False

    def _watch(self, mask: int) -> None:
        if self._wire >= 0 and mask != self._mask:
            self._mask = mask
            self._reactor.change(self._wire, mask)
