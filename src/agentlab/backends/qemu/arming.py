"""Bringing a VM to the moment before its guest's first, or next, instruction."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from agentlab.backends.first_process import boot_id
from agentlab.backends.interface import Refused
from agentlab.backends.qemu import disk, layers, memory_file, origin
from agentlab.backends.qemu.birth import Blueprint, Born, give_birth
from agentlab.backends.qemu.command import Shape
from agentlab.backends.qemu.fleet import Fleet
from agentlab.backends.qemu.host import Host, limits, shape_of
from agentlab.backends.qemu.identity import note_role, role_of
from agentlab.backends.qemu.layout import Layout, read_note, title, write_note
from agentlab.backends.qemu.origin import Origin
from agentlab.backends.qemu.prepared import INITRD, KERNEL, STATE, Prepared, Shelf
from agentlab.backends.qemu.process import Confinement
from agentlab.backends.qemu.spares import Spare
from agentlab.backends.qemu.tap import index_of, rename
from agentlab.backends.qemu.vm import CONSOLE, EXIT
from agentlab.base.clock import Clock
from agentlab.base.files import make_directory, remove_tree
from agentlab.base.tasks import to_the_end
from agentlab.model.network import NetworkMode
from agentlab.model.sandbox import SandboxSpec

LAST_USE = "last-use.json"  # beside the disk: under which boot of the host it was last in use


@dataclass(frozen=True, slots=True, kw_only=True)
class Armory:
    """What is needed of this host."""

    layout: Layout
    host: Host
    shelf: Shelf
    uid: int
    clock: Clock


async def hold(armory: Armory, fleet: Fleet, spec: SandboxSpec, stands_on: Origin, prepared: Prepared | None) -> None:
    """Begin the sandbox's process, with saved memory if there is some, and let it wait.

    If anything fails, nothing of it stays.
    """
    sandbox, layout = spec.mark.sandbox, armory.layout
    if spec.network is not NetworkMode.OFF and spec.port is None:
        raise Refused(f"{sandbox} has no place on the network", "See `agentlab doctor`.")
    room = make_directory(layout.room(sandbox))
    await _sound(layout.home(sandbox), layout.disk(sandbox))
    note_use(layout.home(sandbox), _shape(armory, spec))
    disk.give(layout.disk(sandbox), armory.uid)
    try:
        born = await _born(armory, spec, stands_on, prepared)
        vm = fleet.welcome(spec.mark, born.begun)
        monitor = await vm.monitor()
        if born.state is not None:
            await monitor.load(born.state)
        own = prepared is not None and prepared.own
        note_role(room, role_of(spec, restored=prepared is not None, tap=born.tap, boot=boot_id(), own=own))
    except BaseException:
        await to_the_end(_abandoned(armory, fleet, spec))
        raise


async def take_over(armory: Armory, fleet: Fleet, spec: SandboxSpec, spare: Spare) -> None:
    """Let a VM that is held ready be this sandbox, whose disk nobody has used.  Raises OSError."""
    mark, layout, host = spec.mark, armory.layout, armory.host
    shape = _shape(armory, spec)
    note_use(layout.home(mark.sandbox), shape)
    host.cgroups.make(spare.bearing.group, limits(shape, spec.resources.cpus))
    index = None
    if spare.tap is not None and spec.port is not None:
        rename(spare.tap, spec.port.link)
        index = index_of(spec.port.link)
    note_role(spare.room, role_of(spec, restored=True, tap=index, boot=boot_id()))
    remove_tree(layout.room(mark.sandbox))
    # A crash before the next line leaves a disk that nobody has written but the VM, which is then ended.
    spare.disk.replace(layout.disk(mark.sandbox))
    layout.ran(mark.sandbox).touch()
    spare.room.rename(layout.room(mark.sandbox))
    spare.disk.parent.rmdir()
    fleet.adopt(mark, spare.vm)


async def _born(armory: Armory, spec: SandboxSpec, stands_on: Origin, prepared: Prepared | None) -> Born:
    sandbox, layout = spec.mark.sandbox, armory.layout
    home, room = layout.home(sandbox), layout.room(sandbox)
    shape = _shape(armory, spec)
    groups = armory.host.cgroups.make(layout.cgroup(sandbox), limits(shape, spec.resources.cpus))
    # A machine that boots has memory of its own from the beginning, and no need of a second page for each of it.
    memory = memory_file.blank(shape.memory_bytes) if prepared is None else await armory.shelf.memory(prepared)
    try:
        return give_birth(
            Blueprint(
                title=title(spec.mark),
                shape=shape,
                room=room,
                confinement=Confinement(uid=armory.uid, groups=groups),
                command_line=stands_on.command_line,
                kernel=home / origin.KERNEL if prepared is None else prepared.file(KERNEL),
                initrd=home / origin.INITRD if prepared is None else prepared.file(INITRD),
                disk=layout.disk(sandbox),
                below=layers.below(home),
                memory=memory,
                tap=None if spec.port is None else spec.port.link,
                state=None if prepared is None else prepared.file(STATE),
                bare=prepared is not None and prepared.bare,
                shared=prepared is None,
                program=armory.host.program,
            )
        )
    finally:
        if prepared is None:
            os.close(memory)


async def _abandoned(armory: Armory, fleet: Fleet, spec: SandboxSpec) -> None:
    if (vm := fleet.find(spec.mark)) is not None:
        await vm.kill()
    await fleet.forget(spec.mark.sandbox)
    await armory.host.cgroups.remove(armory.layout.bearing(spec.mark).group)
    clear(armory.layout.room(spec.mark.sandbox), remember=False)


async def _sound(home: Path, image: Path) -> None:
    """Repair a disk that was in use when the host stopped."""
    noted = read_note(home / LAST_USE)
    if noted is not None and noted.get("boot") != boot_id():
        await disk.repair(image)


def note_use(home: Path, shape: Shape) -> None:
    """Note that the disk is in use now, and by what machine."""
    write_note(home / LAST_USE, {"boot": boot_id(), "shape": asdict(shape)})


def noted_shape(home: Path) -> Shape | None:
    """The machine that used the disk last; None if none has."""
    noted = read_note(home / LAST_USE)
    return None if noted is None or "shape" not in noted else Shape(**noted["shape"])


def _shape(armory: Armory, spec: SandboxSpec) -> Shape:
    return shape_of(spec.resources, armory.host.accelerator, network=spec.network is not NetworkMode.OFF)


def clear(room: Path, *, remember: bool) -> None:
    """Forget what was noted of a process that has ended; with `remember`, all but why it ended.  Raises OSError."""
    if not remember:
        return remove_tree(room)
    for each in room.iterdir() if room.is_dir() else ():
        if each.name not in (EXIT, CONSOLE):
            each.unlink()
    return None
