"""Name resolution for sandboxes that cannot reach a name server themselves: a relay on the gateway's address.

It forwards to the host's name servers over UDP and TCP.  An answer that points to where no sandbox may go is withheld
(a rebinding attack, or a name of the LAN); so are IPv6 addresses, which lead nowhere here: both come back as "no such
record", which programs take at once, where silence would make them wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import cast

from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.tasks import TaskScope
from agentlab.network import dns_message, host
from agentlab.network.dns_message import Answer, Malformed, Question

log = logging.getLogger(__name__)

QUERIES_IN_FLIGHT_MAX = 1024
QUERIES_IN_FLIGHT_PER_SANDBOX_MAX = 128
QUERIES_PER_SECOND_MAX = 200
QUERIES_BURST_MAX = 500
SOURCES_REMEMBERED_MAX = 4096
MESSAGE_BYTES_MAX = 65535
ATTEMPT_TIMEOUT_S = 2.0
QUERY_TIMEOUT_S = 6.0
STRAY_ANSWERS_MAX = 32  # forged or late datagrams that one query puts up with
CONNECTIONS_MAX = 256
CONNECTIONS_PER_SANDBOX_MAX = 16
CONNECTION_IDLE_S = 10.0
UPSTREAMS_MAX = 3  # as many as the C library asks
DNS_PORT = 53


@dataclass(slots=True)
class _Source:
    """What one sandbox uses of the relay."""

    tokens: float
    at: float
    in_flight: int = 0
    connections: int = 0


class Resolver:
    """The relay.  `start` binds, `stop` ends every query that still waits."""

    def __init__(
        self,
        address: IPv4Address,
        clock: Clock,
        entropy: Entropy,
        upstreams: Sequence[str] | None = None,
        resolv_conf: Path = host.RESOLV_CONF,
    ) -> None:
        """`upstreams` are `address` or `address:port`; None follows the host's resolv.conf as it changes."""
        self.blocked: Sequence[IPv4Network] = ()
        self.withheld = 0  # answers that pointed to where no sandbox may go
        self._address = address
        self._clock, self._entropy = clock, entropy
        self._fixed = None if upstreams is None else [parse_upstream(each) for each in upstreams]
        self._resolv_conf, self._read_at, self._followed = resolv_conf, (0, 0, 0), list[tuple[str, int]]()
        self._sources: dict[str, _Source] = {}
        self._in_flight = self._connections = 0
        self._scope = TaskScope("resolver")
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None

    async def start(self, port: int = DNS_PORT) -> None:
        """Bind the address over UDP and TCP.  OSError if it is taken.  Quiet if it runs."""
        if self._transport is not None:
            return
        loop = asyncio.get_running_loop()
        where = (str(self._address), port)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Listener(self), local_addr=where)
        try:
            self._server = await asyncio.start_server(self._connected, *where, limit=MESSAGE_BYTES_MAX + 2)
        except OSError:
            self._transport.close()
            self._transport = None
            raise

    async def stop(self) -> None:
        """Let go of the address.  Quiet if it does not run."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._scope.cancel_all()

    def received(self, message: bytes, asker: tuple[str, int]) -> None:
        """A datagram from a sandbox: answer it at once, or ask on its behalf."""
        source = self._source(asker[0])
        if self._admit(source):
            self._scope.start(self._answer_datagram(message, asker, source), "query")
            return
        try:
            self._send(dns_message.refuse(dns_message.parse_question(message), dns_message.SERVER_FAILURE), asker)
        except Malformed:
            return

    def upstreams(self) -> list[tuple[str, int]]:
        """The name servers to ask, in order."""
        if self._fixed is not None:
            return self._fixed
        try:
            found = self._resolv_conf.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            return []
        if stamp != self._read_at:
            servers = [(each, DNS_PORT) for each in host.read_nameservers(self._resolv_conf)]
            # The relay's own address in resolv.conf would make it ask itself for ever.
            self._followed = [each for each in servers if each[0] != str(self._address)][:UPSTREAMS_MAX]
            self._read_at = stamp
        return self._followed

    async def _answer_datagram(self, message: bytes, asker: tuple[str, int], source: _Source) -> None:
        reply = await self._relay(message, source, over_tcp=False)
        if reply is not None:
            self._send(reply, asker)

    def _send(self, reply: bytes, asker: tuple[str, int]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(reply, asker)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        source = self._source(peer[0]) if peer else None
        full = self._connections >= CONNECTIONS_MAX
        if source is None or full or source.connections >= CONNECTIONS_PER_SANDBOX_MAX:
            writer.close()
            return
        self._connections += 1
        source.connections += 1
        self._scope.start(self._serve_connection(reader, writer, source), "connection")

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: _Source
    ) -> None:
        try:
            await self._serve_stream(reader, writer, source)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the asker went or fell silent: the connection ends either way
        finally:
            self._connections -= 1
            source.connections -= 1
            writer.close()

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: _Source) -> None:
        while True:
            async with asyncio.timeout(CONNECTION_IDLE_S):
                length = int.from_bytes(await reader.readexactly(2), "big")
                message = await reader.readexactly(length)
            if not self._admit(source):
                return
            reply = await self._relay(message, source, over_tcp=True)
            if reply is None:
                return
            writer.write(len(reply).to_bytes(2, "big") + reply)
            async with asyncio.timeout(CONNECTION_IDLE_S):
                await writer.drain()

    async def _relay(self, message: bytes, source: _Source, *, over_tcp: bool) -> bytes | None:
        """The reply to a sandbox's bytes; None for silence.  Ends what `_admit` began."""
        try:
            return await self._resolve(message, over_tcp=over_tcp)
        finally:
            self._in_flight -= 1
            source.in_flight -= 1

    async def _resolve(self, message: bytes, *, over_tcp: bool) -> bytes | None:
        try:
            question = dns_message.parse_question(message)
        except Malformed:
            return dns_message.refuse_malformed(message)
        if question.type == dns_message.TYPE_AAAA:
            return dns_message.refuse(question, dns_message.OK)
        answer = await self._ask_upstreams(question, over_tcp=over_tcp)
        if answer is None:
            return dns_message.refuse(question, dns_message.SERVER_FAILURE)
        if dns_message.points_into(answer.addresses, self.blocked):
            self.withheld += 1
            return dns_message.refuse(question, dns_message.OK)
        return dns_message.reply(question, answer, MESSAGE_BYTES_MAX if over_tcp else question.udp_bytes_max)

    async def _ask_upstreams(self, question: Question, *, over_tcp: bool) -> Answer | None:
        put = _ask_stream if over_tcp else _ask_datagram
        try:
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                for where in self.upstreams():
                    id_ = int(self._entropy.token(2), 16)
                    try:
                        async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                            return await put(where, question, id_)
                    except (OSError, TimeoutError, asyncio.IncompleteReadError, Malformed):
                        continue
        except TimeoutError:
            pass
        return None

    def _source(self, address: str) -> _Source:
        if (source := self._sources.get(address)) is None:
            if len(self._sources) >= SOURCES_REMEMBERED_MAX:
                self._sources = {k: each for k, each in self._sources.items() if each.in_flight or each.connections}
            source = self._sources[address] = _Source(tokens=QUERIES_BURST_MAX, at=self._clock.monotonic())
        return source

    def _admit(self, source: _Source) -> bool:
        """Count a query in, or say that a limit is reached."""
        now = self._clock.monotonic()
        source.tokens = min(QUERIES_BURST_MAX, source.tokens + (now - source.at) * QUERIES_PER_SECOND_MAX)
        source.at = now
        full = self._in_flight >= QUERIES_IN_FLIGHT_MAX or source.in_flight >= QUERIES_IN_FLIGHT_PER_SANDBOX_MAX
        if full or source.tokens < 1:
            return False
        source.tokens -= 1
        source.in_flight += 1
        self._in_flight += 1
        return True


