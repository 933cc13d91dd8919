"""QEMU on an image as a cluster runs it: firmware, SCSI disks, no port of ours, an invitation in the serial number."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

from agentlab.backends.link.control import Nic
from agentlab.base.process import ended, start
from agentlab.model.ids import SandboxId
from agentlab.templates.images import VmImage
from agentlab.testing.guest_home import GuestHome

MEMORY_MIB = 512
GROWTH_BYTES = 1 << 30
HELLO_S_MAX = 180.0
SANDBOX = SandboxId("sb-cluster2")
UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
MAC = "bc:24:11:22:33:44"
# QEMU's user network: the second address is the host's loopback interface, the third answers for names.
NIC = Nic(mac=MAC, address=IPv4Address("10.0.2.15"), prefix_length=24, gateway=IPv4Address("10.0.2.2"))
HOST, NAMESERVER = "10.0.2.2", "10.0.2.3"
AGENT_S_MAX = 60.0


@asynccontextmanager
async def cluster_vm(image: VmImage, folder: Path, home: GuestHome, *, disks: Sequence[str] = ()) -> AsyncIterator[int]:
    """Boot an image of the variant `firmware`, emulated, which is invited to `home`; yields QEMU's process id.

    `folder` has what the machine printed in `console`, and the guest agent's socket as `agent`.  `disks` are further
    raw files there, each with its name as its serial number.
    """
    invitation = await home.invite(SANDBOX, daemon=(HOST, home.port), nic=NIC, nameserver=NAMESERVER)
    with (folder / "qemu.log").open("ab") as log:
        process = start(_command(image, folder, invitation.decode(), disks), stderr=log.fileno())
    try:
        yield process.pid
    finally:
        process.kill()
        await ended(process)


def agent_says(folder: Path, command: str) -> object:
    """What the QEMU guest agent answers to a command without arguments.  Blocks; TimeoutError after AGENT_S_MAX."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(AGENT_S_MAX)
        wire.connect(str(folder / "agent"))
        wire.sendall(json.dumps({"execute": command}).encode() + b"\n")
        answer = b""
        while b"\n" not in answer:
            answer += wire.recv(4096)
    return json.loads(answer)["return"]


def _command(image: VmImage, folder: Path, serial: str, disks: Sequence[str]) -> list[str]:
    overlay = folder / "overlay.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(overlay)]
    subprocess.run([*create, str(image.disk_bytes + GROWTH_BYTES)], check=True)
    more = [
        word
        for number, name in enumerate(disks, start=1)
        for word in (
            *("-drive", f"if=none,id=scsi{number},format=raw,file={folder}/{name}"),
            *("-device", f"scsi-hd,bus=scsihw0.0,lun={number},drive=scsi{number},serial={name}"),
        )
    ]
    return [
        *("qemu-system-x86_64", "-M", "pc", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "tcg,tb-size=128", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-smbios", f"type=1,uuid={UUID},serial={serial.replace(',', ',,')}"),
        *("-device", "virtio-scsi-pci,id=scsihw0", "-drive", f"if=none,id=scsi0,file={overlay},cache=unsafe"),
        *("-device", "scsi-hd,bus=scsihw0.0,lun=0,drive=scsi0,bootindex=1", *more),
        *("-netdev", "user,id=net0", "-device", f"virtio-net-pci,netdev=net0,mac={MAC}"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=qga0,path={folder}/agent,server=on,wait=off"),
        *("-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"),
        *("-vga", "std", "-serial", f"file:{folder}/console"),
    ]
