"""A connection that a guest made, until it is let in.  Whoever is there may be hostile: every byte is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast

from agentlab_guest.knock import LINE_BYTES_MAX, HostSide, Knock, line
from agentlab_guest.orders import Order
from agentlab_guest.strict import Malformed

T = TypeVar("T")
UNREAD_BYTES_MAX = 2 * LINE_BYTES_MAX


class Doorstep(asyncio.Protocol):
    """Waits for the lines of a guest, one after the other.

    Its calls raise Malformed for what is not the protocol, and ConnectionResetError when the guest has gone.
    """

    def __init__(self) -> None:
        self._side = HostSide()
        self._unread = bytearray()
        self._changed = asyncio.Event()
        self._over: Exception | None = None
        self._transport: asyncio.Transport | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up, which says nothing about the guest."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self._unread += data
        if len(self._unread) > UNREAD_BYTES_MAX:
            self._end(Malformed("it does not wait for its turn"))
            if self._transport is not None:
                self._transport.abort()
        self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The guest has gone."""
        self._end(ConnectionResetError("it closed the connection" if error is None else str(error)))

    # For who stands inside

    async def knock(self) -> Knock:
        """Who comes."""
        return await self._awaited(self._side.knock)

    async def acceptance(self) -> None:
        """Return when the guest says that it has its credential."""
        await self._awaited(self._side.acceptance)

    def say(self, order: Order) -> None:
        """Answer."""
        if self._transport is not None:
            self._transport.write(line(order))

    def cleared(self) -> asyncio.Transport:
        """The connection, for the control link, in which the daemon speaks first."""
        if self._over is not None:
            raise self._over
        if self._unread or self._transport is None:
            raise Malformed("the daemon speaks first")
        return self._transport

    def close(self) -> None:
        """End it, after what was said; quiet if TLS never came up."""
        if self._transport is not None:
            self._transport.close()

    async def _awaited(self, take: Callable[[bytes], T | None]) -> T:
        while True:
            arrived = bytes(self._unread)
            self._unread.clear()
            if found := take(arrived):
                return found
            if self._over is not None:
                raise self._over
            await self._changed.wait()
            self._changed.clear()

    def _end(self, cause: Exception) -> None:
        if self._over is None:
            self._over = cause
        self._changed.set()
