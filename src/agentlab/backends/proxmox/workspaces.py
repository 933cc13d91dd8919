"""Disks that outlive sandboxes: they belong to a VM of ours that never runs, and are plugged into one that does.

The cluster destroys a VM's own disks with it, and lets two running VMs have one volume.  So a workspace's disk is never
the sandbox's own, and who has it is written down by us before it is plugged in.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agentlab.backends.interface import Gone, Refused, Unavailable
from agentlab.backends.link.control import Control
from agentlab.backends.proxmox import encode, lenient
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.making import require_ours
from agentlab.backends.proxmox.records import VmRecord
from agentlab.backends.translation import translated
from agentlab.base.files import make_directory, sync_directory, write_atomic
from agentlab.base.tasks import in_thread
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark
from agentlab.model.snapshot import WorkspaceDisk

log = logging.getLogger(__name__)

DISKS_MAX = 8  # workspaces of one sandbox
PLUG_S_MAX = 60.0
_KEYS = tuple(f"virtio{number}" for number in range(1, DISKS_MAX + 1))  # virtio0 is left to whoever made the template
Lock = Callable[[SandboxId], asyncio.Lock]
Running = Callable[[Mark], Awaitable[VmRecord]]
ControlOf = Callable[[Mark], Awaitable[Control]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugged:
    """Who has a disk, and where."""

    volume: str
    serial: str
    mount: str
    sandbox: str
    key: str  # of the VM's configuration
    mounted: bool = False


class ClusterWorkspaces:
    """See `Workspaces`.  `WorkspaceDisk.disk` is a volume's id, such as `local-lvm:vm-20001-disk-0`."""

    def __init__(self, cluster: Cluster, control: ControlOf, running: Running, lock: Lock) -> None:
        self._cluster, self._control, self._running, self._lock = cluster, control, running, lock
        self._claiming = asyncio.Lock()

    async def attach(self, mark: Mark, disk: WorkspaceDisk) -> None:
        """Plug and mount."""
        async with self._lock(mark.sandbox), translated("attach"):
            record = await self._running(mark)
            plugged = await self._claim(mark, disk)
            config = await self._config(mark, record)
            if not lenient.text(config, plugged.key).startswith(f"{disk.disk},"):
                if not set(lenient.text(config, plugged.key)) <= {""}:
                    await self._give_back(plugged)
                    raise Refused(f"{plugged.key} of VM {record.vmid} is in use", "See who has changed the VM.")
                value = encode.format_properties({"file": disk.disk, "serial": disk.serial}, default_key="file")
                await self._plug(record, {plugged.key: value})
            control = await self._control(mark)
            await control.mount(disk.serial, disk.serial[:16], disk.mount)
            await self._write(Plugged(**{**asdict(plugged), "mounted": True}))

    async def detach(self, mark: Mark, serial: str) -> None:
        """Write back, unmount, unplug."""
        async with self._lock(mark.sandbox), translated("detach"):
            await self._verify(mark)
            for each in await self._of(mark.sandbox):
                if each.serial == serial:
                    record = await self._running(mark)
                    await (await self._control(mark)).unmount(each.mount)
                    await self._unplug(mark, record, each)

    async def list(self, mark: Mark) -> Sequence[WorkspaceDisk]:
        """By what we wrote down."""
        async with translated("workspaces"):
            await self._verify(mark)
            return [
                WorkspaceDisk(serial=each.serial, disk=each.volume, mount=each.mount)
                for each in await self._of(mark.sandbox)
                if each.mounted
            ]

    async def release(self, mark: Mark, record: VmRecord) -> None:
        """Unplug all disks of a VM that has stopped or is about to be destroyed; they stay whole."""
        for each in await self._of(mark.sandbox):
            await self._unplug(mark, record, each)

    async def has_disks(self, sandbox: SandboxId) -> bool:
        """Whether any is plugged in, or about to be."""
        return bool(await self._of(sandbox))

    async def _unplug(self, mark: Mark, record: VmRecord, plugged: Plugged) -> None:
        """Unplugged is what is no more in the configuration as it is: a guest may hold on to what is wished away."""
        config = await self._cluster.current_config(record)
        if config is not None and lenient.text(config, plugged.key).startswith(plugged.volume):
            require_ours(mark, record, config)
            doing, path = f"unplugging a disk of VM {record.vmid}", self._cluster.path(record, "config")
            await self._cluster.patiently(doing, "POST", path, {"delete": plugged.key}, PLUG_S_MAX)
            config = await self._cluster.current_config(record)
            if config is not None and lenient.text(config, plugged.key).startswith(plugged.volume):
                raise Unavailable(f"the guest does not let go of {plugged.serial}", "Stop the sandbox.")
        await self._give_back(plugged)

    async def _plug(self, record: VmRecord, params: encode.Params) -> None:
        path = self._cluster.path(record, "config")
        answer = await self._cluster.call("plugging in a disk", "POST", path, params)
        if answer is not None:
            await self._cluster.finished(f"plugging in a disk of VM {record.vmid}", answer, PLUG_S_MAX)

    async def _config(self, mark: Mark, record: VmRecord) -> lenient.Row:
        config = await self._cluster.config(record)
        if config is None:
            raise Gone(f"VM {record.vmid} of {mark.sandbox} is gone", "Something other than AgentLab removed it.")
        require_ours(mark, record, config)
        return config

    # Who has what

    async def _claim(self, mark: Mark, disk: WorkspaceDisk) -> Plugged:
        """Written down for this sandbox alone.  Refused while another has it, or its serial or place is taken."""
        async with self._claiming:
            all_of_them = await in_thread(self._read_all)
            mine = [each for each in all_of_them if each.sandbox == mark.sandbox]
            for each in all_of_them:
                if each.volume == disk.disk:
                    if each.sandbox != mark.sandbox:
                        raise Refused(f"{disk.disk} is plugged into {each.sandbox}", "Detach it there first.")
                    if (each.serial, each.mount) == (disk.serial, disk.mount):
                        return each
                    raise Refused(f"{disk.disk} is plugged in already, as {each.serial}", "Detach it first.")
            if any(each.serial == disk.serial or each.mount == disk.mount for each in mine):
                raise Refused(f"{disk.serial} or its place {disk.mount} is taken", "Detach what is there first.")
            free = [key for key in _KEYS if key not in {each.key for each in mine}]
            if not free:
                raise Refused(f"{mark.sandbox} has {DISKS_MAX} workspaces already", "Detach one first.")
            made = Plugged(volume=disk.disk, serial=disk.serial, mount=disk.mount, sandbox=mark.sandbox, key=free[0])
            await self._write(made)
            return made

    async def _verify(self, mark: Mark) -> None:
        """NotOurs for a mark that is not that of its sandbox; quiet about one that is not there."""
        await in_thread(lambda: self._cluster.records.verify_home(mark))

    async def _of(self, sandbox: SandboxId) -> Sequence[Plugged]:
        return [each for each in await in_thread(self._read_all) if each.sandbox == sandbox]

    async def _write(self, plugged: Plugged) -> None:
        def write() -> None:
            make_directory(self._folder)
            write_atomic(self._file(plugged), json.dumps(asdict(plugged)).encode())

        await in_thread(write)

    async def _give_back(self, plugged: Plugged) -> None:
        def remove() -> None:
            self._file(plugged).unlink(missing_ok=True)
            sync_directory(self._folder)

        await in_thread(remove)

    @property
    def _folder(self) -> Path:
        return self._cluster.records.state / "workspaces"

    def _file(self, plugged: Plugged) -> Path:
        return self._folder / f"{hashlib.sha256(plugged.volume.encode()).hexdigest()[:32]}.json"

    def _read_all(self) -> Sequence[Plugged]:
        if not self._folder.is_dir():
            return []
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(Plugged(**json.loads(path.read_bytes())))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
        return found
