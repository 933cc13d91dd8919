"""The resident guest program as an ordinary process: all of the control link, without a VM."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agentlab.backends.link.control import Control, Relay
from agentlab.base.clock import sleep
from agentlab.base.files import make_directory
from agentlab.base.process import ended, start
from agentlab.base.pyz import build_guest_pyz
from agentlab.base.tasks import TaskScope
from agentlab.model.ids import SandboxId
from agentlab.testing.guest_home import HELLO_S_MAX, GuestHome, nobody

START_S_MAX, LOOK_S = 20.0, 0.01
SANDBOX = SandboxId("sb-resident")


class ResidentProcess(Protocol):
    """A process, and connections to it.  `link` is the guest link's socket for programs beside it."""

    link: Path
    pid: int

    async def connect(self, relay: Relay = nobody, timeout_s: float = HELLO_S_MAX) -> Control:
        """A new connection, as a new daemon would have it."""
        ...


@dataclass
class PortedProcess:
    """One that waits at a Unix socket, as at the port of a VM."""

    port: Path
    link: Path
    pid: int
    scope: TaskScope
    opened: list[Control] = field(default_factory=list)

    async def connect(self, relay: Relay = nobody, timeout_s: float = HELLO_S_MAX) -> Control:
        token = os.urandom(32)
        control = await Control.connect(self.port, token=token, scope=self.scope, relay=relay, timeout_s=timeout_s)
        self.opened.append(control)
        return control


@dataclass
class DialledProcess:
    """One that calls home over TCP and TLS.  Each `connect` is by another daemon, after the one before has gone."""

    home: GuestHome
    link: Path
    pid: int

    async def connect(self, relay: Relay = nobody, timeout_s: float = HELLO_S_MAX) -> Control:
        await self.home.begin(relay)
        return await self.home.control(SANDBOX, timeout_s)


@asynccontextmanager
async def resident_process(folder: Path) -> AsyncIterator[PortedProcess]:
    """One at a Unix socket, that ends with the context.  `folder` must be short: a socket path has 107 bytes."""
    port = folder / "port"
    async with _begun(folder, [str(port)]) as pid, TaskScope("resident") as scope:
        found = PortedProcess(port=port, link=folder / "run/guest.sock", pid=pid, scope=scope)
        yield found
        for control in found.opened:
            await control.close()


@asynccontextmanager
async def dialled_process(folder: Path) -> AsyncIterator[DialledProcess]:
    """One that was invited by a daemon that has gone since, and looks for the next; see `resident_process`."""
    home = GuestHome(folder=make_directory(folder / "home"))
    await home.begin()
    (folder / "serial").write_bytes(await home.invite(SANDBOX) + b"\n")
    await home.end()
    async with begun_again(folder) as pid:
        yield DialledProcess(home=home, link=folder / "run/guest.sock", pid=pid)
        await home.end()


@asynccontextmanager
async def begun_again(folder: Path) -> AsyncIterator[int]:
    """The process of `dialled_process` once more, in the same folder, with what it kept."""
    (folder / "run/guest.sock").unlink(missing_ok=True)
    async with _begun(folder, [str(folder / "none"), "--invitation", str(folder / "serial"), "--stand-in"]) as pid:
        yield pid


@asynccontextmanager
async def _begun(folder: Path, arguments: Sequence[str]) -> AsyncIterator[int]:
    program, run = folder / "guest.pyz", folder / "run"
    program.write_bytes(build_guest_pyz())
    argv = [sys.executable, "-I", "-S", "-B", str(program), "--resident", *arguments, "--run-dir", str(run)]
    with (folder / "complaints").open("ab") as complaints:
        process = start(argv, stderr=complaints.fileno())
    try:
        await _until_it_listens(run / "guest.sock")
        yield process.pid
    finally:
        process.kill()
        await ended(process)


async def _until_it_listens(path: Path) -> None:
    waited = 0.0
    while not path.exists():
        assert waited < START_S_MAX, f"{path} did not appear"
        await sleep(LOOK_S)
        waited += LOOK_S
