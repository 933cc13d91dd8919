"""HTTP connections that know the process at their other end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections import Counter

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agentlab.api.identity import Peer

log = logging.getLogger(__name__)

CONNECTIONS_PER_USER_MAX = 512  # streams and long polls hold one each; root and the daemon's own user are not counted
_UCRED = struct.Struct("3i")
_open: Counter[int] = Counter()  # connections of this process, by user id
_warned: set[int] = set()  # said once of each user: who floods connections would flood the log


class PeerProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the peer's credentials in each request's state."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        peer = peer_of(transport)
        self.app_state = {"peer": peer}
        _open[peer.uid] += 1
        if peer.uid not in (0, os.getuid()) and _open[peer.uid] > CONNECTIONS_PER_USER_MAX:
            if peer.uid not in _warned:
                _warned.add(peer.uid)
                facts = {"uid": peer.uid, "limit_name": "CONNECTIONS_PER_USER_MAX", "limit": CONNECTIONS_PER_USER_MAX}
                log.warning("too many connections of one user", extra=facts)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        left(self.app_state["peer"])

    def _should_upgrade_to_ws(self) -> bool:
        return True

    def handle_websocket_upgrade(self) -> None:
        # Imported at the first attach: the WebSocket code is a tenth of the daemon's start.
        from agentlab.api.peer_websocket import PeerWebSocket

        self.ws_protocol_class = PeerWebSocket
        super().handle_websocket_upgrade()


def left(peer: Peer) -> None:
    """A connection of this peer has ended."""
    _open[peer.uid] -= 1
    if _open[peer.uid] <= 0:
        del _open[peer.uid]


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Who connected, as the kernel recorded it then."""
    connection: socket.socket = transport.get_extra_info("socket")
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(uid=uid, gid=gid, pid=pid)
