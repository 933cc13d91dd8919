"""The resident guest program as an ordinary process on a Unix socket: all of the control link, without a VM."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control
from agentlab.base.clock import sleep
from agentlab.base.process import ended, start
from agentlab.base.pyz import build_guest_pyz
from agentlab.base.tasks import TaskScope

START_S_MAX, LOOK_S = 20.0, 0.01
HELLO_S_MAX = 20.0
Serve = Callable[[GuestStream], Awaitable[None]]


async def nobody(stream: GuestStream) -> None:
    """A relay that ends at once."""


@dataclass
class ResidentProcess:
    """Where it is, and connections to it.  `link` is the guest link's socket for programs beside it."""

    port: Path
    link: Path
    pid: int
    scope: TaskScope
    opened: list[Control] = field(default_factory=list)

    async def connect(self, relay: Serve = nobody, timeout_s: float = HELLO_S_MAX) -> Control:
        """A new connection, as a new daemon would make it."""
        token = os.urandom(32)
        control = await Control.connect(self.port, token=token, scope=self.scope, relay=relay, timeout_s=timeout_s)
        self.opened.append(control)
        return control


@asynccontextmanager
async def resident_process(folder: Path) -> AsyncIterator[ResidentProcess]:
    """One that ends with the context.  `folder` must be short: a socket path has 107 bytes."""
    program, port, run = folder / "guest.pyz", folder / "port", folder / "run"
    program.write_bytes(build_guest_pyz())
    process = start([sys.executable, "-I", "-S", "-B", str(program), "--resident", str(port), "--run-dir", str(run)])
    try:
        async with TaskScope("resident") as scope:
            found = ResidentProcess(port=port, link=run / "guest.sock", pid=process.pid, scope=scope)
            await _until_it_listens(found.link)
            yield found
            for control in found.opened:
                await control.close()
    finally:
        process.kill()
        await ended(process)


async def _until_it_listens(path: Path) -> None:
    waited = 0.0
    while not path.exists():
        assert waited < START_S_MAX, f"{path} did not appear"
        await sleep(LOOK_S)
        waited += LOOK_S
