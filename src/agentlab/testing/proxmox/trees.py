"""Disks of process guests: a file where the storage has its image, which names a directory with all that was written.

So a disk may be moved and renamed as images are; what it holds lies elsewhere, and goes with the simulated cluster.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from agentlab.base.process import run

COPY_S_MAX = 120.0
MARK = b"a tree of files: "
_NAME_BYTES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What one disk holds: what was written to it, and snapshots of that."""

    folder: Path

    @property
    def upper(self) -> Path:
        """All that differs from the template's root."""
        return self.folder / "upper"

    @property
    def work(self) -> Path:
        """The kernel's own."""
        return self.folder / "work"

    def kept(self, name: str) -> Path:
        """A snapshot."""
        return self.folder / "kept" / name


@dataclass(slots=True, kw_only=True)
class Trees:
    """All of them, below `folder`.  Blocking calls are short; copying is done by a program of its own."""

    folder: Path
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def of(self, path: Path) -> Tree | None:
        """The tree of a disk, if that is what it is."""
        try:
            with path.open("rb") as file:
                head = file.read(len(MARK) + _NAME_BYTES_MAX)
        except FileNotFoundError:
            return None
        if not head.startswith(MARK):
            return None
        return Tree(folder=self.folder / head[len(MARK) :].split(b"\n")[0].decode())

    def made(self, path: Path) -> Tree:
        """A new empty tree, as this disk."""
        name = f"tree-{next(self._numbers)}"
        made = Tree(folder=self.folder / name)
        for each in (made.upper, made.work, made.folder / "kept"):
            each.mkdir(parents=True)
        made.upper.chmod(0o755)
        path.write_bytes(MARK + name.encode() + b"\n")
        return made

    async def copied(self, source: Path, path: Path) -> None:
        """A disk with the same contents as another; an empty one if that never held anything."""
        original, made = self.of(source), self.made(path)
        if original is not None:
            await _replaced(original.upper, made.upper)

    async def kept(self, path: Path, name: str) -> None:
        """A snapshot of a disk; nothing for what is no tree."""
        if (tree := self.of(path)) is not None:
            await _replaced(tree.upper, tree.kept(name))

    async def returned(self, path: Path, name: str) -> None:
        """A disk goes back to a snapshot.  Its guest must not run."""
        if (tree := self.of(path)) is not None and tree.kept(name).is_dir():
            await _replaced(tree.kept(name), tree.upper)

    def dropped(self, path: Path, name: str) -> None:
        """A snapshot goes."""
        if (tree := self.of(path)) is not None:
            shutil.rmtree(tree.kept(name), ignore_errors=True)


async def _replaced(source: Path, target: Path) -> None:
    """With owners, modes, devices and the attributes by which overlayfs knows what was deleted."""
    shutil.rmtree(target, ignore_errors=True)
    await run(["cp", "-a", "--", str(source), str(target)], timeout_s=COPY_S_MAX)
