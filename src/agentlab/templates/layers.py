"""Layers on disk: each a directory that is the overlay's difference of one step, addressed by its digest."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agentlab.base.clock import sleep
from agentlab.base.files import make_directory, mounts_below, remove_tree, sync_directory, write_atomic
from agentlab.base.process import run
from agentlab.model.ids import Digest
from agentlab.templates.isolation import namespaces

# Directory names carry 96 bits of the digest, so that a stack of many fits the one page of mount options.
NAME_LENGTH = 24
PARTIAL = ".partial"
SYNC_S_MAX = 900
REMOVE_TRIES_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What is kept beside a layer."""

    digest: str
    step: str
    bytes_count: int
    built_at: float
    build_s: float


class Layers:
    """The layer directory of an installation.  A layer is there completely or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def name(digest: Digest) -> str:
        """The directory name of a layer."""
        return digest[:NAME_LENGTH]

    def root(self, digest: Digest) -> Path:
        """The layer's files: one lower directory of an overlay."""
        return self.folder / self.name(digest) / "fs"

    def log(self, digest: Digest) -> Path:
        """What its step printed."""
        return self.folder / self.name(digest) / "log"

    def partial_log(self, digest: Digest) -> Path:
        """What the step has printed that is under way or has failed."""
        return self.folder / (self.name(digest) + PARTIAL) / "log"

    def has(self, digest: Digest) -> bool:
        """Whether the layer is complete."""
        return (self.folder / self.name(digest) / "layer.json").is_file()

    def record(self, digest: Digest) -> LayerRecord:
        """What is kept beside a complete layer."""
        return LayerRecord(**json.loads((self.folder / self.name(digest) / "layer.json").read_text()))

    async def begin(self, digest: Digest) -> Path:
        """A fresh scratch directory with fs/, work/, root/ and provisions/; what an earlier try left is removed."""
        make_directory(self.folder, 0o755)
        scratch = self.folder / (self.name(digest) + PARTIAL)
        await self.discard(scratch)
        make_directory(scratch, 0o700)
        for each in ("work", "root", "provisions"):
            make_directory(scratch / each, 0o700)
        make_directory(scratch / "fs", 0o755)
        return scratch

    async def commit(self, digest: Digest, step: str, scratch: Path, built_at: float, build_s: float) -> None:
        """Make a finished scratch directory the layer: durable on return, and in one rename."""
        for each in ("work", "root", "provisions"):
            await self.discard(scratch / each)
        size = await run([*namespaces(), "du", "-s", "--block-size=1", str(scratch / "fs")], timeout_s=SYNC_S_MAX)
        record = LayerRecord(
            digest=digest, step=step, bytes_count=int(size.out.split()[0]), built_at=built_at, build_s=build_s
        )
        write_atomic(scratch / "layer.json", json.dumps(asdict(record)).encode(), 0o644)
        scratch.chmod(0o755)
        await run(["sync", "-f", str(scratch)], timeout_s=SYNC_S_MAX)
        scratch.rename(self.folder / self.name(digest))
        sync_directory(self.folder)

    async def remove(self, digests: Iterable[Digest]) -> int:
        """Remove these layers; returns the bytes that became free.  Absent ones are passed over."""
        freed = 0
        for digest in digests:
            if self.has(digest):
                freed += self.record(digest).bytes_count
                gone = self.folder / (self.name(digest) + PARTIAL)
                await self.discard(gone)
                # First out of sight in one step: a layer is complete or absent, also when this is interrupted.
                (self.folder / self.name(digest)).rename(gone)
                await self.discard(gone)
        return freed

    async def remove_partial(self, keep: Collection[Digest] = ()) -> list[str]:
        """Remove what killed builds and removals left behind; returns the names."""
        kept = {self.name(digest) + PARTIAL for digest in keep}
        found = [each for each in sorted(self.folder.glob(f"*{PARTIAL}")) if each.name not in kept]
        for each in found:
            await self.discard(each)
        return [each.name for each in found]

    async def discard(self, path: Path) -> None:
        """Remove a directory of ours; tries again while the last processes of a killed step still write into it."""
        for _ in range(REMOVE_TRIES_MAX):
            with suppress(OSError):
                remove_tree(path)
                return
            if mounts_below(path):
                break
            await sleep(0.1)
            if os.geteuid() != 0:  # then files belong to subordinate ids, which only a user namespace may remove
                await run([*namespaces(), "rm", "-rf", str(path)], timeout_s=SYNC_S_MAX, check=False)
        remove_tree(path)
