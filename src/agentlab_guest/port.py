"""The guest's end of the wire: bytes that wait, whatever carries them.  A virtio-serial port, or its stand-in."""

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
    """Bytes to and from the host, whoever is there.  How they go is for the kinds to say: `_open`, `_get`, `_put`."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._queue: deque[tuple[memoryview | bytes, bytearray | None]] = deque()  # with the buffer to give back
        self._spare: list[bytearray] = []
        self._queued = 0
        self._full = self._connected = False
        self._mask = 0
        self._wire = -1

    def begin(self, *, arrived: Callable[[bytes], None], gone: Callable[[], None], thinned: Callable[[], None]) -> None:
        """Be there for a host.

        `arrived` gets what was read, `gone` is called when the host has left, `thinned` when the queue has room again.
        """
        self._arrived, self._gone, self._thinned = arrived, gone, thinned
        self._open()

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
        if not self._connected:
            return
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

    def drop(self) -> None:
        """Forget what is queued: it belongs to a connection that is no more."""
        for _, buffer in self._queue:
            if buffer is not None:
                self._give_back(buffer)
        self._queue.clear()
        self._queued, self._full = 0, False

    def _write_first(self) -> None:
        data, buffer = self._queue[0]
        if buffer is None and len(self._queue) > 1 and len(data) < WRITE_BYTES:
            data = self._joined()
        size = self._put(data)
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

    def _ready(self, mask: int) -> None:
        if mask & GONE and not mask & READ:
            self._lose()
            return
        if mask & READ:
            self._read()
        if mask & WRITE and self._connected:
            self.flush()

    def _read(self) -> None:
        pieces: list[bytes] = []
        for _ in range(READS_MAX):
            try:
                piece = self._get()
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
        self._away()
        if was:
            self._gone()

    def _watch(self, mask: int) -> None:
        if self._wire >= 0 and mask != self._mask:
            self._mask = mask
            self._reactor.change(self._wire, mask)

    # What the kinds differ in

    def _open(self) -> None:
        """Begin to be there."""
        raise NotImplementedError

    def _away(self) -> None:
        """The host has left; wait for the next one."""
        raise NotImplementedError

    def _get(self) -> bytes:
        """What has come, empty at the end.  BlockingIOError if nothing has; OSError: the host is gone."""
        return os.read(self._wire, READ_BYTES)

    def _put(self, data: bytes | memoryview) -> int:
        """Write, and say how many bytes went.  BlockingIOError if none can now; OSError: the host is gone."""
        if len(data) <= WRITE_BYTES:
            return os.write(self._wire, data)
        # One call for all: the kernel makes a write of each piece.
        whole = memoryview(data)
        return os.writev(self._wire, [whole[at : at + WRITE_BYTES] for at in range(0, len(whole), WRITE_BYTES)])


class DevicePort(Port):
    """A virtio-serial port of a machine of its own."""

    def __init__(self, path: str, reactor: Reactor) -> None:
        super().__init__(reactor)
        self._path = path

    def _open(self) -> None:
        self._wire = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        # Without a host the port is "hung up" for ever: only its edges are told.
        self._mask = AWAY
        self._reactor.watch(self._wire, self._mask, self._ready)

    def _ready(self, mask: int) -> None:
        if not self._connected:
            if mask & GONE:
                # A host's first bytes may be here before its arrival is.  They keep: an answer to nobody would be lost.
                return
            self._connected = True
            self._watch(READ)
        super()._ready(mask)

    def _away(self) -> None:
        self._watch(AWAY)


class SocketPort(Port):
    """A Unix socket that stands in for a port: a process on somebody's machine."""

    def __init__(self, path: str, reactor: Reactor) -> None:
        super().__init__(reactor)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)

    def _open(self) -> None:
        self._listener.listen(1)
        self._reactor.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        made, _address = self._listener.accept()
        if self._connected:
            self._lose()  # QEMU has one connection at a time: the one before has ended
        made.setblocking(False)
        self._wire, self._connected, self._mask = made.detach(), True, READ
        self._reactor.watch(self._wire, READ, self._ready)

    def _away(self) -> None:
        if self._wire >= 0:
            self._reactor.forget(self._wire)
            os.close(self._wire)
            self._wire = -1


def is_port(path: str) -> bool:
    """Whether this is the port of a machine of its own."""
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
