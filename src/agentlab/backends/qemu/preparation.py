"""Booting a machine once, so that others need not."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.interface import Command, Unavailable
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control
from agentlab.backends.qemu import disk, memory_file
from agentlab.backends.qemu.birth import Blueprint, give_birth
from agentlab.backends.qemu.host import Host, limits
from agentlab.backends.qemu.image import BootImage
from agentlab.backends.qemu.prepared import BASE, BLANK, DISK, INITRD, KERNEL, MEMORY, STATE, Kind, Prepared, Shelf
from agentlab.backends.qemu.process import Confinement, end, living
from agentlab.backends.qemu.vm import Vm
from agentlab.base.clock import Clock, sleep
from agentlab.base.entropy import Entropy
from agentlab.base.files import exclusive_lock, free_bytes, make_directory, remove_tree
from agentlab.base.tasks import in_thread, to_the_end

log = logging.getLogger(__name__)

BOOT_S_MAX = 300.0  # emulated, on a loaded machine
SETTLE_S_MAX = 90.0
FREE_BYTES_MIN = 1 << 30  # beside a file as large as the memory
_LET_GO_S = 0.2
_LOCK_POLL_S = 0.2
_KERNEL_BODY_BYTES = 4096
_NOTHING = b"\0" * 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where machines are booted to be saved, and as whom."""

    shelf: Shelf
    folder: Path  # of the shelf
    rooms: Path  # for the sockets of the booting machine
    uid: int
    cgroup_parent: str
    title: str  # what its process bears; the installation is in it
    clock: Clock
    entropy: Entropy
    boot_s_max: float = BOOT_S_MAX


async def provide(shop: Workshop, host: Host, kind: Kind, image: BootImage) -> Prepared:
    """Saved memory of this kind: what is there, or made now, which takes as long as a boot and some seconds.

    Several callers, of several processes, wait for one.  Raises Unavailable: no space, or a guest that does not come
    up, with the last of its console.
    """
    if (found := shop.shelf.find(kind)) is not None:
        return found
    async with AsyncExitStack() as held:
        lock = shop.folder / f".{kind.key[0]}.lock"  # few files, and kinds seldom wait for each other
        while True:
            try:
                held.enter_context(exclusive_lock(lock))
                break
            except BlockingIOError:
                await sleep(_LOCK_POLL_S)
        if (found := shop.shelf.find(kind)) is not None:
            return found
        return await _made(shop, host, kind, image)


async def _made(shop: Workshop, host: Host, kind: Kind, image: BootImage) -> Prepared:
    _look_for_space(shop.folder, kind)
    began = shop.clock.monotonic()
    name = shop.entropy.word(8)
    scratch = shop.folder / f".{shop.shelf.place(kind).name}.new"
    room = shop.rooms / name
    group = f"{shop.cgroup_parent}/prepare-{name}"
    remove_tree(scratch)
    make_directory(scratch)
    make_directory(room)
    memory = memory_file.blank(kind.shape.memory_bytes)
    try:
        groups = host.cgroups.make(group, limits(kind.shape, kind.shape.cpus))
        await disk.overlay(scratch / DISK, image.disk, kind.disk_bytes)
        disk.give(scratch / DISK, shop.uid)
        plan = Blueprint(
            title=f"{shop.title}:{name}",
            shape=kind.shape,
            room=room,
            confinement=Confinement(uid=shop.uid, groups=groups),
            command_line=image.command_line,
            kernel=image.kernel,
            initrd=image.initrd,
            disk=scratch / DISK,
            below=(image.disk,),
            memory=memory,
            tap=f"alt{name}" if kind.shape.network else None,
            shared=True,
            program=host.program,
        )
        await _booted_and_saved(shop, plan, scratch / STATE)
        prepared = await _kept(shop, kind, image, memory, scratch)
    except OSError as error:
        raise Unavailable(
            f"memory could not be prepared: {error.strerror or error} ({error.filename})",
            "Try again; if the disk is full, free space on it.",
        ) from error
    finally:
        os.close(memory)
        await to_the_end(_cleared(host, group, shop.cgroup_parent, room, scratch))
    log.info("memory prepared", extra={"key": prepared.folder.name, "took_s": round(shop.clock.monotonic() - began, 1)})
    return prepared


