"""What agents print: one file per job, appended by offset, so that nothing is lost or doubled after a cut."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from pathlib import Path

from agentlab import errors
from agentlab.base.files import free_bytes, make_directory, sync_directory
from agentlab.base.units import format_bytes
from agentlab.model.ids import is_id

OUTPUT_BYTES_MAX = 256 << 20  # of one job
HANDLES_MAX = 64
CUT_NOTE = b"\n[agentlab: the output reached OUTPUT_BYTES_MAX; what follows was dropped]\n"


class Outputs:
    """Files `root/<job>.log`.  `sync` may run on another thread than the rest."""

    def __init__(self, root: Path, *, bytes_max: int = OUTPUT_BYTES_MAX) -> None:
        self._root = make_directory(root)
        self._bytes_max = bytes_max
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()  # against a descriptor being closed while `sync` duplicates it
        self._created: set[str] = set()  # files whose directory entry is not yet durable

    def append(self, job: str, offset: int, data: bytes) -> int:
        """Put `data` at `offset` of the job's output; returns how much is taken of it, counted from its beginning.

        What is there already is skipped, so a repetition is harmless.  ValueError if bytes before `offset` are
        missing.  Beyond OUTPUT_BYTES_MAX the output is dropped, with a note in the file, and counts as taken.
        Durable after `sync`.  Raises DiskFull; what fitted is kept.
        """
        with self._lock:
            descriptor = self._handle(job)
            size = os.fstat(descriptor).st_size
            end = offset + len(data)
            room_end = min(end, self._bytes_max)
            if size < self._bytes_max:
                if offset > size:
                    raise ValueError(f"output of {job} is missing between {size} and {offset}")
                if room_end > size:
                    self._write(descriptor, memoryview(data)[size - offset : room_end - offset])
                    size = room_end
            if end > self._bytes_max and size == self._bytes_max:
                self._write(descriptor, memoryview(CUT_NOTE))
            return max(end, min(size, self._bytes_max))

    def sync(self, job: str) -> None:
        """Make everything appended so far durable.  Quiet if there is none."""
        with self._lock:
            path = self._path(job)
            if not path.exists():
                return
            descriptor = os.dup(self._handle(job))
            created = job in self._created
        try:
            os.fdatasync(descriptor)
            if created:
                sync_directory(self._root)
                self._created.discard(job)
        finally:
            os.close(descriptor)

    def read(self, job: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`; empty at the end and where there is no output."""
        path = self._path(job)
        with self._lock:
            if job not in self._handles and not path.exists():
                return b""
            return os.pread(self._handle(job), limit, offset)

    def size(self, job: str) -> int:
        """Bytes that `read` can give; 0 where there is no output."""
        try:
            return self._path(job).stat().st_size
        except FileNotFoundError:
            return 0

    def remove(self, job: str) -> None:
        """Remove a job's output.  Absence is success."""
        with self._lock:
            if (descriptor := self._handles.pop(job, None)) is not None:
                os.close(descriptor)
            self._created.discard(job)
            self._path(job).unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files; a later call opens them again."""
        with self._lock:
            while self._handles:
                os.close(self._handles.popitem()[1])

    def _path(self, job: str) -> Path:
        assert is_id(job), f"{job!r} is not an id"
        return self._root / f"{job}.log"

    def _handle(self, job: str) -> int:
        if (descriptor := self._handles.get(job)) is not None:
            self._handles.move_to_end(job)
            return descriptor
        path = self._path(job)
        if not path.exists():
            self._created.add(job)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        self._handles[job] = descriptor
        if len(self._handles) > HANDLES_MAX:
            os.close(self._handles.popitem(last=False)[1])
        return descriptor

    def _write(self, descriptor: int, rest: memoryview) -> None:
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    free = format_bytes(free_bytes(self._root))
                    raise errors.DiskFull(path=self._root, free=free, needed=format_bytes(len(rest))) from error
                raise
