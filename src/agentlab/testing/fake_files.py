"""The file system of a fake sandbox: what is on its disk, in its memory, and on workspaces that are plugged in."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field

MEMORY_ROOTS = ("/dev/", "/proc/", "/run/")


@dataclass(slots=True)
class FakeFiles(MutableMapping[str, bytes]):
    """Files by path.  Those under MEMORY_ROOTS end with the power; those under a mount are the workspace's."""

    disk: dict[str, bytes] = field(default_factory=dict)
    memory: dict[str, bytes] = field(default_factory=dict)
    mounts: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by mount point

    def lose_power(self) -> None:
        """Only the disk is left."""
        self.memory, self.mounts = {}, {}

    def _place(self, path: str) -> dict[str, bytes]:
        for mount, content in self.mounts.items():
            if path.startswith(f"{mount}/"):
                return content
        return self.memory if path.startswith(MEMORY_ROOTS) else self.disk

    def __getitem__(self, path: str) -> bytes:
        return self._place(path)[path]

    def __setitem__(self, path: str, content: bytes) -> None:
        self._place(path)[path] = content

    def __delitem__(self, path: str) -> None:
        del self._place(path)[path]

    def __iter__(self) -> Iterator[str]:
        for place in (self.disk, self.memory, *self.mounts.values()):
            yield from place

    def __len__(self) -> int:
        return sum(1 for _ in self)
