"""One request on its way through the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from agentlab.api.identity import Identity
from agentlab.api.metrics import Counters
from agentlab.base.tasks import TaskScope
from agentlab.wire.routes import Route

if TYPE_CHECKING:
    from agentlab.services.registry import Services
    from agentlab.services.requests import Idempotency

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OnMessage = Callable[[Message], Awaitable[bool]]


@dataclass(slots=True)
class Serving:
    """What the calls of one server share."""

    waiting: set[asyncio.Timeout] = field(default_factory=set)  # long calls, which a stop must end
    draining: bool = False
    counters: Counters = field(default_factory=Counters)


class CallerGone(Exception):
    """The caller hung up, or the server stops, while a long call was under way."""


@dataclass(slots=True, kw_only=True)
class Call:
    """What a handler gets.  `target` is the sandbox or job that the row names: found, and visible to the caller."""

    route: Route
    services: Services
    identity: Identity
    parameters: dict[str, str]
    request_id: str
    headers: dict[bytes, bytes]
    receive: Receive
    send: Send
    server: Serving
    target: Any = None
    body: Any = None
    query: Any = None
    key: Idempotency | None = None
    answered: bool = field(default=False)  # the response has begun

    async def while_connected(self, work: Awaitable[T], on_message: OnMessage | None = None) -> T:
        """The outcome of `work`, which is cancelled, raising CallerGone, when the caller hangs up or the server stops.

        The body must have been read.  Messages that come meanwhile go to `on_message`, whose False ends it as well.
        """
        async with TaskScope(self.request_id) as scope:
            limit = asyncio.timeout(None)
            try:
                async with limit:
                    self.server.waiting.add(limit)
                    scope.start(self._watch(limit, on_message), "caller")
                    return await work
            except TimeoutError:
                if limit.expired():
                    raise CallerGone from None
                raise
            finally:
                self.server.waiting.discard(limit)

    async def _watch(self, limit: asyncio.Timeout, on_message: OnMessage | None) -> None:
        while (message := await self.receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
            if on_message is not None and not await on_message(message):
                break
        limit.reschedule(asyncio.get_running_loop().time())


@dataclass(slots=True, kw_only=True)
class Reply:
    """An answer that is not JSON."""

    body: bytes = b""
    content_type: bytes = b"application/octet-stream"
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Call], Awaitable[BaseModel | Reply | None]]
