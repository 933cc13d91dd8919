"""Loop devices: images as disks of this machine, given back at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.base.process import run


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
        """Give devices back.  One that is still mounted somewhere goes with that mount."""
        for device in list(devices):
            await run(["losetup", "--detach", str(device)], check=False)
            self._taken.discard(device)

    async def close(self) -> None:
        """Give all back."""
        await self.free(self._taken)
