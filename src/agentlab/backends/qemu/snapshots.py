"""Snapshots of VMs: a layer below the disk, and memory that is copied while the machine is held for a moment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agentlab.backends.interface import BackendError, Gone, Refused, Unavailable
from agentlab.backends.qemu import blocks, kept, layers, memory_file, ram
from agentlab.backends.qemu.arming import noted_shape
from agentlab.backends.qemu.command import Shape
from agentlab.backends.qemu.ground import Ground
from agentlab.backends.qemu.kept import Kept, SavedBy
from agentlab.backends.qemu.layout import Layout, read_note, write_note
from agentlab.backends.qemu.observation import HELD
from agentlab.backends.qemu.origin import origin_of
from agentlab.backends.qemu.prepared import MEMORY, STATE, Prepared
from agentlab.backends.qemu.vm import FROZEN_S, Vm
from agentlab.backends.qemu.workspaces import VmWorkspaces
from agentlab.backends.translation import translated
from agentlab.base.files import free_bytes, remove_tree
from agentlab.base.tasks import in_thread, to_the_end
from agentlab.model.ids import SandboxId, is_name
from agentlab.model.sandbox import Mark, Observed, Power
from agentlab.model.snapshot import Snapshot

FREE_BYTES_MIN = 1 << 30  # beside the memory that is saved


class VmSnapshots:
    """See `Snapshots`.

    With a workspace disk, a sandbox has no snapshot with memory: whoever wakes up would write to that disk behind the
    back of whoever fell asleep.
    """

    def __init__(self, ground: Ground, workspaces: VmWorkspaces) -> None:
        self._ground = ground
        self._layout = ground.layout
        self._workspaces = workspaces

    async def take(self, mark: Mark, name: str, *, memory: bool) -> None:
        if not is_name(name):
            raise Refused(f"{name!r} cannot name a snapshot", "Use lower-case letters, digits and inner dashes.")
        async with self._of(mark, "snapshot") as seen:
            if kept.find(self._layout, mark.sandbox, name) is not None:
                return
            if memory and seen.power not in (Power.RUNNING, Power.PAUSED):
                raise Gone(f"{mark.sandbox} is {seen.power}", "Only a running or paused sandbox has memory to keep.")
            if memory and self._workspaces.plugs(mark):
                remedy = "Detach it first, or take a snapshot without memory."
                raise Refused("a sandbox with a workspace disk has no snapshots with memory", remedy)
            self._look_for_room(mark, memory=memory)
            await self._few_layers(mark, seen.power)
            scratch = kept.scratch(self._layout, mark.sandbox, name)
            try:
                await self._taken(mark, name, seen.power, scratch, memory=memory)
            finally:
                self._let_go(Prepared(scratch))  # if it has not become a snapshot
                remove_tree(scratch)

    async def list(self, mark: Mark) -> Sequence[Snapshot]:
        async with self._of(mark, "snapshots"):
            return [each.shown for each in kept.all_of(self._layout, mark.sandbox)]

    async def restore(self, mark: Mark, name: str) -> None:
        async with self._of(mark, "restore") as seen:
            if kept.find(self._layout, mark.sandbox, name) is None:
                raise Gone(f"{mark.sandbox} has no snapshot {name}", "See `agentlab sandbox snapshots`.")
            if seen.power is not Power.STOPPED:
                raise Refused(f"{mark.sandbox} is {seen.power}", "Stop it first.")
            await self._ended(mark)
            write_note(self._layout.restoring(mark.sandbox), {"snapshot": name})
            await settle(self._layout, mark.sandbox)

    async def remove(self, mark: Mark, name: str) -> None:
        layout = self._layout
        if not layout.verify(mark):
            return
        async with self._of(mark, "snapshot removal"):
            if is_name(name) and (found := kept.find(layout, mark.sandbox, name)) is not None:
                self._let_go(Prepared(found.folder))
                await in_thread(lambda: kept.forget(found))

    async def sweep(self, mark: Mark) -> None:
        """Finish what a crash interrupted.  Raises OSError, BackendError."""
        kept.sweep(self._layout, mark.sandbox)
        if (held := self._layout.room(mark.sandbox) / HELD).exists():
            if (vm := self._ground.fleet.find(mark)) is not None:
                await self._goes_on(vm)
            held.unlink(missing_ok=True)

    def awake(self, sandbox: SandboxId) -> None:
        """The memory that was to come back has come back.  Raises OSError."""
        folder = self._layout.waking(sandbox)
        if folder.exists():
            self._let_go(Prepared(folder))
            remove_tree(folder)

    def _let_go(self, memory: Prepared) -> None:
        with contextlib.suppress(FileNotFoundError):
            if kept.only_name(memory):
                self._ground.shelf.drop(memory)

    @asynccontextmanager
    async def _of(self, mark: Mark, call: str) -> AsyncIterator[Observed]:
        await self._ground.host()
        async with self._ground.lock(mark.sandbox), translated(call):
            seen = await self._ground.seen(mark)
            await settle(self._layout, mark.sandbox)
            if not self._layout.disk(mark.sandbox).exists():
                raise Gone(f"{mark.sandbox} has no disk", "Create it first.")
            yield seen

    def _look_for_room(self, mark: Mark, *, memory: bool) -> None:
        home = self._layout.home(mark.sandbox)
        needed = FREE_BYTES_MIN + (self._shape(mark).memory_bytes if memory else 0)
        if (free := free_bytes(home)) < needed:
            cause = f"no space for a snapshot: {free >> 20} MiB are free in {home}, {needed >> 20} MiB are needed"
            raise Unavailable(cause, "Remove snapshots, sandboxes or other files.")

    async def _few_layers(self, mark: Mark, power: Power) -> None:
        """Merge what a running machine's disk stands on, once that is too much; its snapshots keep their own."""
        home, vm = self._layout.home(mark.sandbox), self._ground.fleet.find(mark)
        if len(layers.below(home)) < layers.LAYERS_MAX:
            return
        if power is Power.STOPPED or vm is None:
            cause = f"the disk of {mark.sandbox} stands on LAYERS_MAX = {layers.LAYERS_MAX} layers"
            raise Refused(cause, "Start it: the layers are merged when a snapshot is taken while it runs.")
        await blocks.merge(await vm.monitor())
        layers.keep_lowest(home)

    def _shape(self, mark: Mark) -> Shape:
        if (found := noted_shape(self._layout.home(mark.sandbox))) is None:
            raise Unavailable(f"it is not known what machine {mark.sandbox} is", "Stop it and start it again.")
        return found

    async def _ended(self, mark: Mark) -> None:
        """End the process of a guest that has ended."""
        if (vm := self._ground.fleet.find(mark)) is not None:
            await vm.end()

    async def _taken(self, mark: Mark, name: str, power: Power, scratch: Path, *, memory: bool) -> None:
        layout, sandbox = self._layout, mark.sandbox
        disk_bytes, uid = origin_of(layout, sandbox).disk_bytes, layout.disk(sandbox).stat().st_uid
        ran = layout.ran(sandbox).exists()
        await layers.lay_next(layout.home(sandbox), disk_bytes, uid)
        if power is Power.STOPPED:
            await self._ended(mark)
            layers.push(layout.home(sandbox))
            taken_at = self._ground.clock.now()
        else:
            taken_at = await self._taken_of_living(mark, power, scratch, memory=memory)
        await in_thread(lambda: kept.fill(layout, sandbox, scratch))
        saved = kept.saved_by(await self._ground.host(), self._shape(mark)) if memory else None
        shown = Snapshot(name=name, memory=memory, bytes_count=_bytes_in(scratch), taken_at=taken_at)
        kept.admit(layout, Kept(folder=scratch, shown=shown, sandbox=sandbox, ran=ran, saved_by=saved))

    async def _taken_of_living(self, mark: Mark, power: Power, scratch: Path, *, memory: bool) -> float:
        vm = self._ground.fleet.find(mark)
        if vm is None:
            raise Gone(f"{mark.sandbox} has just ended", "Try again.")
        if memory:
            return await self._with_memory(mark, vm, power, scratch)
        if power is not Power.RUNNING:
            return await self._stacked(mark, vm)
        async with self._still(vm, [*self._workspaces.mounts(mark), "/"]):
            return await self._stacked(mark, vm)

    async def _stacked(self, mark: Mark, vm: Vm) -> float:
        """Let the machine write to a new layer; the moment up to which the one below has everything."""
        home = self._layout.home(mark.sandbox)
        monitor, taken_at = await vm.monitor(), self._ground.clock.now()
        layers.push(home)
        await to_the_end(blocks.stack(monitor, self._layout.disk(mark.sandbox)))
        return taken_at

    @asynccontextmanager
    async def _still(self, vm: Vm, paths: Sequence[str]) -> AsyncIterator[None]:
        """The guest's file systems written out and frozen.  Unavailable if they thawed too early."""
        control = await vm.control()
        frozen: list[str] = []
        try:
            for path in paths:
                await control.freeze(FROZEN_S, path)
                frozen.append(path)
            yield
        except BaseException:
            await to_the_end(_thawed(vm, frozen))
            raise
        for path in reversed(frozen):
            await control.thaw(path)

    async def _with_memory(self, mark: Mark, vm: Vm, power: Power, scratch: Path) -> float:
        """Disk and memory of one instant: all of it happens while no instruction of the guest is executed."""
        size, pid = self._shape(mark).memory_bytes, vm.process.pid
        target = memory_file.blank(size)
        try:
            found = await in_thread(lambda: ram.find(pid, size))
            if found.private:
                await in_thread(lambda: ram.copy_file(found, target))
            async with self._held(vm, running=power is Power.RUNNING):
                await _devices_saved(vm, scratch / STATE)
                copy = ram.copy_own if found.private else ram.copy_file
                await in_thread(lambda: copy(found, target))
                taken_at = await self._stacked(mark, vm)
            await in_thread(lambda: memory_file.seal(target))
            await in_thread(lambda: memory_file.keep(target, scratch / MEMORY))
            self._ground.shelf.hold(Prepared(scratch), os.dup(target))
        finally:
            os.close(target)
        return taken_at

    @asynccontextmanager
    async def _held(self, vm: Vm, *, running: bool) -> AsyncIterator[None]:
        """No instruction of the guest is executed inside; a daemon that dies there leaves a note of it."""
        if not running:
            yield
            return
        (vm.room / HELD).touch()
        try:
            await (await vm.monitor()).halt()
            yield
        finally:
            await to_the_end(self._goes_on(vm))
            (vm.room / HELD).unlink(missing_ok=True)

    async def _goes_on(self, vm: Vm) -> None:
        await (await vm.monitor()).go()
        with contextlib.suppress(BackendError):  # what the pause took is in its clock; it runs all the same
            await (await vm.control()).set_clock(int(self._ground.clock.now() * 1e9))


