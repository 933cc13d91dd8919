"""QEMU on an image, with nothing of a backend around it: what an image does by itself."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from agentlab.backends.interface import Command
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control
from agentlab.base.process import ended, start
from agentlab.base.tasks import TaskScope
from agentlab.templates.images import VmImage

MEMORY_MIB = 512
HELLO_S_MAX = 120.0
GROWTH_BYTES = 1 << 30


@asynccontextmanager
async def bare_vm(
    image: VmImage, folder: Path, *, drives: Sequence[str] = (), devices: Sequence[str] = ()
) -> AsyncIterator[Control]:
    """Boot an image, emulated, and reach its guest program; all that it writes goes with it.

    `folder` must be short (a socket path has 107 bytes), and has afterwards what the machine printed in `console`.
    `drives` and `devices` are further arguments of QEMU's `-drive` and `-device`.  Unavailable without a hello within
    HELLO_S_MAX.
    """
    address = folder / "control"
    with ExitStack() as ours:
        # Ours from the beginning, so that there is nothing to wait for until QEMU has made it.
        listener = ours.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(address))
        listener.listen(1)
        process = start(_command(image, folder, listener.fileno(), drives, devices), pass_fds=[listener.fileno()])
    try:
        async with TaskScope("bare-vm") as scope:
            token = os.urandom(32)
            control = await Control.connect(address, token=token, scope=scope, relay=_nobody, timeout_s=HELLO_S_MAX)
            yield control
            await control.close()
    finally:
        process.kill()
        await ended(process)


async def answers(control: Control, questions: Mapping[str, str]) -> dict[str, str]:
    """What each of these shell scripts prints in the VM, as root, and its status where that is not 0."""
    return {name: await ask(control, script) for name, script in questions.items()}


async def ask(control: Control, script: str) -> str:
    """What a shell script prints in the VM, both streams, without white space around it; see `answers`."""
    parts = []
    async with control.running(Command(argv=("/bin/sh", "-c", script))) as execution:
        async for _, data in execution.output():
            parts.append(data)
        status = await execution.wait()
    return b"".join(parts).decode(errors="replace").strip() + (f" [status {status}]" if status else "")


def _command(image: VmImage, folder: Path, control: int, drives: Sequence[str], devices: Sequence[str]) -> list[str]:
    overlay = folder / "overlay.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(overlay)]
    subprocess.run([*create, str(image.disk_bytes + GROWTH_BYTES)], check=True)
    direct = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.command_line]
    more = [word for each in drives for word in ("-drive", each)]
    more += [word for each in devices for word in ("-device", each)]
    return [
        *("qemu-system-x86_64", "-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "tcg,tb-size=128", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=c,fd={control},server=on,wait=off"),
        *("-device", "virtserialport,chardev=c,name=org.agentlab.control"),
        *("-device", "virtio-rng-pci", "-serial", f"file:{folder}/console"),
        *(direct if image.variant == "direct" else ()),
        *more,
    ]


async def _nobody(stream: GuestStream) -> None:
    """Nobody answers at the guest link."""
