"""GET one sandbox over the daemon's Unix socket, 16 connections; the floor is the same server with a constant answer.

Reach: at least 5,000/s with p99 at most 10 ms.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from harness import percentile, report

from agentlab.api.listener import listen
from agentlab.api.peer import PeerProtocol
from agentlab.testing.served import serving

CONNECTIONS, REQUESTS, ROUNDS = 16, 8000, 5
SANDBOXES = 100
CONSTANT = b'{"id":"sb-22222222"}' + b" " * 800  # about as long as a sandbox


async def _floor(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(CONSTANT)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": CONSTANT})


async def _serve(folder: Path) -> None:
    async with serving(folder, reconcile=False) as served:
        rows = [await served.json("POST", "/v1/sandboxes", {}) for _ in range(SANDBOXES)]
        config = uvicorn.Config(
            _floor, http=PeerProtocol, ws="none", lifespan="off", interface="asgi3", access_log=False, log_config=None,
            proxy_headers=False, server_header=False, date_header=False,
        )  # fmt: skip
        config.load()
        floor = uvicorn.Server(config)
        floor.lifespan = config.lifespan_class(config)
        await floor.startup(sockets=[listen(folder / "floor.sock")])
        print(rows[len(rows) // 2][1]["id"], served.socket, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await floor.shutdown()


class _Caller(asyncio.Protocol):
    """Sends the next request as soon as the answer to the last has come; notes how long each took."""

    def __init__(self, request: bytes, count: int, done: asyncio.Future[None], took: list[float]) -> None:
        self._request, self._left, self._done, self._took = request, count, done, took
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        self._took.append(time.perf_counter() - self._began)
        self._buffer = b""
        self._left -= 1
        if self._left:
            self._next()
        else:
            self._transport.close()
            self._done.set_result(None)

    def _next(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)


async def _load(socket: str, target: str) -> tuple[float, list[float]]:
    """Requests per second, and how long each took."""
    loop = asyncio.get_running_loop()
    request = f"GET {target} HTTP/1.1\r\nhost: agentlab\r\n\r\n".encode()
    took: list[float] = []
    futures = [loop.create_future() for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for future in futures:
        await loop.create_unix_connection(lambda f=future: _Caller(request, REQUESTS // CONNECTIONS, f, took), socket)
    await asyncio.gather(*futures)
    return REQUESTS / (time.perf_counter() - began), took


async def _measure(folder: Path, sandbox: str, socket: str) -> None:
    rates, floors, took = [], [], []
    for round_ in range(ROUNDS + 1):
        rate, times = await _load(socket, f"/v1/sandboxes/{sandbox}")
        floor, _ = await _load(str(folder / "floor.sock"), "/")
        if round_:
            rates.append(rate)
            floors.append(floor)
            took += times
    rate, floor = statistics.median(rates), statistics.median(floors)
    report(
        what="GET one sandbox over the Unix socket, 16 connections", n=len(took), per_s=rate,
        p50_ms=percentile(took, 50) * 1000, p99_ms=percentile(took, 99) * 1000, floor_per_s=floor,
        ratio=floor / rate, reach="5000/s, p99 10 ms", reached=rate >= 5000 and percentile(took, 99) <= 0.010,
    )  # fmt: skip


def main() -> None:
    """Serve in a process of its own, and measure from this one."""
    if len(sys.argv) > 1:
        uvloop.run(_serve(Path(sys.argv[1])))
        return
    with tempfile.TemporaryDirectory(prefix="agentlab-bench-") as folder:
        server = subprocess.Popen(
            [sys.executable, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            sandbox, socket = server.stdout.readline().split()
            uvloop.run(_measure(Path(folder), sandbox, socket))
        finally:
            server.stdin.close()
            server.wait(30)


if __name__ == "__main__":
    main()
