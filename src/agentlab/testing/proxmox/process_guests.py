"""Guests that are processes: the real resident guest program in namespaces of its own, which begins in a moment.

A stand-in for a VM where what is tested is the path from an API call to a command inside.  It has a disk that outlives
its power and can be full, further disks by serial number, and a console.  It has no limits of memory and processors, no
memory that could be kept, and for a network the host's, or (`walled`) one that leads to its daemon and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlab.base.files import remove_tree
from agentlab.base.process import ProgramFailed
from agentlab.base.pyz import build_guest_pyz
from agentlab.base.tasks import in_thread
from agentlab.testing.proxmox.burrow import Burrow
from agentlab.testing.proxmox.guests import AgentAbsent, AgentFailed, GuestDisk, GuestFailed, GuestMachine, GuestNic
from agentlab.testing.proxmox.loops import Loops
from agentlab.testing.proxmox.process_disks import Disks, made
from agentlab.testing.proxmox.process_room import NotFurnished, Room
from agentlab.testing.rootfs import test_rootfs
from agentlab_guest.invitation import parse
from agentlab_guest.strict import Malformed

if TYPE_CHECKING:
    from agentlab.testing.proxmox.cluster import Cluster

SYSTEM = "system"  # among a guest's devices: what its first disk is on


@dataclass(slots=True, kw_only=True)
class _Guest:
    machine: GuestMachine
    room: Room
    system: Path  # the image of its first disk
    devices: dict[str, Path]  # key → the device that is behind it
    burrow: Burrow | None = None
    paused: bool = False


@dataclass(slots=True, kw_only=True)
class ProcessGuests:
    """See `GuestHost`.  Needs root, and a storage with a folder; all else that is written lies below `folder`.

    A guest's first disk holds its root's changes, whatever its format says; every other one is a raw image.  A wake-up
    from hibernation and from a snapshot with memory are cold starts.
    """

    folder: Path
    walled: bool = False
    lower: Path | None = None  # the root of all guests; a Debian with Python if it is None
    guests: dict[int, _Guest] = field(default_factory=dict)
    _disks: Disks = field(init=False)
    _loops: Loops = field(default_factory=Loops)
    _cluster: Cluster | None = None

    def __post_init__(self) -> None:
        self._disks = Disks(folder=self.folder / "kept")

    async def opened(self, cluster: Cluster) -> None:
        self._cluster = cluster
        if self.lower is None:
            self.lower = await in_thread(lambda: test_rootfs("python3"))
        (self.folder / "root").mkdir(parents=True, exist_ok=True)
        (self.folder / "guest.pyz").write_bytes(build_guest_pyz())

    async def closed(self) -> None:
        for vmid in list(self.guests):
            await self.stopped(vmid)
        await self._loops.close()
        await in_thread(lambda: remove_tree(self.folder))

    # Power

    async def started(self, machine: GuestMachine) -> None:
        assert self._cluster is not None, "the cluster has not begun"
        system, *others = (disk for disk in machine.disks if not disk.cdrom)
        guest = self.guests[machine.vmid] = await self._begun(machine, system)
        self._cluster.scope.start(self._watched(machine.vmid, guest), f"guest {machine.vmid}")
        for disk in others:
            await self.plugged(machine.vmid, disk)

    async def _begun(self, machine: GuestMachine, system: GuestDisk) -> _Guest:
        if system.path is None:
            raise GuestFailed(f"{system.volid} is no file: give its storage a folder")
        serial, log = self.folder / f"{machine.vmid}.serial", self.folder / f"{machine.vmid}.log"
        serial.write_text(machine.smbios.get("serial", ""))
        try:
            await self._disks.provided(system.path, system.size_bytes)
            device = await self._loops.taken(system.path)
        except ProgramFailed as error:
            raise GuestFailed(str(error)) from error
        given = (self.folder / "root", str(self.lower), device, self.folder / "guest.pyz", serial, machine.name)
        try:
            room = await Room.furnished(given, log, walled=self.walled)
        except NotFurnished as error:
            await self._loops.free([device])
            raise GuestFailed(str(error)) from error
        guest = _Guest(machine=machine, room=room, system=system.path, devices={SYSTEM: device})
        try:
            guest.burrow = await self._burrow(machine, room.init)
        except (ProgramFailed, OSError) as error:
            await self._ended(guest)
            raise GuestFailed(str(error)) from error
        return guest

    async def _burrow(self, machine: GuestMachine, init: int) -> Burrow | None:
        try:
            home = parse(machine.smbios.get("serial", "").encode()).home
        except Malformed:
            return None
        if not self.walled:
            return None
        burrow = Burrow(init, home)
        await burrow.open()
        return burrow

    async def _watched(self, vmid: int, guest: _Guest) -> None:
        """Tell the cluster of a guest that ends by itself."""
        await guest.room.ended()
        if self.guests.get(vmid) is guest and self._cluster is not None:
            await self.stopped(vmid)
            self._cluster.powered_off(vmid)

    async def stopped(self, vmid: int) -> None:
        guest = self.guests.pop(vmid, None)
        if guest is not None:
            await self._ended(guest)

    async def _ended(self, guest: _Guest) -> None:
        if guest.burrow is not None:
            await guest.burrow.close()
        await guest.room.clear()
        await self._loops.free(guest.devices.values())

    async def shut_down(self, vmid: int, timeout_s: float) -> bool:
        guest = self.guests.get(vmid)
        if guest is None or guest.paused:
            return False
        guest.room.ask_to_end()
        try:
            async with asyncio.timeout(timeout_s):
                await guest.room.ended()
        except TimeoutError:
            return False
        await self.stopped(vmid)
        return True

    async def reset(self, vmid: int) -> None:
        machine = self.guests[vmid].machine
        await self.stopped(vmid)
        await self.started(machine)

    async def paused(self, vmid: int) -> None:
        self.guests[vmid].paused = True
        self.guests[vmid].room.halt()

    async def resumed(self, vmid: int) -> None:
        self.guests[vmid].paused = False
        self.guests[vmid].room.go_on()

    async def rewired(self, vmid: int, nic: GuestNic) -> None:
        return None

    async def saved(self, vmid: int, state: Path | None) -> None:
        if state is not None:
            state.touch()

    async def agent(self, vmid: int, command: str, arguments: Mapping[str, Any]) -> Any:
        guest = self.guests.get(vmid)
        if guest is None or guest.paused or not guest.machine.agent:
            raise AgentAbsent
        if command != "guest-ping":
            raise AgentFailed(f"The command {command} has not been found")
        return {}

    # Disks

    async def plugged(self, vmid: int, disk: GuestDisk) -> None:
        guest = self.guests[vmid]
        if disk.path is None or disk.cdrom:
            return
        try:
            device = guest.devices[disk.key] = await self._loops.taken(disk.path)
            await guest.room.bring_in(disk.key, disk.serial or "", device)
        except (ProgramFailed, OSError) as error:
            raise GuestFailed(str(error)) from error

    async def unplugged(self, vmid: int, key: str) -> None:
        guest = self.guests[vmid]
        if key not in guest.devices:
            return
        try:
            await guest.room.take_out(key)
        except ProgramFailed as error:
            raise GuestFailed(str(error)) from error
        await self._loops.free([guest.devices.pop(key)])

    async def disk_made(self, path: Path, kind: str, size_bytes: int) -> None:
        made(path, size_bytes)

    async def disk_linked(self, base: Path, path: Path) -> None:
        await self._disks.copied(base, path)

    async def disk_copied(self, source: Path, source_kind: str, path: Path, kind: str) -> None:
        await self._disks.copied(source, path)

    async def disk_grown(self, path: Path, kind: str, size_bytes: int) -> None:
        return None  # at the next start

    async def disk_kept(self, path: Path, name: str) -> None:
        guest = next((each for each in self.guests.values() if each.system == path), None)
        if guest is None:
            await self._disks.kept(path, name)
            return
        await guest.room.freeze()
        try:
            await self._disks.kept(path, name)
        finally:
            await guest.room.thaw()

    async def disk_returned(self, path: Path, name: str) -> None:
        await self._disks.returned(path, name)

    async def disk_dropped(self, path: Path, name: str) -> None:
        self._disks.dropped(path, name)
