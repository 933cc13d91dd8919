"""Workspace disks of VMs: files that outlive sandboxes, plugged into one running machine at a time.

The file is locked for as long as a process that was handed it lives, whatever becomes of the daemon: there is never a
second writer.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from agentlab.backends.interface import Gone, Refused, Unavailable
from agentlab.backends.qemu import blocks
from agentlab.backends.qemu.command import HOT_PLUG_PORTS
from agentlab.backends.qemu.ground import Ground
from agentlab.backends.qemu.layout import read_note, write_note
from agentlab.backends.qemu.vm import Vm
from agentlab.backends.translation import translated
from agentlab.base.tasks import to_the_end
from agentlab.model.sandbox import Mark, Observed, Power
from agentlab.model.snapshot import WorkspaceDisk

APPEAR_S_MAX = 20.0
PLUGGED = "plugged.json"  # in the room, with which it ends
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,19}")  # what a virtio disk can be called


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """A disk and the port that it has."""

    disk: WorkspaceDisk
    port: int
    mounted: bool = False


class VmWorkspaces:
    """See `Workspaces`.  A disk is a regular file, named by its absolute path, whose content is the disk's."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def attach(self, mark: Mark, disk: WorkspaceDisk) -> None:
        _look_at(disk)
        async with self._of(mark, "attach") as (seen, vm):
            if seen.power is not Power.RUNNING or vm is None:
                raise Gone(f"{mark.sandbox} is {seen.power}", "Only a running sandbox takes a disk.")
            plug = _place(self.plugs(mark), disk)
            if plug.mounted:
                return
            self._note(mark, plug)  # before it is plugged in: what is begun is found again
            try:
                await self._plugged_in(vm, plug)
                await (await vm.control()).mount(disk.serial, disk.serial[:16], disk.mount, APPEAR_S_MAX)
            except Refused:
                await to_the_end(self._taken_out(mark, vm, plug))
                raise
            self._note(mark, replace(plug, mounted=True))

    async def detach(self, mark: Mark, serial: str) -> None:
        if not self._ground.layout.verify(mark):
            return
        async with self._of(mark, "detach") as (seen, vm):
            plug = next((each for each in self.plugs(mark) if each.disk.serial == serial), None)
            if plug is None or vm is None or seen.power is Power.STOPPED:
                return
            if seen.power is not Power.RUNNING:
                raise Unavailable(f"{mark.sandbox} is {seen.power}, so it cannot write back", "Resume it first.")
            try:
                await (await vm.control()).unmount(plug.disk.mount)
            except Refused as error:
                raise Unavailable(error.cause, "End what uses it in the sandbox, and try again.") from error
            await self._taken_out(mark, vm, plug)

    async def list(self, mark: Mark) -> Sequence[WorkspaceDisk]:
        async with self._of(mark, "workspaces") as (seen, _):
            return [] if seen.power is Power.STOPPED else [each.disk for each in self.plugs(mark) if each.mounted]

    def mounts(self, mark: Mark) -> Sequence[str]:
        """Where disks are mounted in a sandbox."""
        return [each.disk.mount for each in self.plugs(mark) if each.mounted]

    def plugs(self, mark: Mark) -> Sequence[Plug]:
        """All that are plugged in, or half plugged in."""
        noted = read_note(self._ground.layout.room(mark.sandbox) / PLUGGED) or {}
        return [Plug(**each | {"disk": WorkspaceDisk(**each["disk"])}) for each in noted.values()]

    @asynccontextmanager
    async def _of(self, mark: Mark, call: str) -> AsyncIterator[tuple[Observed, Vm | None]]:
        await self._ground.host()
        async with self._ground.lock(mark.sandbox), translated(call):
            yield await self._ground.seen(mark), self._ground.fleet.find(mark)

    def _note(self, mark: Mark, plug: Plug, *, gone: bool = False) -> None:
        others = [each for each in self.plugs(mark) if each.disk.serial != plug.disk.serial]
        plugs = others if gone else [*others, plug]
        file = self._ground.layout.room(mark.sandbox) / PLUGGED
        write_note(file, {each.disk.serial: asdict(each) for each in plugs})

    async def _taken_out(self, mark: Mark, vm: Vm, plug: Plug) -> None:
        await blocks.unplug(await vm.monitor(), plug.port)
        self._note(mark, plug, gone=True)

    async def _plugged_in(self, vm: Vm, plug: Plug) -> None:
        monitor = await vm.monitor()
        if await blocks.is_plugged(monitor, plug.port):  # by an attempt that did not end
            return
        with _locked(plug.disk) as descriptor:
            await blocks.plug(monitor, descriptor, plug.port, plug.disk.serial)


def _look_at(disk: WorkspaceDisk) -> None:
    if _SERIAL.fullmatch(disk.serial) is None:
        raise Refused(f"{disk.serial!r} cannot be a disk's serial number", "Use at most 20 letters, digits and dashes.")
    place = PurePosixPath(disk.mount)
    if not place.is_absolute() or place == PurePosixPath("/") or ".." in place.parts:
        raise Refused(f"nothing can be mounted at {disk.mount!r}", "Name an absolute path other than /.")


def _place(plugs: Sequence[Plug], disk: WorkspaceDisk) -> Plug:
    """Where it is plugged in already, or a port that is free.  Refused if its place is taken."""
    for each in plugs:
        if each.disk == disk:
            return each
        if each.disk.serial == disk.serial or each.disk.mount == disk.mount:
            raise Refused(f"{each.disk.serial} is plugged in at {each.disk.mount}", "Detach that first.")
    free = sorted(set(range(HOT_PLUG_PORTS)) - {each.port for each in plugs})
    if not free:
        raise Refused(f"the machine has HOT_PLUG_PORTS = {HOT_PLUG_PORTS} disks already", "Detach one first.")
    return Plug(disk=disk, port=free[0])


@contextmanager
def _locked(disk: WorkspaceDisk) -> Iterator[int]:
    """The disk's file, open; whoever is handed it has it alone for as long as he lives.  Refused if someone has it."""
    try:
        descriptor = os.open(Path(disk.disk), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(
            f"the workspace disk {disk.disk} cannot be opened: {error.strerror}", "Look at its path."
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused(f"the workspace disk {disk.disk} is not a regular file", "Name another.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            cause = f"the workspace disk {disk.disk} is plugged into another sandbox, or in use otherwise"
            raise Refused(cause, "Detach it there first.") from error
        yield descriptor
    finally:
        os.close(descriptor)
