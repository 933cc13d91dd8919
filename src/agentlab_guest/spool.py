"""Output and events on the sandbox's disk until the daemon has acknowledged them."""

from __future__ import annotations

import errno
import os
from collections import deque

from agentlab_guest.messages import Event
from agentlab_guest.strict import Malformed, checked, dump, parse_object

OUTPUT_SPOOL_BYTES_MAX = 256 << 20  # not acknowledged; the agent waits while connected, else output is dropped
SEGMENT_BYTES = 4 << 20
EVENTS_WAITING_MAX = 1000


class OutputSpool:
    """A byte stream with absolute offsets, in segment files named by where they begin."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._starts = sorted(int(name) for name in os.listdir(directory) if name.isdigit())
        self._files = {start: os.open(self._path(start), os.O_RDWR | os.O_CLOEXEC) for start in self._starts}
        self.end = 0
        if self._starts:
            self.end = self._starts[-1] + os.fstat(self._files[self._starts[-1]]).st_size
        self.acked = self._starts[0] if self._starts else 0

    def append(self, data: bytes) -> bool:
        """Add to the stream.  False if the disk is full; then nothing was added."""
        if not self._starts or self.end - self._starts[-1] >= SEGMENT_BYTES:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self._files[self.end] = os.open(self._path(self.end), flags, 0o600)
            except OSError as error:
                return _full(error)
            self._starts.append(self.end)
        start = self._starts[-1]
        file, place = self._files[start], self.end - start
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(file, memoryview(data)[written:], place + written)
        except OSError as error:
            os.ftruncate(file, place)
            return _full(error)
        self.end += len(data)
        return True

    def read(self, offset: int, bytes_max: int) -> bytes:
        """Bytes from `offset` on; fewer than `bytes_max` at the end of a segment, none at the end of the stream.

        Should a daemon ask for what it acknowledged before (its state was restored), dots stand for what is gone.
        """
        if offset >= self.end:
            return b""
        start = next((each for each in reversed(self._starts) if each <= offset), None)
        if start is None:
            return b"." * min(bytes_max, self._starts[0] - offset)
        return os.pread(self._files[start], bytes_max, offset - start)

    def ack(self, offset: int) -> None:
        """The daemon has everything before `offset`; segments below are removed.

        An offset beyond the end, as after a lost disk, moves the end: what follows gets the offsets the daemon expects.
        """
        self.acked = max(self.acked, offset)
        if offset > self.end:
            for start in self._starts:
                self._remove(start)
            self._starts, self.end = [], offset
        while len(self._starts) > 1 and self._starts[1] <= self.acked:
            self._remove(self._starts.pop(0))

    @property
    def room(self) -> int:
        """Bytes that may be added before OUTPUT_SPOOL_BYTES_MAX is reached."""
        return OUTPUT_SPOOL_BYTES_MAX - (self.end - self.acked)

    def _remove(self, start: int) -> None:
        os.close(self._files.pop(start))
        os.unlink(self._path(start))

    def _path(self, start: int) -> str:
        return f"{self._directory}/{start:020d}"


class EventSpool:
    """Numbered events, appended to one small file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.waiting: deque[Event] = deque()
        self.last = 0
        for line in _lines(path):
            try:
                event = Event(**checked(parse_object(line), Event.META, "event"))
            except Malformed:
                continue  # half a line, written when the former guest was killed
            if event.seq == self.last + 1:
                self.waiting.append(event)
                self.last = event.seq

    def append(self, at: float, phase: str, detail: str) -> None:
        """Add an event.  Beyond EVENTS_WAITING_MAX, and on a full disk, it is only kept in memory or not at all."""
        if len(self.waiting) >= EVENTS_WAITING_MAX:
            return
        self.last += 1
        event = Event(seq=self.last, at=at, phase=phase, detail=detail)
        self.waiting.append(event)
        line = dump({"seq": event.seq, "at": event.at, "phase": event.phase, "detail": event.detail}) + b"\n"
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        except OSError as error:
            _full(error)

    def ack(self, seq: int) -> None:
        """The daemon has all events up to `seq`."""
        while self.waiting and self.waiting[0].seq <= seq:
            self.waiting.popleft()
        self.last = max(self.last, seq)


def _lines(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def _full(error: OSError) -> bool:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error
    return False
