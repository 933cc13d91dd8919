"""QEMU's command line for a VM of the simulated cluster: firmware, disks, cards, channels.  Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentlab.testing.proxmox.guests import GuestDisk, GuestMachine

PROGRAM = "qemu-system-x86_64"
HOT_BUSES = ("virtio", "scsi")
_SMBIOS = ("uuid", "manufacturer", "product", "version", "serial", "sku", "family")


def command(machine: GuestMachine, folder: Path, monitor: int, taps: Mapping[str, int]) -> list[str]:
    """`monitor`: a listening socket's descriptor; `taps`: those of the cards, by key.

    In `folder` the guest's console is written to `console`, and its agent's channel is the socket `agent`.
    """
    return [
        *(PROGRAM, "-name", machine.name, "-M", "pc", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-accel", "tcg,tb-size=128", "-cpu", "max,-erms,-fsrm"),
        *("-smp", str(machine.cores), "-m", f"{machine.memory_bytes >> 20}M"),
        *_smbios(machine.smbios),
        *("-chardev", f"socket,id=monitor,fd={monitor},server=on,wait=off", "-mon", "chardev=monitor,mode=control"),
        *("-device", "virtio-scsi-pci,id=scsihw0"),
        *_disks(machine.disks),
        *_nics(machine, taps),
        *(_agent(folder) if machine.agent else ()),
        *("-device", "virtio-rng-pci", "-serial", f"file:{folder}/console"),
    ]


def block_node(disk: GuestDisk) -> dict[str, Any]:
    """The image of a disk, as QEMU is told to open it: without its locks, as Proxmox VE does."""
    file = {"driver": "file", "filename": str(disk.path), "locking": "off"}
    return {
        "driver": disk.format,
        "node-name": node_name(disk.key),
        "file": file,
        "discard": "unmap",
        "cache": {"no-flush": True},
        "read-only": disk.cdrom,
    }


def node_name(key: str) -> str:
    """What QEMU calls the image of a drive."""
    return f"image-{key}"


def device(disk: GuestDisk, boot_index: int | None = None) -> dict[str, Any]:
    """The disk as the guest sees it."""
    bus = disk.key.rstrip("0123456789")
    number = int(disk.key[len(bus) :])
    made: dict[str, Any] = {"id": disk.key, "drive": node_name(disk.key)}
    if disk.cdrom:
        made |= {"driver": "scsi-cd", "bus": "scsihw0.0", "lun": 64 + number}
    elif bus == "virtio":
        made |= {"driver": "virtio-blk-pci"}
    else:
        made |= {"driver": "scsi-hd", "bus": "scsihw0.0", "lun": number}
    if disk.serial:
        made["serial"] = disk.serial
    return made | ({} if boot_index is None else {"bootindex": boot_index})


def _disks(disks: Sequence[GuestDisk]) -> list[str]:
    words: list[str] = []
    for index, disk in enumerate(each for each in disks if each.path is not None):
        words += ["-blockdev", json.dumps(block_node(disk)), "-device", json.dumps(device(disk, index))]
    return words


def _smbios(values: Mapping[str, str]) -> list[str]:
    given = [f"{key}={values[key].replace(',', ',,')}" for key in _SMBIOS if values.get(key)]
    return ["-smbios", ",".join(["type=1", *given])] if given else []


def _nics(machine: GuestMachine, taps: Mapping[str, int]) -> list[str]:
    words: list[str] = []
    for nic in machine.nics:
        if nic.key in taps:
            words += ["-netdev", f"tap,id={nic.key},fd={taps[nic.key]},vhost=off"]
            words += ["-device", f"virtio-net-pci,netdev={nic.key},mac={nic.mac.lower()},id=card-{nic.key}"]
    return words


def _agent(folder: Path) -> list[str]:
    return [
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=qga0,path={folder}/agent,server=on,wait=off"),
        *("-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"),
    ]
