"""Guests that are processes: the real resident guest program in namespaces of its own, which begins in a moment.

A stand-in for a VM where what is tested is the path from an API call to a command inside.  It has a disk that outlives
its power, further disks by serial number, a console, and the host's network: no walls, no memory of its own to keep.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlab.base import process
from agentlab.base.files import remove_tree
from agentlab.base.process import ProgramFailed, run
from agentlab.base.pyz import build_guest_pyz
from agentlab.base.tasks import in_thread
from agentlab.testing.proxmox.burrow import Burrow
from agentlab.testing.proxmox.guests import AgentAbsent, AgentFailed, GuestDisk, GuestFailed, GuestMachine, GuestNic
from agentlab.testing.proxmox.loops import Loops
from agentlab.testing.proxmox.trees import Tree, Trees
from agentlab.testing.rootfs import test_rootfs
from agentlab_guest.invitation import parse
from agentlab_guest.strict import Malformed

if TYPE_CHECKING:
    from agentlab.testing.proxmox.cluster import Cluster

UP_S_MAX = 20.0
NO_WAY_HOME = 5  # the guest program's status after it looked for an invitation in vain: a machine would go on
_UNSHARE = ("--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--")
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
_FURNISH = """
set -e
root=$1 lower=$2 tree=$3 program=$4 serial=$5 name=$6
mount -t overlay guest -o "lowerdir=$lower,upperdir=$tree/upper,workdir=$tree/work" "$root"
cd "$root"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
for each in null zero full random urandom tty; do : > dev/$each; mount --bind /dev/$each dev/$each; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs shm dev/shm
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=755 sys sys
mkdir sys/block
cp "$program" run/guest.pyz
mkdir -p opt/agentlab
cp "$program" opt/agentlab/guest.pyz
ln -sfn /run/agentlab/guest.sock opt/agentlab/guest.sock
cp "$serial" run/serial
echo "$name" > /proc/sys/kernel/hostname
pivot_root . mnt
cd /
umount -l /mnt
echo up
exec >&2
while status=0; python3 -I -S -B /run/guest.pyz --resident /none --invitation /run/serial --stand-in || status=$?
    [ $status -eq 5 ]; do :; done
