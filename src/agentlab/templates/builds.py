"""The records of finished builds on disk."""

from __future__ import annotations

import logging
from pathlib import Path

from agentlab.base.files import make_directory, sync_directory, write_atomic
from agentlab.errors import NotFound
from agentlab.model.ids import Digest, is_digest
from agentlab.templates.provenance import BuildRecord

log = logging.getLogger(__name__)


class Builds:
    """One JSON file a build, named by its digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[BuildRecord]:
        """Every record that can be read; a damaged one is logged and passed over."""
        names = sorted(file.stem for file in self._folder.glob("*.json")) if self._folder.is_dir() else []
        found = (self.read(Digest(name)) for name in names if is_digest(name))
        return [record for record in found if record is not None]

    def read(self, digest: Digest) -> BuildRecord | None:
        """The record of this build, or None."""
        try:
            return BuildRecord.from_json(self._file(digest).read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            log.warning("template record is damaged", extra={"digest": digest, "cause": str(error)})
            return None

    def get(self, digest: Digest) -> BuildRecord:
        """The record of this build.  NotFound if there is none."""
        if not is_digest(digest) or (record := self.read(digest)) is None:
            raise NotFound(noun="template", name=digest, hint="")
        return record

    def write(self, record: BuildRecord) -> None:
        """Keep a record; durable on return."""
        make_directory(self._folder, 0o755)
        write_atomic(self._file(Digest(record.digest)), record.to_json(), 0o644)

    def forget(self, digest: Digest) -> None:
        """Remove a record; durable on return, absence is success."""
        if self._folder.is_dir():
            self._file(digest).unlink(missing_ok=True)
            sync_directory(self._folder)

    def _file(self, digest: Digest) -> Path:
        return self._folder / f"{digest}.json"
