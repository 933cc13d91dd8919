"""The command line of QEMU, rendered purely from values.

Every device has an id and an address that never change: saved memory fits a machine with exactly the same devices in
the same places, and only that.  QEMU opens nothing by its path: all files, sockets and taps are inherited, so that a
VM's process needs no folder of ours and reaches no other sandbox's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MACHINE = "q35"
PROGRAM = "qemu-system-x86_64"
CONTROL_PORT = "org.agentlab.control"
CONSOLE_BYTES = 64 << 10
HOT_PLUG_PORTS = 4  # for workspace disks
PORT_NAME = "port{}"
CONTROL_CHARDEV, CONSOLE_CHARDEV, MONITOR_CHARDEV, ROOT_NODE, NETDEV = "control", "console", "monitor", "root", "net0"
ROOT_DEVICE, LOWEST_NODE = "disk0", "below0"
WRITING: Mapping[str, Any] = {
    "discard": "unmap",
    "detect-zeroes": "unmap",
    # What the guest has written is with the host's kernel, and outlives QEMU and the daemon.  It is not forced to the
    # host's disk at each flush: a sandbox that is lost when the host loses power is made anew.
    "cache": {"direct": False, "no-flush": True},
}
# The card's own address until the guest gives itself the port's: nothing passes the bridge under it.
NEUTRAL_MAC = "02:00:00:00:00:01"
WALL = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_HOT_PLUG_SLOT = 8
# The kernel would copy and clear memory with `rep movsb`, which is emulated byte by byte: 70 instead of 300 MB/s over
# virtio-serial, and 9 instead of 6.6 s of CPU for a boot.
_EMULATED_MODEL = "max,-erms,-fsrm"
# Translated code is found by its virtual address: where that is random, every process has the C library translated
# anew, which makes starting one three times as slow (30 instead of 9 ms) and takes 1.4 MiB of QEMU's memory each time.
_EMULATED = "norandmaps"
_EMULATION_CACHE_MIB = (64, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides the devices of a machine, and with them which saved memory fits."""

    accelerator: str  # kvm or tcg
    memory_bytes: int
    cpus: int
    network: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Numbers of the descriptors that QEMU inherits."""

    disk: int  # the overlay that it writes
    below: tuple[int, ...]  # read-only disks that the overlay stands on, the lowest first
    memory: int
    kernel: int
    initrd: int
    control: int  # listening sockets
    monitor: int
    tap: int | None

    @property
    def all(self) -> tuple[int, ...]:
        """To be passed on when the program is started."""
        taps = () if self.tap is None else (self.tap,)
        return (self.disk, *self.below, self.memory, self.kernel, self.initrd, self.control, self.monitor, *taps)


def emulation_cache_bytes(shape: Shape) -> int:
    """How much memory translated code may take beside the guest's own."""
    if shape.accelerator != "tcg":
        return 0
    least, most = _EMULATION_CACHE_MIB
    return min(most, max(least, shape.memory_bytes >> 23)) << 20


def command(
    title: str,
    shape: Shape,
    files: Files,
    command_line: str,
    *,
    shared: bool,
    incoming: bool,
    bare: bool = False,
    program: str = PROGRAM,
) -> list[str]:
    """Start a machine that does not run yet.

    `shared`: its memory is written into the file, to be saved.  Otherwise the file is only read, and what the guest
    writes is its own.  `incoming`: it waits for saved state; otherwise it begins with a boot.  `bare`: that state is
    the devices' alone, and does not tell the settings under which it was saved.
    """
    return [
        program,
        *("-name", f"guest={title}", "-no-user-config", "-nodefaults", "-display", "none", "-S"),
        *("-sandbox", WALL),
        *_processor(shape),
        *_memory(shape, files, shared=shared),
        *("-rtc", "base=utc,clock=host"),
        *("-kernel", _path(files.kernel), "-initrd", _path(files.initrd)),
        *("-append", command_line if shape.accelerator == "kvm" else f"{command_line} {_EMULATED}"),
        *_disk(files),
        *_console(files),
        *("-object", "rng-random,id=random,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,id=rng0,rng=random,addr=4"),
        *(_card(files.tap) if files.tap is not None else ()),
        *_ports(),
        # Whatever way the guest ends, the process stays until the reason has been read.
        *("-action", "reboot=shutdown,shutdown=pause,panic=shutdown"),
        *(("-incoming", "defer") if incoming else ()),
        *(("-global", "migration.send-configuration=off") if bare else ()),
    ]


