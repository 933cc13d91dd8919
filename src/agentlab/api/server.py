"""The HTTP server on the daemon's Unix socket."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from agentlab.api.dispatch import Dispatcher
from agentlab.api.handlers import handlers
from agentlab.api.identity import Identity, Peer, Role, identify
from agentlab.api.listener import forget, listen
from agentlab.api.peer import PeerProtocol
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy

if TYPE_CHECKING:
    from agentlab.services.registry import Services

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 1 << 20  # of one WebSocket message
KEEP_ALIVE_S = 75


class ApiServer:
    """Serves the API from `start` to `stop`.  Leaves signals to the daemon, and keeps no task of its own."""

    def __init__(
        self,
        *,
        services: Services,
        socket: Path,
        group: str | None,
        clock: Clock,
        entropy: Entropy,
        roles: Mapping[int, Role] | None = None,
        only_user: int | None = None,
        drain_s_max: float = 30.0,
    ) -> None:
        self._path, self._group, self._drain_s_max = socket, group, drain_s_max
        own_uid = os.getuid()

        def who(peer: Peer) -> Identity:
            return identify(peer, own_uid, roles, only_user=only_user)

        self.dispatcher = Dispatcher(services, handlers(), who, clock, entropy.word(6))
        self._server: uvicorn.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen; requests are answered once this returns.  Raises AddressInUse, PermissionMissing."""
        listener = listen(self._path, self._group)
        self._inode = self._path.lstat().st_ino
        config = uvicorn.Config(
            self.dispatcher,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(self._drain_s_max)),
            ws_max_size=MESSAGE_BYTES_MAX,
            ws_per_message_deflate=False,
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # uvicorn's own main loop only refreshes a date header and watches for signals: we need neither.
        await server.startup(sockets=[listener])
        self._server = server
        log.info("listening", extra={"socket": str(self._path)})

    async def stop(self) -> None:
        """End streams and long polls, let other requests finish within the drain limit, and close.  Twice is quiet."""
        server, self._server = self._server, None
        if server is None:
            return
        # First the name: a new daemon may take it while we finish.
        forget(self._path, self._inode)
        self.dispatcher.drain()
        await server.shutdown(sockets=None)
        log.info("listener closed", extra={"socket": str(self._path)})
