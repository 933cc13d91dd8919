"""One way out of a network namespace that has none: to one address of this machine, as a firewall would allow it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from agentlab.base.process import run
from agentlab.base.tasks import TaskScope
from agentlab.network import namespace

COPY_BYTES = 256 << 10
BACKLOG = 16


class Burrow:
    """From the namespace of process `pid` to `address` outside, under the same address inside."""

    def __init__(self, pid: int, address: tuple[str, int]) -> None:
        self._pid, self._address = pid, address
        self._scope = TaskScope("burrow")
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen inside, whose loopback is brought up.  Raises ProgramFailed, OSError."""
        await run(["nsenter", f"--net=/proc/{self._pid}/ns/net", "--", "ip", "link", "set", "lo", "up"])
        listener = await namespace.in_own_thread(self._listening)
        self._server = await asyncio.start_server(self._joined, sock=listener)

    async def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        await self._scope.close()

    def _listening(self) -> socket.socket:
        with namespace.opened(self._pid) as descriptor:
            namespace.enter(descriptor)
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(self._address)
        made.listen(BACKLOG)
        return made

    async def _joined(self, inside: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            outside, forth = await asyncio.open_connection(*self._address)
        except OSError:
            back.close()
            return

        def both_ended() -> None:
            back.close()
            forth.close()

        self._scope.start(_copied(inside, forth, both_ended), "burrow out")
        self._scope.start(_copied(outside, back, both_ended), "burrow in")


async def _copied(source: asyncio.StreamReader, target: asyncio.StreamWriter, ended: Callable[[], None]) -> None:
    with suppress(OSError):
        while data := await source.read(COPY_BYTES):
            target.write(data)
            await target.drain()
    ended()
