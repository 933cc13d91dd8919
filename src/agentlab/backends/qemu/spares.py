"""A VM held ready for the next sandbox of the kind last asked for.

It is restored, its guest program becomes somebody once, runs a command, and is then held, its card connected to
nothing.  What was emulated once goes ten times faster the second time; the sandbox that takes it over becomes itself
like every other, random generator first.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from agentlab.backends.interface import BackendError, Command
from agentlab.backends.link.control import Control, Identity, Nic
from agentlab.backends.qemu import disk
from agentlab.backends.qemu.birth import Blueprint, give_birth
from agentlab.backends.qemu.command import NEUTRAL_MAC
from agentlab.backends.qemu.host import Host, limits
from agentlab.backends.qemu.layout import Bearing, Layout, note_bearing
from agentlab.backends.qemu.prepared import BASE, BLANK, DISK, INITRD, KERNEL, STATE, Kind, Prepared, Shelf
from agentlab.backends.qemu.process import Confinement, end, living
from agentlab.backends.qemu.vm import Relay, Vm
from agentlab.backends.translation import translated
from agentlab.base.clock import Clock, sleep
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory, remove_tree
from agentlab.base.tasks import TaskScope, in_thread, to_the_end

log = logging.getLogger(__name__)

REFILL_AFTER_S = 1.0  # without a new sandbox, which needs the processors more
LINK_S_MAX = 60.0
_REHEARSALS = (("true",), ("sh", "-c", "true"))
_DISK = "disk.qcow2"
_UIDS = range(1, 65000)  # within the range of slot 0, where no sandbox has them
_NOWHERE = Nic(
    mac=NEUTRAL_MAC, address=IPv4Address("169.254.1.2"), prefix_length=30, gateway=IPv4Address("169.254.1.1"), mtu=1500
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The kind of VM to hold ready, and what it is made from."""

    host: Host
    kind: Kind
    prepared: Prepared
    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """One that is ready.  Whoever claims it owns it."""

    key: str
    vm: Vm
    room: Path
    disk: Path
    tap: str | None
    bearing: Bearing


class Spares:
    """At most `count` of them, 0 or 1."""

    def __init__(
        self, layout: Layout, shelf: Shelf, relay: Relay, clock: Clock, entropy: Entropy, *, uid_first: int, count: int
    ) -> None:
        self._layout, self._shelf, self._relay = layout, shelf, relay
        self._clock, self._entropy = clock, entropy
        self._uid_first, self._count = uid_first, count
        self._number = 0
        self._plan: Plan | None = None
        self._asked_at = 0.0
        self._ready: Spare | None = None
        self._scope = TaskScope("spares")
        self._filling: asyncio.Task[None] | None = None

    def want(self, plan: Plan) -> None:
        """A sandbox of this kind was just asked for: hold one ready for the next, as soon as there is quiet."""
        if self._count == 0:
            return
        self._plan, self._asked_at = plan, self._clock.monotonic()
        if self._filling is None or self._filling.done():
            self._filling = self._scope.start(self._fill(), "fill")

    def claim(self, key: str) -> Spare | None:
        """The one that is ready, if it is of this kind."""
        found = self._ready
        if found is None or found.key != key or not found.vm.lives:
            return None
        self._ready = None
        return found

    async def sweep(self, host: Host) -> None:
        """Remove what an earlier daemon held ready.  Raises OSError, BackendError."""
        for room in make_directory(self._layout.spare_rooms).iterdir():
            if (found := living(room)) is not None:
                await end(found, self._title(room.name))
            await host.cgroups.remove(self._group(room.name))
            remove_tree(room)
        remove_tree(self._layout.spare_disks)
        make_directory(self._layout.spare_disks)

    async def discard(self, host: Host, spare: Spare) -> None:
        """Remove one, or what was taken over of it."""
        await spare.vm.kill()
        await spare.vm.close()
        await host.cgroups.remove(spare.bearing.group)
        await in_thread(lambda: remove_tree(spare.room))
        await in_thread(lambda: remove_tree(spare.disk.parent))

    async def close(self) -> None:
        """Remove what is held ready; nothing stays."""
        await self._scope.close()
        if self._ready is not None and self._plan is not None:
            spare, self._ready = self._ready, None
            await self.discard(self._plan.host, spare)

    async def _fill(self) -> None:
        while (wait_s := self._asked_at + REFILL_AFTER_S - self._clock.monotonic()) > 0:
            await sleep(wait_s)
        plan, old = self._plan, self._ready
        assert plan is not None
        if old is not None and old.key == plan.kind.key and old.vm.lives:
            return
        try:
            async with translated("spare"):
                if old is not None:
                    self._ready = None
                    await to_the_end(self.discard(plan.host, old))
                self._ready = await self._made(plan)
        except BackendError as error:
            log.warning("no VM is held ready", extra={"cause": error.cause})

    async def _made(self, plan: Plan) -> Spare:
        name = self._entropy.word(8)
        room, folder = self._layout.spare_rooms / name, self._layout.spare_disks / name
        self._number = (self._number + 1) % len(_UIDS)
        uid = self._uid_first + _UIDS[self._number]
        bearing = Bearing(title=self._title(name), group=self._group(name))
        make_directory(room)
        note_bearing(room, bearing)
        disk.copy(plan.prepared.file(BLANK), make_directory(folder) / _DISK, uid)
        shape = plan.kind.shape
        memory = await self._shelf.memory(plan.prepared)
        tap = f"als{name}" if shape.network else None
        groups = plan.host.cgroups.make(bearing.group, limits(shape, shape.cpus))
        born = give_birth(
            Blueprint(
                title=bearing.title,
                shape=shape,
                room=room,
                confinement=Confinement(uid=uid, groups=groups),
                command_line=plan.command_line,
                kernel=plan.prepared.file(KERNEL),
                initrd=plan.prepared.file(INITRD),
                disk=folder / _DISK,
                below=(plan.prepared.file(BASE), plan.prepared.file(DISK)),
                memory=memory,
                tap=tap,
                state=plan.prepared.file(STATE),
                program=plan.host.program,
            )
        )
        vm = Vm(
            room, bearing.title, born.begun.process, relay=self._relay, entropy=self._entropy, child=born.begun.child
        )
        spare = Spare(key=plan.kind.key, vm=vm, room=room, disk=folder / _DISK, tap=tap, bearing=bearing)
        try:
            assert born.state is not None
            monitor = await vm.monitor()
            await monitor.load(born.state)
            await monitor.go()
            await self._rehearsed(await vm.control(LINK_S_MAX), network=shape.network)
            await monitor.halt()
        except BaseException:
            await to_the_end(self.discard(plan.host, spare))
            raise
        return spare

    async def _rehearsed(self, control: Control, *, network: bool) -> None:
        rehearsal = Identity(
            name="spare",
            entropy=bytes.fromhex(self._entropy.token(64)),
            clock_ns=int(self._clock.now() * 1e9),
            machine_id=self._entropy.token(16),
            hostname="spare",
            nic=_NOWHERE if network else None,
            nameserver=str(_NOWHERE.gateway) if network else None,
            secrets_bytes=1 << 20,
        )
        for _ in range(2):
            await control.identify(rehearsal)
        for argv in _REHEARSALS * 2:
            execution = await control.execute(Command(argv=argv))
            await execution.close_input()
            await execution.wait()
            await execution.end()

    def _title(self, name: str) -> str:
        return f"agentlab:{self._layout.installation}:spare:{name}"

    def _group(self, name: str) -> str:
        return f"{self._layout.cgroup_parent}/spare-{name}"