def parse_upstream(text: str) -> tuple[str, int]:
    """`1.2.3.4`, `1.2.3.4:5353`, `::1` or `[::1]:5353` as address and port.  ValueError otherwise."""
    address, port = text, str(DNS_PORT)
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    ip_address(address.split("%")[0])
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} has no port between 1 and 65535")
    return address, int(port)


class _Listener(asyncio.DatagramProtocol):
    """The relay's UDP side."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._resolver.received(data, addr)


class _Exchange(asyncio.DatagramProtocol):
    """One question to one name server, from a connected socket of its own: random port, no strangers' datagrams."""

    def __init__(self, question: Question, id_: int) -> None:
        self._question, self._id = question, id_
        self._strays = 0
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because asyncio's own datagram transport does not derive from this class on Python 3.11.
        cast(asyncio.DatagramTransport, transport).sendto(dns_message.ask(self._question, self._id))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.answer.done():
            return
        try:
            self.answer.set_result(dns_message.parse_answer(self._question, self._id, data))
        except Malformed as error:
            self._strays += 1
            if self._strays > STRAY_ANSWERS_MAX:
                self.answer.set_exception(error)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _ask_datagram(where: tuple[str, int], question: Question, id_: int) -> Answer:
    loop = asyncio.get_running_loop()
    transport, exchange = await loop.create_datagram_endpoint(lambda: _Exchange(question, id_), remote_addr=where)
    try:
        return await exchange.answer
    finally:
        transport.close()


async def _ask_stream(where: tuple[str, int], question: Question, id_: int) -> Answer:
    reader, writer = await asyncio.open_connection(*where, limit=MESSAGE_BYTES_MAX + 2)
    try:
        message = dns_message.ask(question, id_)
        writer.write(len(message).to_bytes(2, "big") + message)
        length = int.from_bytes(await reader.readexactly(2), "big")
        return dns_message.parse_answer(question, id_, await reader.readexactly(length))
    finally:
        writer.close()