"""
# In the mount namespace of a guest: a disk, as the guest program looks for it.
_APPEAR = 'mkdir -p /sys/block/$1 && echo "$2" > /sys/block/$1/serial && mknod /dev/$1 b $3 $4'
_VANISH = '! grep -q "^/dev/$1 " /proc/mounts && rm -rf /sys/block/$1 /dev/$1'


@dataclass(slots=True, kw_only=True)
class _Guest:
    machine: GuestMachine
    process: asyncio.subprocess.Process  # its end is that of all its processes
    init: int  # the first process of its namespace, as seen from here
    burrow: Burrow | None = None
    disks: dict[str, Path] = field(default_factory=dict)  # key → the device that is behind it
    paused: bool = False


@dataclass(slots=True, kw_only=True)
class ProcessGuests:
    """See `GuestHost`.  Needs root, and a storage with a folder; all that is written lies below `folder`.

    A guest's first disk holds its root's changes; every other disk is a raw image on a loop device.  A reset loses
    nothing, a wake-up from hibernation and a snapshot with memory are cold starts.
    """

    folder: Path
    walled: bool = False  # with a network of its own, which leads to its daemon and nowhere else
    lower: Path | None = None  # the root of all guests; a Debian with Python if it is None
    guests: dict[int, _Guest] = field(default_factory=dict)
    _trees: Trees = field(init=False)
    _loops: Loops = field(default_factory=Loops)
    _cluster: Cluster | None = None

    def __post_init__(self) -> None:
        self._trees = Trees(folder=self.folder / "trees")

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
        guest = await self._begun(machine, self._tree(system))
        self.guests[machine.vmid] = guest
        self._cluster.scope.start(self._watched(machine.vmid, guest), f"guest {machine.vmid}")
        for disk in others:
            await self.plugged(machine.vmid, disk)

    async def stopped(self, vmid: int) -> None:
        guest = self.guests.pop(vmid, None)
        if guest is not None:
            if guest.burrow is not None:
                await guest.burrow.close()
            _signal([guest.init], signal.SIGKILL)
            await guest.process.wait()
            await self._loops.free(guest.disks.values())

    async def shut_down(self, vmid: int, timeout_s: float) -> bool:
        guest = self.guests.get(vmid)
        if guest is None or guest.paused:
            return False
        _signal(_children(guest.init), signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await guest.process.wait()
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
        _all_of(self.guests[vmid].init, signal.SIGSTOP)

    async def resumed(self, vmid: int) -> None:
        self.guests[vmid].paused = False
        _all_of(self.guests[vmid].init, signal.SIGCONT)

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

    async def _begun(self, machine: GuestMachine, tree: Tree) -> _Guest:
        serial, log = self.folder / f"{machine.vmid}.serial", self.folder / f"{machine.vmid}.log"
        serial.write_text(machine.smbios.get("serial", ""))
        given = (self.folder / "root", self.lower, tree.folder, self.folder / "guest.pyz", serial, machine.name)
        argv = (
            "unshare",
            *(["--net"] if self.walled else []),
            *_UNSHARE,
            "sh",
            "-c",
            _FURNISH,
            "guest",
            *map(str, given),
        )
        with log.open("ab") as complaints:
            child = await process.spawn(
                argv,
                stdout=asyncio.subprocess.PIPE,
                stderr=complaints.fileno(),
                env=_ENVIRONMENT,
                new_session=True,
            )
        assert child.stdout is not None
        try:
            async with asyncio.timeout(UP_S_MAX):
                said = await child.stdout.readline()
        except TimeoutError:
            said = b""
        init = _children(child.pid)
        if said != b"up\n" or not init:
            _signal([*init, child.pid], signal.SIGKILL)
            await child.wait()
            raise GuestFailed(f"its namespaces could not be furnished: {log.read_text()[-500:]}")
        return _Guest(machine=machine, process=child, init=init[0], burrow=await self._burrow(machine, init[0]))

    async def _burrow(self, machine: GuestMachine, init: int) -> Burrow | None:
        try:
            home = parse(machine.smbios.get("serial", "").encode()).home
        except Malformed:
            return None
        if not self.walled:
            return None
        burrow = Burrow(init, home)
        try:
            await burrow.open()
        except (ProgramFailed, OSError) as error:
            _signal([init], signal.SIGKILL)
            raise GuestFailed(str(error)) from error
        return burrow

    async def _watched(self, vmid: int, guest: _Guest) -> None:
        """Tell the cluster of a guest that ends by itself."""
        await guest.process.wait()
        if self.guests.get(vmid) is guest and self._cluster is not None:
            await self.stopped(vmid)
            self._cluster.powered_off(vmid)

    # Disks

    def _tree(self, disk: GuestDisk) -> Tree:
        if disk.path is None:
            raise GuestFailed(f"{disk.volid} is no file: give its storage a folder")
        return self._trees.of(disk.path) or self._trees.made(disk.path)

    async def plugged(self, vmid: int, disk: GuestDisk) -> None:
        guest = self.guests[vmid]
        if disk.path is None or disk.cdrom:
            return
        try:
            device = await self._loops.taken(disk.path)
            guest.disks[disk.key] = device
            number = device.stat().st_rdev
            where = (str(os.major(number)), str(os.minor(number)))
            await run([*_inside(guest), _APPEAR, "plug", disk.key, disk.serial or "", *where])
        except ProgramFailed as error:
            raise GuestFailed(str(error)) from error

    async def unplugged(self, vmid: int, key: str) -> None:
        guest = self.guests[vmid]
        if key not in guest.disks:
            return
        try:
            await run([*_inside(guest), _VANISH, "unplug", key])
        except ProgramFailed as error:
            raise GuestFailed(str(error)) from error
        await self._loops.free([guest.disks.pop(key)])

    async def disk_made(self, path: Path, kind: str, size_bytes: int) -> None:
        path.touch()
        os.truncate(path, size_bytes)

    async def disk_linked(self, base: Path, path: Path) -> None:
        await self._trees.copied(base, path)

    async def disk_copied(self, source: Path, source_kind: str, path: Path, kind: str) -> None:
        if self._trees.of(source) is not None or source_kind == "qcow2":
            await self._trees.copied(source, path)
        else:
            await run(["cp", "--sparse=always", "--", str(source), str(path)])

    async def disk_grown(self, path: Path, kind: str, size_bytes: int) -> None:
        if self._trees.of(path) is None:
            os.truncate(path, size_bytes)

    async def disk_kept(self, path: Path, name: str) -> None:
        await self._trees.kept(path, name)

    async def disk_returned(self, path: Path, name: str) -> None:
        await self._trees.returned(path, name)

    async def disk_dropped(self, path: Path, name: str) -> None:
        self._trees.dropped(path, name)


def _inside(guest: _Guest) -> tuple[str, ...]:
    return ("nsenter", f"--mount=/proc/{guest.init}/ns/mnt", "--", "/bin/sh", "-c")


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _all_of(init: int, number: signal.Signals) -> None:
    """Every process of a guest; those that are begun meanwhile too."""
    done: set[int] = set()
    while fresh := set(_tree_of(init)) - done:
        _signal(fresh, number)
        done |= fresh


def _tree_of(pid: int) -> list[int]:
    # What has lost its parent has the first process of the namespace for one.
    return [pid, *(below for child in _children(pid) for below in _tree_of(child))]


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