async def _cleared(host: Host, group: str, parent: str, room: Path, scratch: Path) -> None:
    await host.cgroups.remove(group)
    host.cgroups.remove_if_empty(parent)
    remove_tree(room)
    remove_tree(scratch)


async def _booted_and_saved(shop: Workshop, plan: Blueprint, state: Path) -> None:
    begun = give_birth(plan).begun
    vm = Vm(plan.room, plan.title, begun.process, relay=_refuse, entropy=shop.entropy, child=begun.child)
    try:
        monitor = await vm.monitor()
        await monitor.go()
        control = await vm.control(shop.boot_s_max)
        await _settled(control)
        await control.grow()
        await control.prepare()
        await control.close()
        await sleep(_LET_GO_S)  # the guest hears that nobody listens any more
        await monitor.halt()
        descriptor = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await monitor.save(descriptor)
        finally:
            os.close(descriptor)
        await vm.end()
    finally:
        await to_the_end(_ended(vm))


async def _ended(vm: Vm) -> None:
    await vm.kill()
    await vm.close()


async def _settled(control: Control) -> None:
    """Wait until the system has come up, so that no clone goes on with it."""
    try:
        async with asyncio.timeout(SETTLE_S_MAX):
            execution = await control.execute(Command(argv=("systemctl", "is-system-running", "--wait")))
            try:
                await execution.wait()
            finally:
                await execution.end()
    except TimeoutError:
        log.warning("the guest's system does not settle", extra={"waited_s": SETTLE_S_MAX})


async def _kept(shop: Workshop, kind: Kind, image: BootImage, memory: int, scratch: Path) -> Prepared:
    await in_thread(lambda: memory_file.seal(memory))
    await in_thread(lambda: memory_file.keep(memory, scratch / MEMORY))
    disk.share(image.disk, scratch / BASE)
    await disk.overlay(scratch / BLANK, shop.shelf.place(kind) / DISK, kind.disk_bytes, exists=False)
    # A machine that does not boot needs a kernel only for the shape of it: this way it does not read 15 MB.
    (scratch / KERNEL).write_bytes(_head(image.kernel))
    (scratch / INITRD).write_bytes(_NOTHING)
    prepared = await in_thread(lambda: shop.shelf.admit(scratch, kind))
    shop.shelf.hold(prepared, os.dup(memory))
    return prepared


def _head(kernel: Path) -> bytes:
    """The part of a kernel's file that QEMU looks at, and a little of what follows.

    Source: the x86 boot protocol, field setup_sects at 0x1f1.
    """
    with kernel.open("rb") as file:
        start = file.read(0x200)
        file.seek(0)
        return file.read(((start[0x1F1] or 4) + 1) * 512 + _KERNEL_BODY_BYTES)


def _look_for_space(folder: Path, kind: Kind) -> None:
    free, needed = free_bytes(folder), kind.shape.memory_bytes + FREE_BYTES_MIN
    if free < needed:
        raise Unavailable(
            f"no space for memory files: {free >> 20} MiB are free in {folder}, {needed >> 20} MiB are needed",
            "Free space there, or set backends.qemu.restore to false to boot each VM anew.",
        )


async def _refuse(stream: GuestStream) -> None:
    stream.close()


async def sweep(shop: Workshop, host: Host) -> None:
    """Remove machines whose saving was cut short, and memory that no machine can use any more.

    Raises OSError, NotOurs, Unavailable.
    """
    make_directory(shop.rooms)
    make_directory(shop.folder)
    for room in shop.rooms.iterdir():
        if (found := living(room)) is not None:
            await end(found, f"{shop.title}:{room.name}")
        await host.cgroups.remove(f"{shop.cgroup_parent}/prepare-{room.name}")
        remove_tree(room)
    await in_thread(lambda: shop.shelf.prune(host.version))
