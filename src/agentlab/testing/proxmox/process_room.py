"""The namespaces that a process guest lives in: its root, its processes, and a look inside from without."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.base import process
from agentlab.base.process import run

UP_S_MAX = 20.0
_UNSHARE = ("--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--")
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
# Status 5: the guest program looked for an invitation in vain; a machine would go on.
_FURNISH = """
set -e
root=$1 lower=$2 disk=$3 program=$4 serial=$5 name=$6
mount -t ext4 -o noinit_itable "$disk" "$root"
mkdir -p "$root/upper" "$root/work" "$root/whole"
mount -t overlay guest -o "lowerdir=$lower,upperdir=$root/upper,workdir=$root/work" "$root/whole"
cd "$root/whole"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
for each in null zero full random urandom tty; do : > dev/$each; mount --bind /dev/$each dev/$each; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o size=256m shm dev/shm
mount -t tmpfs -o mode=755,size=256m run run
mount -t tmpfs -o mode=755 sys sys
mkdir sys/block sys/disk
mount --bind "$root" sys/disk
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
# A disk, as the guest program looks for it.
_APPEAR = 'mkdir -p /sys/block/$1 && echo "$2" > /sys/block/$1/serial && mknod /dev/$1 b $3 $4'
_VANISH = '! grep -q "^/dev/$1 " /proc/mounts && rm -rf /sys/block/$1 /dev/$1'
_FREEZE, _THAW = "fsfreeze --freeze /sys/disk", "fsfreeze --unfreeze /sys/disk"


class NotFurnished(Exception):
    """The namespaces could not be made; the text tells why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """`init` is the first process inside, as seen from here; all others end with it."""

    init: int
    _process: asyncio.subprocess.Process

    @classmethod
    async def furnished(cls, given: Sequence[Path | str], log: Path, *, walled: bool) -> Room:
        """One whose guest program has begun, or is about to.

        `given`: where to put the root together, what lies below it, the disk's device, the guest program, the file with
        what its firmware says, its name.  `walled`: with a network of its own, which leads nowhere.  Raises
        NotFurnished.
        """
        net = ["--net"] if walled else []
        with log.open("ab") as complaints:
            child = await process.spawn(
                ["unshare", *net, *_UNSHARE, "sh", "-c", _FURNISH, "guest", *map(str, given)],
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
            raise NotFurnished(f"its namespaces could not be furnished: {log.read_text()[-500:]}")
        return cls(init=init[0], _process=child)

    async def ended(self) -> None:
        """Wait until all of it has gone."""
        await self._process.wait()

    async def clear(self) -> None:
        """End all of it."""
        _signal([self.init], signal.SIGKILL)
        await self.ended()

    def ask_to_end(self) -> None:
        """Let the guest program end, and all with it."""
        _signal(_children(self.init), signal.SIGTERM)

    def halt(self) -> None:
        """Stop every process, those too that are begun meanwhile."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let every process go on."""
        self._signal_all(signal.SIGCONT)

    async def bring_in(self, key: str, serial: str, device: Path) -> None:
        """Let a disk appear.  Raises ProgramFailed, OSError."""
        number = device.stat().st_rdev
        await self._run(_APPEAR, key, serial, str(os.major(number)), str(os.minor(number)))

    async def take_out(self, key: str) -> None:
        """Let it vanish.  Raises ProgramFailed while it is mounted."""
        await self._run(_VANISH, key)

    async def freeze(self) -> None:
        """Nothing more is written to its first disk; what was is in the image.  Raises ProgramFailed."""
        await self._run(_FREEZE)

    async def thaw(self) -> None:
        """Writing goes on."""
        await self._run(_THAW)

    async def _run(self, script: str, *arguments: str) -> None:
        await run(["nsenter", f"--mount=/proc/{self.init}/ns/mnt", "--", "/bin/sh", "-c", script, "room", *arguments])

    def _signal_all(self, number: signal.Signals) -> None:
        done: set[int] = set()
        while fresh := set(_tree_of(self.init)) - done:
            _signal(fresh, number)
            done |= fresh


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _tree_of(pid: int) -> list[int]:
    # What has lost its parent has the first process of the namespace for one.
    return [pid, *(below for child in _children(pid) for below in _tree_of(child))]


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
