"""Files over the link: artifacts up, the repository's bundle down.  Resumable after a cut."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable

from agentlab_guest.globs import Offer
from agentlab_guest.messages import (
    ARTIFACT_OFFERS_OPEN_MAX,
    CHUNK_BYTES_MAX,
    ArtifactOffer,
    ArtifactRefused,
    ArtifactStored,
    ArtifactWant,
    BlobChunk,
    BlobMissing,
    BlobWant,
)


class _Open:
    """An artifact that is not settled."""

    __slots__ = ("file", "message", "next", "offered")

    def __init__(self, message: ArtifactOffer, file: int) -> None:
        self.message, self.file = message, file
        self.offered = False  # in this connection
        self.next: int | None = None  # where the next chunk begins, once wanted in this connection


class Uploads:
    """Artifacts on their way.  `settled` is told each one's name, and a reason if it was not taken."""

    def __init__(self, settled: Callable[[str, str | None], None]) -> None:
        self._settled = settled
        self._open: dict[int, _Open] = {}
        self._last = 0

    @property
    def room(self) -> int:
        """How many more may be added now."""
        return ARTIFACT_OFFERS_OPEN_MAX - len(self._open)

    @property
    def idle(self) -> bool:
        """Everything that was added is settled."""
        return not self._open

    def add(self, offer: Offer) -> None:
        """Take charge of an open file."""
        assert self.room > 0
        self._last += 1
        message = ArtifactOffer(id=self._last, name=offer.name, kind=offer.kind, bytes=offer.bytes, digest=offer.digest)
        self._open[self._last] = _Open(message, offer.file)

    def connected(self) -> None:
        """A new connection: everything open is offered again."""
        for each in self._open.values():
            each.offered, each.next = False, None

    def next_offer(self) -> ArtifactOffer | None:
        """The next offer to send, in the order of the ids."""
        for each in self._open.values():
            if not each.offered:
                each.offered = True
                return each.message
        return None

    def next_chunk(self) -> tuple[int, int, int, int] | None:
        """Id, offset, size and descriptor of the next chunk to send; it counts as sent."""
        for number, each in self._open.items():
            if each.next is not None and each.next < each.message.bytes:
                offset, size = each.next, min(CHUNK_BYTES_MAX, each.message.bytes - each.next)
                each.next += size
                return number, offset, size, each.file
        return None

    def receive(self, message: ArtifactWant | ArtifactStored | ArtifactRefused) -> None:
        """The daemon's answer to an offer."""
        if isinstance(message, ArtifactWant):
            self._open[message.id].next = message.offset
        else:
            self._end(message.id, message.reason if isinstance(message, ArtifactRefused) else None)

    def broken(self, number: int) -> None:
        """Its file became shorter than it was: it is given up.  The connection must be cut, being in mid-frame."""
        if number in self._open:
            self._end(number, "it changed while it was sent")

    def _end(self, number: int, reason: str | None) -> None:
        ended = self._open.pop(number)
        os.close(ended.file)
        self._settled(ended.message.name, reason)


class Download:
    """A blob on its way into a file.  `done` is told None, or why it cannot be had."""

    def __init__(self, digest: str, path: str, done: Callable[[str | None], None]) -> None:
        self._digest, self._done = digest, done
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self._offset = 0
        self._retried = False
        self.want: BlobWant | None = BlobWant(digest=digest, offset=0)

    def connected(self) -> None:
        """A new connection: ask for the rest."""
        self.want = BlobWant(digest=self._digest, offset=self._offset)

    def receive(self, message: BlobChunk | BlobMissing) -> bool:
        """Take a part.  True when there is nothing more to come."""
        if isinstance(message, BlobMissing):
            return self._end(f"the daemon has no such bundle: {message.reason}")
        view = memoryview(message.data)
        try:
            while view:
                written = os.pwrite(self._file, view, self._offset)
                self._hash.update(view[:written])
                self._offset += written
                view = view[written:]
        except OSError as error:
            return self._end(str(error.strerror))
        if self._offset < message.total:
            return False
        if self._hash.hexdigest() == self._digest:
            return self._end(None)
        if self._retried:
            return self._end("what arrived has another digest, twice")
        self._retried, self._offset, self._hash = True, 0, hashlib.sha256()
        os.ftruncate(self._file, 0)
        self.connected()
        return False

    def _end(self, problem: str | None) -> bool:
        os.close(self._file)
        self._done(problem)
        return True


class Range:
    """Part of a file that waits to be sent.  Has a descriptor of its own: the artifact may be settled meanwhile."""

    __slots__ = ("artifact", "file", "offset", "size")

    def __init__(self, artifact: int, file: int, offset: int, size: int) -> None:
        self.artifact, self.file, self.offset, self.size = artifact, os.dup(file), offset, size


class Pending:
    """What waits to be written to a socket: buffers, and ranges of files that the kernel copies."""

    def __init__(self) -> None:
        self._queue: deque[memoryview | Range] = deque()
        self.bytes = 0

    def add(self, buffer: bytes | bytearray) -> None:
        """Queue bytes."""
        if buffer:
            self._queue.append(memoryview(buffer))
            self.bytes += len(buffer)

    def add_range(self, part: Range) -> None:
        """Queue a range of a file."""
        self._queue.append(part)
        self.bytes += part.size

    def front(self, count_max: int = 64) -> Range | list[memoryview]:
        """What to send next: a range, or the buffers before the next range; an empty list if nothing waits."""
        found: list[memoryview] = []
        for each in self._queue:
            if isinstance(each, Range):
                return found or each
            if len(found) == count_max:
                break
            found.append(each)
        return found

    def sent(self, count: int) -> None:
        """The first `count` bytes are written."""
        self.bytes -= count
        while count:
            first = self._queue[0]
            size = first.size if isinstance(first, Range) else len(first)
            if count >= size:
                self._drop()
                count -= size
            elif isinstance(first, Range):
                first.offset, first.size, count = first.offset + count, size - count, 0
            else:
                self._queue[0], count = first[count:], 0

    def clear(self) -> None:
        """Forget everything: the connection is gone."""
        while self._queue:
            self._drop()
        self.bytes = 0

    def _drop(self) -> None:
        first = self._queue.popleft()
        if isinstance(first, Range):
            os.close(first.file)
