"""Guests that are real VMs: QEMU on real images, on a real bridge, behind the VM's own firewall.

A card is joined to the bridge of its name in the network namespace of whoever uses this: tests make one of their own.
The firewall works as the cluster's does: some time after its files were changed, and not before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlab.backends.interface import BackendError
from agentlab.backends.qemu.layout import MONITOR
from agentlab.backends.qemu.monitor import Monitor
from agentlab.backends.qemu.sockets import listening
from agentlab.base.clock import sleep
from agentlab.base.files import make_directory, remove_tree
from agentlab.base.process import ProgramFailed, ended, run, start
from agentlab.base.tasks import in_thread
from agentlab.testing.proxmox import qemu_command, qemu_images
from agentlab.testing.proxmox.agent_channel import AgentChannel
from agentlab.testing.proxmox.guests import AgentAbsent, AgentFailed, GuestDisk, GuestFailed, GuestMachine, GuestNic
from agentlab.testing.proxmox.nft_walls import TABLE, Plug, render
from agentlab.testing.taps import HeldTap

if TYPE_CHECKING:
    from agentlab.testing.proxmox.cluster import Cluster

log = logging.getLogger(__name__)

UNPLUG_S_MAX, LOOK_S = 5.0, 0.1
ENFORCE_S = 1.0  # 10 s on the real thing


@dataclass(slots=True, kw_only=True)
class _Guest:
    machine: GuestMachine
    process: subprocess.Popen[bytes]
    monitor: Monitor
    channel: AgentChannel
    nics: dict[str, GuestNic]
    images: dict[Path, str]  # → key of the drive


@dataclass(slots=True, kw_only=True)
class QemuGuests:
    """See `GuestHost`.  Needs root, QEMU, and storages with folders.  `folder` is emptied at the end.

    `enforce_s`: between two looks at the firewall's settings.  A wake-up from hibernation is a cold start.
    """

    folder: Path
    enforce_s: float = ENFORCE_S
    guests: dict[int, _Guest] = field(default_factory=dict)
    _cluster: Cluster | None = None
    _applied: str = ""

    @property
    def cluster(self) -> Cluster:
        """Whose guests these are."""
        assert self._cluster is not None, "the cluster has not begun"
        return self._cluster

    async def opened(self, cluster: Cluster) -> None:
        self._cluster = cluster
        make_directory(self.folder)
        cluster.scope.start(self._enforce(), "firewall")

    async def closed(self) -> None:
        for vmid in list(self.guests):
            await self.stopped(vmid)
        await run(["nft", "delete", "table", "bridge", TABLE], check=False)
        await in_thread(lambda: remove_tree(self.folder))

    def console(self, vmid: int) -> str:
        """What a guest has printed."""
        return (self._room(vmid) / "console").read_text(errors="replace")

    def _room(self, vmid: int) -> Path:
        return self.folder / str(vmid)

    # Power

    async def started(self, machine: GuestMachine) -> None:
        room = make_directory(self._room(machine.vmid))
        taps: dict[str, HeldTap] = {}
        monitor = listening(room, MONITOR)
        try:
            for nic in machine.nics:
                taps[nic.key] = await _joined(machine.vmid, nic)
            numbers = {key: tap.descriptor for key, tap in taps.items()}
            argv = qemu_command.command(machine, room, monitor, numbers)
            with (room / "log").open("ab") as log:
                process = start(argv, stderr=log.fileno(), pass_fds=[monitor, *numbers.values()])
        except (OSError, ProgramFailed) as error:
            raise GuestFailed(str(error)) from error
        finally:
            os.close(monitor)
            for tap in taps.values():
                tap.close()  # QEMU's own descriptor holds it
        await self._take_up(machine, process, room)

    async def _take_up(self, machine: GuestMachine, process: subprocess.Popen[bytes], room: Path) -> None:
        try:
            monitor = await Monitor.connect(room, self.cluster.scope, lambda: None)
        except BackendError as error:
            process.kill()
            await ended(process)
            raise GuestFailed(f"{error.cause}: {(room / 'log').read_text()[-500:]}") from error
        guest = self.guests[machine.vmid] = _Guest(
            machine=machine,
            process=process,
            monitor=monitor,
            channel=AgentChannel(socket=room / "agent"),
            nics={nic.key: nic for nic in machine.nics},
            images={disk.path: disk.key for disk in machine.disks if disk.path is not None},
        )
        for nic in machine.nics:
            await self.rewired(machine.vmid, nic)
        self.cluster.scope.start(self._watched(machine.vmid, guest), f"guest {machine.vmid}")

    async def _watched(self, vmid: int, guest: _Guest) -> None:
        """Tell the cluster of a guest that ends by itself."""
        await ended(guest.process)
        if self.guests.get(vmid) is guest:
            await self.stopped(vmid)
            self.cluster.powered_off(vmid)

    async def stopped(self, vmid: int) -> None:
        guest = self.guests.pop(vmid, None)
        if guest is not None:
            guest.process.kill()
            await ended(guest.process)
            await guest.monitor.close()

    async def shut_down(self, vmid: int, timeout_s: float) -> bool:
        guest = self.guests[vmid]
        try:
            await guest.channel.ask("guest-shutdown", {})
        except (AgentAbsent, AgentFailed):  # it says nothing once it has begun
            await self._asked(vmid, "system_powerdown")
        try:
            async with asyncio.timeout(timeout_s):
                await ended(guest.process)
        except TimeoutError:
            return False
        await self.stopped(vmid)
        return True

    async def reset(self, vmid: int) -> None:
        await self._asked(vmid, "system_reset")

    async def paused(self, vmid: int) -> None:
        await self._asked(vmid, "stop")

    async def resumed(self, vmid: int) -> None:
        await self._asked(vmid, "cont")

    async def saved(self, vmid: int, state: Path | None) -> None:
        if state is not None:
            state.touch()

    async def agent(self, vmid: int, command: str, arguments: Mapping[str, Any]) -> Any:
        guest = self.guests.get(vmid)
        if guest is None or not guest.machine.agent:
            raise AgentAbsent
        return await guest.channel.ask(command, arguments)

    async def _asked(self, vmid: int, command: str, arguments: dict[str, Any] | None = None) -> Any:
        try:
            return await self.guests[vmid].monitor.execute(command, arguments)
        except BackendError as error:
            raise GuestFailed(error.cause) from error

    # Devices

    async def plugged(self, vmid: int, disk: GuestDisk) -> None:
        if disk.path is None:
            raise GuestFailed(f"{disk.volid} is no file: give its storage a folder")
        await self._asked(vmid, "blockdev-add", qemu_command.block_node(disk))
        await self._asked(vmid, "device_add", qemu_command.device(disk))
        self.guests[vmid].images[disk.path] = disk.key

    async def unplugged(self, vmid: int, key: str) -> None:
        if key in await self._devices(vmid):  # an earlier try may have had its effect late
            await self._asked(vmid, "device_del", {"id": key})
        waited = 0.0
        while key in await self._devices(vmid) or not await self._closed(vmid, key):
            if waited >= UNPLUG_S_MAX:
                raise GuestFailed(f"the guest does not let go of {key}")
            await sleep(LOOK_S)
            waited += LOOK_S
        images = self.guests[vmid].images
        for path in [path for path, each in images.items() if each == key]:
            del images[path]

    async def _devices(self, vmid: int) -> set[str]:
        return {each["name"] for each in await self._asked(vmid, "qom-list", {"path": "/machine/peripheral"})}

    async def _closed(self, vmid: int, key: str) -> bool:
        """Close the image of a drive, which its device may hold for a moment longer than it is there."""
        node = qemu_command.node_name(key)
        if node not in {each["node-name"] for each in await self._asked(vmid, "query-named-block-nodes")}:
            return True
        try:
            await self._asked(vmid, "blockdev-del", {"node-name": node})
        except GuestFailed as error:
            log.info("image is still in use", extra={"node": node, "cause": str(error)})
            return False
        return True

    async def rewired(self, vmid: int, nic: GuestNic) -> None:
        self.guests[vmid].nics[nic.key] = nic
        await self._asked(vmid, "set_link", {"name": nic.key, "up": not nic.link_down})

    async def _enforce(self) -> None:
        """What the cluster's firewall service does, again and again."""
        while True:
            plugs = [
                (_plug(vmid, nic), self.cluster.vms[vmid].firewall)
                for vmid, guest in sorted(self.guests.items())
                if vmid in self.cluster.vms
                for nic in guest.nics.values()
            ]
            text = render(self.cluster.firewall, plugs)
            if text != self._applied:
                await run(["nft", "-f", "-"], stdin=text.encode())
                self._applied = text
            await sleep(self.enforce_s)

    # Images

    def _runs_on(self, path: Path) -> tuple[int, str] | None:
        """The guest that has an image open, and as which of QEMU's nodes."""
        for vmid, guest in self.guests.items():
            if (key := guest.images.get(path)) is not None:
                return vmid, qemu_command.node_name(key)
        return None

    async def disk_made(self, path: Path, kind: str, size_bytes: int) -> None:
        await qemu_images.made(path, kind, size_bytes)

    async def disk_linked(self, base: Path, path: Path) -> None:
        await qemu_images.linked(base, path)

    async def disk_copied(self, source: Path, source_kind: str, path: Path, kind: str) -> None:
        await qemu_images.copied(source, source_kind, path, kind)

    async def disk_grown(self, path: Path, kind: str, size_bytes: int) -> None:
        if (at := self._runs_on(path)) is None:
            await qemu_images.grown(path, kind, size_bytes)
        else:
            await self._asked(at[0], "block_resize", {"node-name": at[1], "size": size_bytes})

    async def disk_kept(self, path: Path, name: str) -> None:
        if (at := self._runs_on(path)) is None:
            await qemu_images.kept(path, name)
        else:
            await self._asked(at[0], "blockdev-snapshot-internal-sync", {"device": at[1], "name": name})

    async def disk_returned(self, path: Path, name: str) -> None:
        await qemu_images.returned(path, name)

    async def disk_dropped(self, path: Path, name: str) -> None:
        if (at := self._runs_on(path)) is None:
            await qemu_images.dropped(path, name)
        else:
            await self._asked(at[0], "blockdev-snapshot-delete-internal-sync", {"device": at[1], "name": name})


async def _joined(vmid: int, nic: GuestNic) -> HeldTap:
    """The host's end of a card, up and on its bridge."""
    tap = HeldTap(_interface(vmid, nic.key))
    try:
        if nic.bridge is not None:
            await run(["ip", "link", "set", tap.name, "master", nic.bridge])
        await run(["ip", "link", "set", tap.name, "up"])
    except ProgramFailed:
        tap.close()
        raise
    return tap


def _interface(vmid: int, key: str) -> str:
    return f"tap{vmid}i{key.removeprefix('net')}"


def _plug(vmid: int, nic: GuestNic) -> Plug:
    index = int(nic.key.removeprefix("net"))
    name = _interface(vmid, nic.key)
    return Plug(interface=name, index=index, mac=nic.mac, vmid=vmid, firewalled=nic.firewall)
