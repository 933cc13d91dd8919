"""The asynchronous client, over httpx2 on the daemon's Unix socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from agentlab.base.clock import sleep
from agentlab.base.entropy import SystemEntropy
from agentlab.client.core import (
    RETRIES_MAX,
    RETRY_PAUSE_S,
    Request,
    StreamEvent,
    StreamParser,
    answer_of,
    error_of,
    may_retry,
    request_of,
)
from agentlab.client.discover import connect_error, socket_path
from agentlab.client.sync import ANSWER_TIMEOUT_S, STREAM_TIMEOUT_S
from agentlab.errors import AgentLabError
from agentlab.wire.routes import ROUTES

CONNECTIONS_MAX = 64


class AsyncConnection:
    """Calls rows by name, with plain values.  Calls may overlap."""

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        """`socket` is the daemon's; without it, it is looked for (see `client.discover`)."""
        self.path = Path(socket).absolute() if socket is not None else socket_path(os.environ, os.getuid())
        transport = httpx2.AsyncHTTPTransport(
            uds=os.fspath(self.path), limits=httpx2.Limits(max_connections=CONNECTIONS_MAX)
        )
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://agentlab", timeout=ANSWER_TIMEOUT_S)

    async def call(self, name: str, /, *, retry: bool = True, **arguments: Any) -> Any:
        """The answer of one row: plain JSON values, or bytes.

        A mutation is sent with a key, so that a retry after a cut happens once.  Raises what the daemon told,
        DaemonNotRunning, PermissionMissing.  Cancelling ends the call, not what it has begun.
        """
        route = ROUTES[name]
        key = SystemEntropy().token(16) if route.mutates else None
        request = request_of(route, arguments, key)
        for tries in range(RETRIES_MAX + 1):
            try:
                return await self._exchange(request)
            except (AgentLabError, httpx2.TransportError) as error:
                broken = error if isinstance(error, AgentLabError) else OSError(str(error))
                never_sent = isinstance(error, httpx2.ConnectError)
                if never_sent or not retry or tries == RETRIES_MAX or not may_retry(route, key, broken):
                    if isinstance(error, AgentLabError):
                        raise
                    raise self._unreachable(error) from error
                await sleep(RETRY_PAUSE_S[tries])
        raise AssertionError("unreachable")

    async def stream(self, name: str, /, *, last_id: str | None = None, **arguments: Any) -> AsyncIterator[StreamEvent]:
        """The events of a streaming row, until the daemon ends the stream.  OSError when the connection breaks."""
        request = request_of(ROUTES[name], arguments)
        if last_id is not None:
            request.headers["last-event-id"] = last_id
        timeout = httpx2.Timeout(STREAM_TIMEOUT_S)
        try:
            async with self._client.stream(
                request.method, request.target, headers=request.headers, timeout=timeout
            ) as response:
                if response.status_code >= 400:
                    raise error_of(response.status_code, await response.aread())
                parser = StreamParser(last_id)
                async for data in response.aiter_raw():
                    for event in parser.feed(data):
                        yield event
        except httpx2.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx2.TransportError as error:
            raise ConnectionResetError(str(error) or "the daemon closed the connection") from error

    async def upload(self, digest: str, content: AsyncIterator[bytes], length: int) -> Any:
        """Give the daemon `length` bytes whose SHA-256 is `digest`."""
        request = request_of(ROUTES["blobs.put"], {"digest": digest})
        headers = {**request.headers, "content-length": str(length)}
        response = await self._client.request(request.method, request.target, headers=headers, content=content)
        return answer_of(response.status_code, response.headers.get("content-type", ""), response.content)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def _exchange(self, request: Request) -> Any:
        response = await self._client.request(
            request.method, request.target, headers=request.headers, content=request.body
        )
        return answer_of(response.status_code, response.headers.get("content-type", ""), response.content)

    def _unreachable(self, error: Exception) -> AgentLabError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        return connect_error(self.path, cause if isinstance(cause, OSError) else OSError(0, str(error)))
