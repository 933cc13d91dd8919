"""The guests' door: a Unix socket that sandboxes can reach, and that speaks nothing but the guest link."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agentlab.api.listener import forget, listen
from agentlab.api.peer import peer_of
from agentlab.base.tasks import TaskScope
from agentlab.services.session import Sessions
from agentlab_guest.strict import Data

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
WRITE_BYTES_HIGH = 4 << 20  # queued towards a guest before we wait for it
CONNECTIONS_MAX = 2000
CONNECTIONS_PER_PEER_MAX = 8  # of one user id of the host; every sandbox has ids of its own
SLOT_IDS = 65536


class GuestServer:
    """Listens from `start` to `stop`; every connection is a child of the given scope."""

    def __init__(self, *, sessions: Sessions, socket: Path, scope: TaskScope) -> None:
        self._sessions, self._path, self._scope = sessions, socket, scope
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._open: Counter[int] = Counter()

    async def start(self) -> None:
        """Listen.  Raises AddressInUse, PermissionMissing.  Anyone may connect: the credential decides."""
        listener = listen(self._path)
        self._path.chmod(0o666)  # the ids of a sandbox are strangers to the host
        self._inode = self._path.lstat().st_ino
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=READ_BYTES)

    async def stop(self) -> None:
        """Take no more connections; what is open ends with the scope."""
        if self._server is not None:
            self._server.close()
            forget(self._path, self._inode)
            self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = peer_of(writer.transport).uid // SLOT_IDS
        if self._open.total() >= CONNECTIONS_MAX or self._open[peer] >= CONNECTIONS_PER_PEER_MAX:
            if self._sessions.remarks.allows():
                facts = {"open": self._open.total(), "of_peer": self._open[peer]}
                log.warning("too many guest connections", extra=facts)
            writer.transport.abort()
            return
        writer.transport.set_write_buffer_limits(high=WRITE_BYTES_HIGH)
        self._open[peer] += 1
        task = self._scope.start(self._sessions.serve(_SocketStream(reader, writer)), "guest link")
        task.add_done_callback(lambda _: self._closed(peer))

    def _closed(self, peer: int) -> None:
        self._open[peer] -= 1
        if self._open[peer] <= 0:
            del self._open[peer]


class _SocketStream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        return await self._reader.read(READ_BYTES)

    def write(self, buffers: Sequence[Data]) -> None:
        if not self._writer.is_closing():
            self._writer.writelines(buffers)

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