async def settle(layout: Layout, sandbox: SandboxId) -> None:
    """Finish a restore that was decided; quiet if there is none.  Raises OSError, ProgramFailed, ValueError."""
    note = layout.restoring(sandbox)
    if (decided := read_note(note)) is None:
        return
    found = kept.find(layout, sandbox, str(decided.get("snapshot")))
    if found is None:
        raise ValueError(f"the snapshot {decided.get('snapshot')}, which is being restored, has vanished")
    await kept.become(layout, sandbox, found, os.getuid())  # the disk is given to its user when it is armed
    note.unlink()


async def begin_as(layout: Layout, origin: Kept, mark: Mark, machine: SavedBy, uid: int) -> None:
    """Make the folder and the disk of a sandbox that begins as another's snapshot.

    Raises Refused if it is another machine than the memory's, OSError, ProgramFailed, ValueError.
    """
    kept.must_fit(origin, machine)
    if not layout.verify(mark):
        await in_thread(lambda: layout.write_mark(mark))
    await kept.become(layout, mark.sandbox, origin, uid)


async def _devices_saved(vm: Vm, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await (await vm.monitor()).save_devices(descriptor)
    finally:
        os.close(descriptor)


async def _thawed(vm: Vm, paths: Sequence[str]) -> None:
    for path in paths:
        with contextlib.suppress(BackendError):
            await (await vm.control()).thaw(path)


def _bytes_in(scratch: Path) -> int:
    """What only this snapshot occupies: the layer that was pushed for it, and its memory."""
    own = [layers.below(scratch)[-1], *(scratch / name for name in (MEMORY, STATE))]
    return sum(each.stat().st_blocks * 512 for each in own if each.exists())
