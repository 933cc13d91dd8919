"""Real containers for tests: a backend in a folder of its own, on the shared test root file system."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from agentlab.backends.oci.backend import OciBackend
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, SandboxSpec
from agentlab.testing.rootfs import test_rootfs

SMALL = Resources(memory_bytes=256 << 20, cpus=1.0, pids_max=128, disk_bytes=256 << 20, secrets_bytes=1 << 20)


@dataclass(slots=True, kw_only=True)
class OciRig:
    """One installation with its backend; `another` gives a second one on the same folders, as after a restart."""

    folder: Path
    installation: InstallationId
    layers: Sequence[Path]
    runtime: str | None = None
    backend: OciBackend = field(init=False)
    made: list[Mark] = field(default_factory=list)
    slots: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        (self.folder / "guest").mkdir(parents=True, exist_ok=True)
        self.backend = self.another()

    def another(self, **changes: Any) -> OciBackend:
        """A backend that shares nothing with the first but the folders; `changes` are settings that differ."""
        settings: dict[str, Any] = {
            "installation": self.installation,
            "state_dir": self.folder / "state",
            "run_dir": self.folder / "run",
            "rootfs_of": lambda _digest: self.layers,
            "guest_dir": self.folder / "guest",
            "clock": SystemClock(),
            "entropy": SystemEntropy(),
            "runtime": self.runtime,
        }
        return OciBackend(**(settings | changes))

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
            hostname="test-box",
            nameserver=None,
        )
        return replace(spec, **changes)


@asynccontextmanager
async def oci_rig(folder: Path, *, runtime: str | None = None, layers: Sequence[Path] = ()) -> AsyncIterator[OciRig]:
    """A rig below `folder` (`layers` lie on top of the test root); all that it made is destroyed at the end."""
    installation = InstallationId(SystemEntropy().word(8))
    rig = OciRig(folder=folder, installation=installation, layers=[*layers, test_rootfs()], runtime=runtime)
    try:
        yield rig
    finally:
        for mark in rig.made:
            await rig.backend.destroy(mark)
        await rig.backend.close()
