"""WebSocket connections that are counted like the HTTP connections that they were."""

from __future__ import annotations

from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

from agentlab.api.peer import left


class PeerWebSocket(WSProtocol):
    """uvicorn's protocol, which takes the connection over: its end is the end of the peer's connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        left(self.app_state["peer"])
