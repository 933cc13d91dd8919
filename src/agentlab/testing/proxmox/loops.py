"""Loop devices: images as disks of this machine, given back at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.base.clock import sleep
from agentlab.base.process import run

FREE_S_MAX, LOOK_S = 5.0, 0.005


@dataclass(slots=True, kw_only=True)
class Loops:
    """Those that are taken."""

    _taken: set[Path] = field(default_factory=set)

    async def taken(self, image: Path) -> Path:
        """The device that shows an image from now on.  Raises ProgramFailed."""
        said = await run(["losetup", "--find", "--show", "--", str(image)])
        device = Path(said.out.decode().strip())
        self._taken.add(device)
        return device

    async def free(self, devices: Iterable[Path]) -> None:
        """Give devices back; returns when their images may be used otherwise.

        The kernel takes a moment to unmount what a namespace held that has just gone.  What is mounted for longer than
        FREE_S_MAX goes with that mount.
        """
        for device in list(devices):
            await run(["losetup", "--detach", str(device)], check=False)
            self._taken.discard(device)
            waited = 0.0
            while Path(f"/sys/block/{device.name}/loop/backing_file").exists() and waited < FREE_S_MAX:
                await sleep(LOOK_S)
                waited += LOOK_S

    async def close(self) -> None:
        """Give all back."""
        await self.free(self._taken)