def fingerprint(shape: Shape, command_line: str) -> list[str]:
    """The command line with neutral places: equal for two machines exactly if saved memory of one fits the other."""
    files = Files(
        disk=0, below=(0,), memory=0, kernel=0, initrd=0, control=0, monitor=0, tap=0 if shape.network else None
    )
    return command("", shape, files, command_line, shared=True, incoming=False)


def _processor(shape: Shape) -> Sequence[str]:
    if shape.accelerator == "kvm":
        accelerator, model = "kvm", "host"
    else:
        accelerator, model = f"tcg,tb-size={emulation_cache_bytes(shape) >> 20}", _EMULATED_MODEL
    return ("-M", f"{MACHINE},memory-backend=memory", "-accel", accelerator, "-cpu", model, "-smp", str(shape.cpus))


def _memory(shape: Shape, files: Files, *, shared: bool) -> Sequence[str]:
    backend = {
        "qom-type": "memory-backend-file",
        "id": "memory",
        "mem-path": _path(files.memory),
        "size": shape.memory_bytes,
        "share": shared,
    }
    return ("-m", str(shape.memory_bytes >> 20), "-object", json.dumps(backend))


def _disk(files: Files) -> Sequence[str]:
    arguments: list[str] = []
    backing: str | None = None
    for number, descriptor in enumerate(files.below):
        # Locks would need the right to write; nobody writes these.
        file = {"driver": "file", "filename": _path(descriptor), "read-only": True, "locking": "off"}
        node = {"driver": "qcow2", "node-name": f"below{number}", "read-only": True, "file": file, "backing": backing}
        arguments += ("-blockdev", json.dumps(node))
        backing = f"below{number}"
    root: Mapping[str, Any] = {
        "driver": "qcow2",
        "node-name": ROOT_NODE,
        "file": {"driver": "file", "filename": _path(files.disk), "discard": "unmap"},
        "backing": backing,
        **WRITING,
    }
    device = f"virtio-blk-pci,id={ROOT_DEVICE},drive={ROOT_NODE},addr=2"
    return (*arguments, "-blockdev", json.dumps(root), "-device", device)


def _console(files: Files) -> Sequence[str]:
    return (
        *("-chardev", f"ringbuf,id={CONSOLE_CHARDEV},size={CONSOLE_BYTES}", "-serial", f"chardev:{CONSOLE_CHARDEV}"),
        *("-device", "virtio-serial-pci,id=serial0,addr=3,max_ports=2"),
        *("-chardev", f"socket,id={CONTROL_CHARDEV},fd={files.control},server=on,wait=off"),
        *("-device", f"virtserialport,id=control0,bus=serial0.0,nr=1,chardev={CONTROL_CHARDEV},name={CONTROL_PORT}"),
        *("-chardev", f"socket,id={MONITOR_CHARDEV},fd={files.monitor},server=on,wait=off"),
        *("-mon", f"chardev={MONITOR_CHARDEV},mode=control"),
    )


def _card(tap: int) -> Sequence[str]:
    device = f"virtio-net-pci,id=nic0,netdev={NETDEV},addr=5,mac={NEUTRAL_MAC},rombar=0"
    return ("-netdev", f"tap,id={NETDEV},fd={tap},vhost=off", "-device", device)


def _ports() -> Sequence[str]:
    return [
        word
        for number in range(HOT_PLUG_PORTS)
        for word in (
            "-device",
            f"pcie-root-port,id={PORT_NAME.format(number)},chassis={number + 1},addr={_HOT_PLUG_SLOT + number}",
        )
    ]


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
