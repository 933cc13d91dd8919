"""One blob on its way in: hashed as it is written, bounded, and kept for a resumption until it ends."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from agentlab import errors
from agentlab.base.clock import Clock
from agentlab.base.files import free_bytes, make_directory, sync_directory
from agentlab.base.units import format_bytes
from agentlab.model.ids import Digest

REHASH_CHUNK_BYTES = 1 << 20
WRITE_BACK_BYTES = 8 << 20


class Upload:
    """An open partial file.  End it with `finish` or `abandon`; `close` leaves it for a later resumption."""

    def __init__(
        self,
        *,
        partial: Path,
        target: Path,
        clock: Clock,
        limit_bytes: int,
        disk_reserve_bytes: int,
        what: str,
        limit_name: str,
        renaming: threading.Lock,
        ended: Callable[[Upload], None],
    ) -> None:
        self.token = partial.name
        self.offset = 0
        self._written_back = 0
        self._partial, self._target, self._clock = partial, target, clock
        self._limit_bytes, self._what, self._limit_name = limit_bytes, what, limit_name
        self._disk_reserve_bytes = disk_reserve_bytes
        self._renaming, self._ended = renaming, ended
        self._busy = threading.RLock()  # a take-over must not close the file under a write on another thread
        self._hash = hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        if free_bytes(partial.parent) < disk_reserve_bytes:
            raise self._disk_full(0)
        try:
            self._descriptor: int | None = os.open(partial, flags, 0o600)
        except OSError as error:
            raise self._translated(error, 0) from error
        self._read_back()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append `chunk`.

        Raises TooLarge, with nothing of it written, beyond the limit.  Raises DiskFull when the disk is full or would
        fall below its reserve; what fitted is counted in `offset`, and the upload can go on from there later.
        """
        with self._busy:
            self._append(memoryview(chunk).cast("B"))

    def _append(self, rest: memoryview) -> None:
        descriptor = self._own()
        if self.offset + len(rest) > self._limit_bytes:
            limit = format_bytes(self._limit_bytes)
            raise errors.TooLarge(what=self._what, limit_name=self._limit_name, limit=limit)
        if free_bytes(self._partial.parent) - len(rest) < self._disk_reserve_bytes:
            raise self._disk_full(len(rest))
        while rest:
            try:
                written = os.write(descriptor, rest)
            except OSError as error:
                raise self._translated(error, len(rest)) from error
            self._hash.update(rest[:written])
            self.offset += written
            rest = rest[written:]
        if self.offset - self._written_back >= WRITE_BACK_BYTES:
            # Starts the write-back now, beside the hashing, so that the sync in `finish` of a gibibyte takes 20 ms and
            # not 400.  It also keeps large artifacts from pushing everything else out of the page cache.
            os.posix_fadvise(descriptor, self._written_back, 0, os.POSIX_FADV_DONTNEED)
            self._written_back = self.offset

    def finish(self, expected: Digest | None) -> Digest:
        """Make the blob durable under its digest and return that.

        ValueError if the content is not `expected`; the upload is then removed.  A blob that is there already is
        renewed, so that it outlives the next sweep.  Raises DiskFull; the upload can then be finished later.
        """
        with self._busy:
            descriptor = self._own()
            digest = Digest(self._hash.hexdigest())
            if expected is not None and digest != expected:
                self.abandon()
                raise ValueError(f"the content has the digest {digest}, not {expected}")
            path = self._target / digest[:2] / digest
            try:
                if not path.parent.is_dir():
                    make_directory(path.parent)
                    sync_directory(self._target)
                self._touch()
                os.fsync(descriptor)
                with self._renaming:
                    self._partial.replace(path)
            except OSError as error:
                raise self._translated(error, 0) from error
            sync_directory(path.parent)
            self._release()
            return digest

    def abandon(self) -> None:
        """Remove what has arrived.  Quiet after the end."""
        with self._busy:
            if self._descriptor is not None:
                self._partial.unlink(missing_ok=True)
                self._release()

    def close(self) -> None:
        """Leave what has arrived for a resumption by `token`.  Quiet after the end."""
        with self._busy:
            if self._descriptor is not None:
                self._touch()
                self._release()

    def _read_back(self) -> None:
        descriptor = self._own()
        while chunk := os.read(descriptor, REHASH_CHUNK_BYTES):
            self._hash.update(chunk)
            self.offset += len(chunk)
        self._written_back = self.offset

    def _own(self) -> int:
        if self._descriptor is None:
            raise ValueError("the upload has ended, or a later one took it over")
        return self._descriptor

    def _release(self) -> None:
        os.close(self._own())
        self._descriptor = None
        self._ended(self)

    def _touch(self) -> None:
        now = self._clock.now()
        os.utime(self._own(), (now, now))  # the age that a sweep sees, by the clock that it goes by

    def _translated(self, error: OSError, wanted: int) -> Exception:
        return self._disk_full(wanted) if error.errno in (errno.ENOSPC, errno.EDQUOT) else error

    def _disk_full(self, wanted: int) -> errors.DiskFull:
        folder = self._partial.parent
        needed = format_bytes(wanted + self._disk_reserve_bytes)
        return errors.DiskFull(path=folder, free=format_bytes(free_bytes(folder)), needed=needed)
