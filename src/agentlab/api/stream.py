"""Answers that go on: server-sent events and long bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from agentlab.api.call import Call, CallerGone
from agentlab.base.clock import sleep
from agentlab.base.tasks import TaskScope

HEARTBEAT_S = 15.0
SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class Emitter:
    """Writes server-sent events to one caller; waits while that one does not read."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def event(self, kind: str, data: bytes, seq: int | None = None) -> None:
        """One event; `data` is JSON without line breaks, and `seq` its id."""
        place = b"" if seq is None else b"id: %d\n" % seq
        await self._write(place + b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n")

    async def json(self, kind: str, data: Any, seq: int | None = None) -> None:
        """One event with a plain value."""
        await self.event(kind, json.dumps(data, separators=(",", ":")).encode(), seq)

    async def heartbeat(self) -> None:
        """Comments, for ever, so that both sides notice a dead connection."""
        while True:
            await sleep(HEARTBEAT_S)
            await self._write(b": still here\n\n")

    async def _write(self, content: bytes) -> None:
        await self._call.send({"type": "http.response.body", "body": content, "more_body": True})


async def send_events(call: Call, produce: Callable[[Emitter], Awaitable[None]]) -> None:
    """Answer with the events that `produce` emits, until it returns, the caller hangs up or the server stops."""
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"x-request-id", call.request_id.encode()),
        *SAFE,
    ]
    call.answered = True
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    emitter = Emitter(call)
    async with TaskScope(f"{call.request_id}/events") as scope:
        scope.start(emitter.heartbeat(), "heartbeat")
        try:
            await call.while_connected(produce(emitter))
        except CallerGone:
            pass  # the end of the body tells the caller, if there still is one, to come again
    await call.send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_bytes(
    call: Call, length: int, chunks: AsyncIterator[bytes], headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Answer with exactly `length` bytes."""
    start = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(length).encode()),
        (b"x-request-id", call.request_id.encode()),
        *SAFE,
        *headers,
    ]
    call.answered = True
    await call.send({"type": "http.response.start", "status": 200, "headers": start})
    async for chunk in chunks:
        await call.send({"type": "http.response.body", "body": chunk, "more_body": True})
    await call.send({"type": "http.response.body", "body": b"", "more_body": False})
