"""Blobs: files addressed by the SHA-256 of their content, received in pieces and resumable."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import BinaryIO

from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory
from agentlab.model.ids import Digest, is_digest
from agentlab.store.upload import Upload

DISK_RESERVE_BYTES = 256 << 20  # kept free for the database and the sandboxes; a setting overrides it
_TOKEN = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


class Blobs:
    """Content-addressed files `root/ab/<digest>`, immutable once there; unfinished ones in `root/partial`.

    The methods block on the disk, `finish` and a resuming `begin` for as long as the content takes to sync or read:
    call them from a thread where the content is large.  One Blobs at a time owns `root`.
    """

    def __init__(
        self, root: Path, clock: Clock, entropy: Entropy, *, disk_reserve_bytes: int = DISK_RESERVE_BYTES
    ) -> None:
        self._root = make_directory(root)
        self._partial = make_directory(root / "partial")
        self._clock, self._entropy = clock, entropy
        self._disk_reserve_bytes = disk_reserve_bytes
        self._open: dict[str, Upload] = {}
        self._renaming = threading.Lock()  # between a sweep's look at a file's age and its removal, no file is renewed

    def begin(
        self,
        limit_bytes: int,
        resume: str | None = None,
        *,
        what: str = "The upload",
        limit_name: str = "UPLOAD_BYTES_MAX",
    ) -> Upload:
        """An upload of at most `limit_bytes`.

        `resume` is the token of an earlier one, also from before a restart of the daemon: what had arrived is read
        back and `.offset` says where to go on; an upload under this token that is still open is closed.  Where
        nothing has arrived under `resume`, an empty upload begins under that token, so that a caller may choose its
        own: `[a-z0-9-]`, at most 100.  ValueError for another token.  `what` and `limit_name` are for TooLarge.
        Raises DiskFull while less than the reserve is free.
        """
        token = self._entropy.word(24) if resume is None else resume
        if _TOKEN.fullmatch(token) is None:
            raise ValueError(f"{token!r} is not the token of an upload")
        if (earlier := self._open.pop(token, None)) is not None:
            earlier.close()
        upload = Upload(
            partial=self._partial / token,
            target=self._root,
            clock=self._clock,
            limit_bytes=limit_bytes,
            disk_reserve_bytes=self._disk_reserve_bytes,
            what=what,
            limit_name=limit_name,
            renaming=self._renaming,
            ended=self._ended,
        )
        self._open[token] = upload
        return upload

    def path(self, digest: str) -> Path:
        """Where the blob lies or would lie.  ValueError if `digest` is none."""
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is not a digest")
        return self._root / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether the blob is there, complete."""
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Its bytes.  FileNotFoundError if it is not there."""
        return self.path(digest).stat().st_size

    def open(self, digest: str) -> BinaryIO:
        """The blob for reading; the caller closes it.  FileNotFoundError if it is not there."""
        return self.path(digest).open("rb")

    def remove(self, digest: str) -> None:
        """Remove a blob that no row refers to.  Absence is success."""
        self.path(digest).unlink(missing_ok=True)

    def discard(self, token: str) -> None:
        """Remove what has arrived under `token`, unless it is being sent.  Absence is success."""
        if _TOKEN.fullmatch(token) is None:
            raise ValueError(f"{token!r} is not the token of an upload")
        if token not in self._open:
            (self._partial / token).unlink(missing_ok=True)

    def sweep(self, in_use: set[Digest], older_than_s: float) -> int:
        """Remove blobs that are not `in_use`, and partial uploads that are not open, if older; returns how many.

        `older_than_s` protects what has just arrived and is not yet referred to by a row.
        """
        before, removed = self._clock.now() - older_than_s, 0
        for folder in self._root.iterdir():
            if not folder.is_dir() or folder.is_symlink():
                continue
            kept = self._open.keys() if folder == self._partial else in_use
            for file in folder.iterdir():
                removed += file.name not in kept and self._removed_if_older(file, before)
        return removed

    def _removed_if_older(self, file: Path, before: float) -> bool:
        with self._renaming:
            try:
                if file.lstat().st_mtime >= before:
                    return False
            except FileNotFoundError:
                return False
            file.unlink()
            return True

    def _ended(self, upload: Upload) -> None:
        if self._open.get(upload.token) is upload:
            del self._open[upload.token]
