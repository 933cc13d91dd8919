"""What a fake backend keeps of sandboxes beside themselves: snapshots and workspaces."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from agentlab.backends.interface import Gone, Refused
from agentlab.model.sandbox import Mark, Power, SnapshotOf
from agentlab.model.snapshot import Snapshot, WorkspaceDisk
from agentlab.testing.fake_files import FakeFiles

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSnapshot:
    """A sandbox as it was."""

    shown: Snapshot
    disk: dict[str, bytes]
    memory: dict[str, bytes] | None


@dataclass(slots=True, kw_only=True)
class FakeStorage:
    """What one sandbox has beside its power; tests may look at it and change it."""

    files: FakeFiles = field(default_factory=FakeFiles)
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)
    waking: dict[str, bytes] | None = None  # the memory that the next `arm` brings back
    plugged: dict[str, WorkspaceDisk] = field(default_factory=dict)

    def become(self, origin: FakeSnapshot) -> None:
        """Have the disk of that moment, and its memory at the next `arm`."""
        self.files = FakeFiles(disk=dict(origin.disk))
        self.waking = None if origin.memory is None else dict(origin.memory)

    def wake(self) -> None:
        """Power comes: with the memory of a snapshot, or with none."""
        self.files.memory, self.waking = self.waking or {}, None

    def lose_power(self) -> None:
        """Only disk and snapshots are left."""
        self.files.lose_power()
        self.plugged.clear()


class Machines(Protocol):
    """What is needed of the fake backend."""

    async def fate(self, call: str, sandbox: str, effect: Callable[[], _Answer]) -> _Answer:
        """Let `effect` happen, or a fault."""
        ...

    def storage(self, mark: Mark) -> tuple[Power, FakeStorage]:
        """Of an existing sandbox; Gone, NotOurs."""
        ...

    def storages(self) -> Sequence[FakeStorage]:
        """Of all sandboxes."""
        ...

    def owns(self, mark: Mark) -> bool:
        """Whether it exists; NotOurs."""
        ...


class FakeSnapshots:
    """See `Snapshots`."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def take(self, mark: Mark, name: str, *, memory: bool) -> None:
        def keep() -> None:
            power, storage = self._machines.storage(mark)
            if name in storage.snapshots:
                return
            if memory and power not in (Power.RUNNING, Power.PAUSED):
                raise Gone(f"{mark.sandbox} is {power}, and has no memory to keep")
            files = storage.files
            size = sum(map(len, files.disk.values())) + (sum(map(len, files.memory.values())) if memory else 0)
            now = asyncio.get_running_loop().time()
            storage.snapshots[name] = FakeSnapshot(
                shown=Snapshot(name=name, memory=memory, bytes_count=size, taken_at=now),
                disk=dict(files.disk),
                memory=dict(files.memory) if memory else None,
            )

        await self._machines.fate("snapshot", mark.sandbox, keep)

    async def list(self, mark: Mark) -> Sequence[Snapshot]:
        def look() -> Sequence[Snapshot]:
            return [each.shown for each in self._machines.storage(mark)[1].snapshots.values()]

        return await self._machines.fate("snapshots", mark.sandbox, look)

    async def restore(self, mark: Mark, name: str) -> None:
        def go_back() -> None:
            power, storage = self._machines.storage(mark)
            if power is not Power.STOPPED:
                raise Refused(f"{mark.sandbox} is {power}; it must be stopped")
            storage.become(self.find(SnapshotOf(mark=mark, name=name)))

        await self._machines.fate("restore", mark.sandbox, go_back)

    async def remove(self, mark: Mark, name: str) -> None:
        def forget() -> None:
            if self._machines.owns(mark):
                self._machines.storage(mark)[1].snapshots.pop(name, None)

        await self._machines.fate("remove-snapshot", mark.sandbox, forget)

    def find(self, source: SnapshotOf) -> FakeSnapshot:
        """The snapshot; Gone, NotOurs."""
        found = self._machines.storage(source.mark)[1].snapshots.get(source.name)
        if found is None:
            raise Gone(f"{source.mark.sandbox} has no snapshot {source.name}")
        return found


class FakeWorkspaces:
    """See `Workspaces`."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self.contents: dict[str, dict[str, bytes]] = {}  # by what the backend finds a disk by

    async def attach(self, mark: Mark, disk: WorkspaceDisk) -> None:
        def plug() -> None:
            storage = self._running(mark)
            if storage.plugged.get(disk.serial) == disk:
                return
            if disk.serial in storage.plugged or disk.mount in storage.files.mounts:
                raise Refused(f"{mark.sandbox} has something at {disk.serial} or {disk.mount}")
            if any(disk.disk in (each.disk for each in other.plugged.values()) for other in self._machines.storages()):
                raise Refused(f"{disk.disk} is plugged into another sandbox")
            storage.plugged[disk.serial] = disk
            storage.files.mounts[disk.mount] = self.contents.setdefault(disk.disk, {})

        await self._machines.fate("attach", mark.sandbox, plug)

    async def detach(self, mark: Mark, serial: str) -> None:
        def unplug() -> None:
            if not self._machines.owns(mark):
                return
            storage = self._machines.storage(mark)[1]
            if (disk := storage.plugged.pop(serial, None)) is not None:
                del storage.files.mounts[disk.mount]

        await self._machines.fate("detach", mark.sandbox, unplug)

    async def list(self, mark: Mark) -> Sequence[WorkspaceDisk]:
        def look() -> Sequence[WorkspaceDisk]:
            return builtins.list(self._machines.storage(mark)[1].plugged.values())

        return await self._machines.fate("workspaces", mark.sandbox, look)

    def _running(self, mark: Mark) -> FakeStorage:
        power, storage = self._machines.storage(mark)
        if power is not Power.RUNNING:
            raise Gone(f"{mark.sandbox} is {power}")
        return storage
