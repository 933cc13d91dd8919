"""One TLS connection of a client: requests in, answers out, with the server's habits of closing."""

from __future__ import annotations

import asyncio
import mmap
import tempfile
from collections.abc import Awaitable, Callable
from typing import IO

import h11

from agentlab.testing.proxmox.codec import BODY_BYTES_MAX, Answer, Request, answer_refusal
from agentlab.testing.proxmox.refusal import Refused

REQUESTS_MAX = 100  # per connection
IDLE_S_MAX = 5.0
READ_BYTES = 256 << 10
SPOOLED_BYTES_MIN = 4 << 20  # larger bodies go through a file
UPLOAD_BYTES_MAX = 64 << 30
SERVER = "pve-api-daemon/3.0"

Handle = Callable[[Request], Awaitable[Answer]]


class Connection:
    """Serves requests one after the other; closes after 100, after every refusal, and when idle for `idle_s`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handle, idle_s: float = IDLE_S_MAX
    ) -> None:
        self._reader, self._writer, self._handle, self._idle_s = reader, writer, handle, idle_s
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=64 << 10)

    async def serve(self) -> None:
        """Until it is closed by either side."""
        try:
            for number in range(1, REQUESTS_MAX + 1):
                if not await self._one(last=number == REQUESTS_MAX):
                    break
        except (h11.RemoteProtocolError, ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            self._writer.transport.abort()
        finally:
            self._writer.close()

    async def _one(self, last: bool) -> bool:
        """Serve one request; whether the connection stays."""
        async with asyncio.timeout(self._idle_s):
            event = await self._event()
        if not isinstance(event, h11.Request):
            return False
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers}
        method, target = event.method.decode(), event.target.decode("latin-1")
        with tempfile.TemporaryFile() as spool:
            try:
                body = await self._body(headers, target, spool)
            except Refused as error:
                await self._answer(answer_refusal(error), close=True)
                return False
            answer = await self._handle(Request(method=method, target=target, headers=headers, body=body))
        if answer.lost:
            self._writer.transport.abort()
            return False
        close = last or answer.status >= 400 or headers.get("connection", "").lower() == "close"
        await self._answer(answer, close)
        if not close:
            self._http.start_next_cycle()
        return not close

    async def _body(self, headers: dict[str, str], target: str, spool: IO[bytes]) -> bytes | mmap.mmap:
        size = int(headers.get("content-length", "0") or 0)
        most = UPLOAD_BYTES_MAX if target.partition("?")[0].endswith("/upload") else BODY_BYTES_MAX
        if size > most:
            raise Refused("for data too large", status=501, bare=True)
        if headers.get("expect", "").lower() == "100-continue":
            self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        small = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            if size < SPOOLED_BYTES_MIN:
                small += event.data
            else:
                spool.write(event.data)
        if size < SPOOLED_BYTES_MIN:
            return bytes(small)
        spool.flush()
        return mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ_BYTES))
        return event  # type: ignore[return-value]

    async def _answer(self, answer: Answer, close: bool) -> None:
        headers = [("Server", SERVER), ("Cache-Control", "max-age=0"), ("Pragma", "no-cache")]
        headers.append(("Connection", "close" if close else "Keep-Alive"))
        headers.append(("Content-Length", str(len(answer.body))))
        if answer.content_type is not None:
            headers.append(("Content-Type", answer.content_type))
        reason = answer.reason.encode("utf-8", errors="replace")
        response = h11.Response(status_code=answer.status, reason=reason, headers=headers)
        whole = self._http.send(response) or b""
        if answer.body and self._http.our_state is h11.SEND_BODY:
            whole += self._http.send(h11.Data(data=answer.body)) or b""
        whole += self._http.send(h11.EndOfMessage()) or b""
        self._writer.write(whole)
        await self._writer.drain()
