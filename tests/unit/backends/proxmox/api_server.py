"""A small HTTPS server that answers as the API's daemon does on the wire: reason phrases, closings, silences."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.backends.proxmox.certificate import Endpoint, fingerprint
from agentlab.base.process import run


@dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.certificate.read_text()

    @property
    def fingerprint(self) -> str:
        return fingerprint(ssl.PEM_cert_to_DER_cert(self.pem))


@dataclass(frozen=True)
class Received:
    """One request as it arrived; `connection` counts the connections of the server."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass(frozen=True)
class Answer:
    """What is sent back.  `status` 0 closes the connection instead."""

    status: int = 200
    reason: str = "OK"
    body: bytes = b'{"data":null}'
    close: bool = False
    after_s: float = 0.0


def data(value: object) -> Answer:
    return Answer(body=json.dumps({"data": value}).encode())


LOST = Answer(status=0)
Handler = Callable[[Received], Answer | Awaitable[Answer]]


@dataclass
class ApiServer:
    """What it has seen, and how it answers."""

    endpoint: Endpoint
    handler: Handler = lambda _: data("fine")
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    hasty: bool = False  # answers without waiting for the body, as the real one does to who lacks a privilege
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self.open.add(writer)
        try:
            while await self._one(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = b"" if self.hasty else await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(method=method, target=target, headers=headers, body=body, connection=number)
        self.received.append(request)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        try:
            answer = self.handler(request)
            if not isinstance(answer, Answer):
                answer = await answer
            await asyncio.sleep(answer.after_s)
        finally:
            self.in_flight -= 1
        if answer.status == 0:
            return False
        close = answer.close or answer.status >= 400
        writer.write(
            f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Length: {len(answer.body)}\r\n"
            f"Connection: {'close' if close else 'Keep-Alive'}\r\n\r\n".encode()
            + answer.body
        )
        await writer.drain()
        return not close


@asynccontextmanager
async def api_server(identity: Identity, *, port: int = 0, name: str = "") -> AsyncIterator[ApiServer]:
    """Serves on 127.0.0.1 until left."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    served: ApiServer | None = None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert served is not None
        await served._serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    found = server.sockets[0].getsockname()[1]
    served = ApiServer(endpoint=Endpoint(host="127.0.0.1", port=found, name=name))
    try:
        yield served
    finally:
        server.close()
        for writer in tuple(served.open):
            writer.transport.abort()


async def self_signed(folder: Path, name: str, *, days: int = 30) -> Identity:
    """A certificate of its own, as a fresh node has one."""
    identity = Identity(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    await _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
        "-addext", f"subjectAltName=DNS:{name}", "-days", str(days), "-keyout", identity.key, "-out",
        identity.certificate,
    )  # fmt: skip
    return identity


async def signed(folder: Path, name: str, authority: Identity, *, expired: bool = False) -> Identity:
    """A certificate that a cluster's authority has signed."""
    identity = Identity(certificate=folder / f"{name}-signed.pem", key=folder / f"{name}-signed.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n")
    await _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
        "-keyout", identity.key, "-out", request,
    )  # fmt: skip
    await _openssl(
        "x509", "-req", "-in", request, "-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial",
        "-days", "-1" if expired else "30", "-extfile", extensions, "-out", identity.certificate,
    )  # fmt: skip
    return identity


async def _openssl(*arguments: str | Path) -> None:
    await run(["openssl", *map(str, arguments)])
