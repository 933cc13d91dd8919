"""Real virtual machines for tests: a backend in a folder of its own, on the shared image and its prepared memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from agentlab.backends.link.channels import GuestStream
from agentlab.backends.qemu.backend import QemuBackend
from agentlab.backends.qemu.image import BootImage
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.base.files import make_directory
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, SandboxSpec
from agentlab.testing.images import shared_image
from agentlab.testing.rootfs import test_cache

SMALL = Resources(memory_bytes=512 << 20, cpus=1.0, pids_max=128, disk_bytes=256 << 20, secrets_bytes=1 << 20)


@dataclass(slots=True, kw_only=True)
class QemuRig:
    """One installation with its backend; `another` gives a second one on the same folders, as after a restart."""

    folder: Path
    installation: InstallationId
    image: BootImage
    settings: dict[str, Any] = field(default_factory=dict)
    backend: QemuBackend = field(init=False)
    backends: list[QemuBackend] = field(default_factory=list)
    made: list[Mark] = field(default_factory=list)
    relayed: list[GuestStream] = field(default_factory=list)
    slots: count[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.backend = self.another()

    def another(self, **changes: Any) -> QemuBackend:
        """A backend that shares nothing with the first but the folders; `changes` are settings that differ."""
        settings: dict[str, Any] = {
            "installation": self.installation,
            "state_dir": self.folder / "state",
            "run_dir": self.folder / "run",
            "image_of": self._image_of,
            "relay": self._relay,
            "clock": SystemClock(),
            "entropy": SystemEntropy(),
            "prepared_dir": make_directory(test_cache() / "prepared"),
        }
        backend = QemuBackend(**(settings | self.settings | changes))
        self.backends.append(backend)
        return backend

    def spec(self, **changes: Any) -> SandboxSpec:
        """A sandbox to make, in the next slot; it is destroyed when the rig ends."""
        entropy = SystemEntropy()
        mark = Mark(installation=self.installation, sandbox=SandboxId(f"sb-{entropy.word()}"), nonce=entropy.token(8))
        self.made.append(mark)
        spec = SandboxSpec(
            mark=mark,
            name="test",
            template="test",
            template_digest=Digest("0" * 64),
            slot=next(self.slots),
            resources=SMALL,
            network=NetworkMode.OFF,
            port=None,
            hostname=f"box-{mark.sandbox.removeprefix('sb-')}",
            nameserver=None,
        )
        return replace(spec, **changes)

    async def _image_of(self, _: Digest) -> BootImage:
        return self.image

    async def _relay(self, stream: GuestStream) -> None:
        """Answers what it reads, as a guest's session would."""
        self.relayed.append(stream)
        while data := await stream.read():
            stream.write([data])
            await stream.drain()


def test_image() -> BootImage:
    """The shared image of the shipped recipe `base`, as the backend takes it."""
    found = shared_image()
    return BootImage(
        digest=found.digest,
        disk=found.disk,
        kernel=found.kernel,
        initrd=found.initrd,
        command_line=found.command_line,
        disk_bytes=found.disk_bytes,
        guest_version=found.guest_version,
    )


test_image.__test__ = False  # type: ignore[attr-defined]  # its name looks like a test to pytest


@asynccontextmanager
async def qemu_rig(folder: Path, **settings: Any) -> AsyncIterator[QemuRig]:
    """A rig below `folder`; all that it made is destroyed at the end.  `settings` are the backend's."""
    installation = InstallationId(SystemEntropy().word(8))
    rig = QemuRig(folder=folder, installation=installation, image=test_image(), settings=settings)
    try:
        yield rig
    finally:
        for mark in rig.made:
            await rig.backend.destroy(mark)
        for backend in rig.backends:
            await backend.close()
