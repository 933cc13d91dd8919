"""The relay on loopback, with a name server of the test's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast

import pytest

from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.network import resolver
from agentlab.network.dns_message import Malformed
from agentlab.network.resolver import Resolver, parse_upstream
from agentlab.testing.netlab_server import dns_reply

pytestmark = pytest.mark.anyio

LOOPBACK = IPv4Address("127.0.0.1")


class Server(asyncio.DatagramProtocol):
    """A name server that can be bent."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []  # source port and message
        self.silent = False
        self.lies: list[bytes] = []  # sent before the answer, under a wrong id

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append((addr[1], data))
        if self.silent:
            return
        for lie in self.lies:
            self.transport.sendto(lie, addr)
        self.transport.sendto(dns_reply(data, 512), addr)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    yield server
    transport.close()


@pytest.fixture
async def relay(server: Server) -> AsyncIterator[tuple[Resolver, int]]:
    port = _free_port()
    relay = Resolver(LOOPBACK, SystemClock(), SystemEntropy(), [f"127.0.0.1:{server.port}"])
    relay.blocked = (IPv4Network("127.0.0.0/8"), IPv4Network("192.168.0.0/16"))
    await relay.start(port)
    yield relay, port
    await relay.stop()


Relay = tuple[Resolver, int]


async def test_a_name_is_asked_for_upstream_and_answered(relay: Relay) -> None:
    reply = await _ask(relay[1], _query("web.netlab.test"))

    assert reply[:2] == b"\x12\x34"
    assert reply[-4:] == bytes((1, 1, 1, 10))


async def test_every_question_goes_out_under_its_own_port_and_id(relay: Relay, server: Server) -> None:
    for _ in range(20):
        await _ask(relay[1], _query("web.netlab.test"))

    assert len({port for port, _ in server.asked}) > 10
    assert len({message[:2] for _, message in server.asked}) > 15


async def test_forged_answers_are_passed_over(relay: Relay, server: Server) -> None:
    query = _query("web.netlab.test")
    server.lies = [
        b"",
        b"\x00",
        b"\xff" * 12,
        b"\x00\x00\x81\x80" + query[4:],
        dns_reply(_query("many.netlab.test"), 512),
    ]

    reply = await _ask(relay[1], query)

    assert reply[-4:] == bytes((1, 1, 1, 10))


async def test_too_many_forged_answers_end_the_question(relay: Relay, server: Server) -> None:
    server.lies = [b"\x00"] * (resolver.STRAY_ANSWERS_MAX + 1)

    reply = await _ask(relay[1], _query("web.netlab.test"))

    assert reply[3] & 0x0F == 2


async def test_an_answer_that_points_to_a_closed_address_is_withheld(relay: Relay) -> None:
    reply = await _ask(relay[1], _query("rebind.netlab.test"))

    assert reply[3] & 0x0F == 0
    assert reply[6:8] == b"\x00\x00"
    assert relay[0].withheld == 1


async def test_ipv6_addresses_are_not_asked_for(relay: Relay, server: Server) -> None:
    reply = await _ask(relay[1], _query("web.netlab.test", kind=28))

    assert reply[6:8] == b"\x00\x00"
    assert server.asked == []


async def test_what_is_no_query_gets_an_error_and_goes_nowhere(relay: Relay, server: Server) -> None:
    reply = await _ask(relay[1], b"\x12\x34" + bytes(10))

    assert reply[3] & 0x0F == 1
    assert server.asked == []


async def test_without_an_answer_upstream_the_asker_is_told(relay: Relay, server: Server) -> None:
    server.transport.close()
    await asyncio.sleep(0)

    reply = await _ask(relay[1], _query("web.netlab.test"))

    assert reply[3] & 0x0F == 2


async def test_the_next_name_server_is_asked_when_the_first_is_dead(server: Server) -> None:
    port = _free_port()
    relay = Resolver(
        LOOPBACK, SystemClock(), SystemEntropy(), [f"127.0.0.1:{_free_port()}", f"127.0.0.1:{server.port}"]
    )
    await relay.start(port)

    reply = await _ask(port, _query("web.netlab.test"))

    await relay.stop()
    assert reply[-4:] == bytes((1, 1, 1, 10))


async def test_beyond_its_rate_a_sandbox_is_refused_at_once(relay: Relay, server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        asker.setblocking(False)
        asker.connect(("127.0.0.1", relay[1]))
        codes: list[int] = []
        for _ in range(8):
            for _ in range(100):
                asker.send(_query("web.netlab.test"))
            await asyncio.sleep(0.1)
            codes += _codes(asker)

    assert codes.count(2) >= 50
    assert codes.count(0) >= resolver.QUERIES_PER_SECOND_MAX / 2


async def test_queries_in_flight_are_limited(relay: Relay, server: Server) -> None:
    server.silent = True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setblocking(False)
        asker.connect(("127.0.0.1", relay[1]))
        for _ in range(resolver.QUERIES_IN_FLIGHT_PER_SANDBOX_MAX + 30):
            asker.send(_query("web.netlab.test"))
        await asyncio.sleep(0.3)
        codes = _codes(asker)

    assert len(server.asked) == resolver.QUERIES_IN_FLIGHT_PER_SANDBOX_MAX
    assert codes == [2] * 30


async def test_connections_of_one_sandbox_are_limited(relay: Relay) -> None:
    opened = [
        await asyncio.open_connection("127.0.0.1", relay[1]) for _ in range(resolver.CONNECTIONS_PER_SANDBOX_MAX + 1)
    ]

    said = await asyncio.wait_for(opened[-1][0].read(), 5)

    for _, writer in opened:
        writer.close()
    assert said == b""


async def test_the_hosts_name_servers_are_followed_when_they_change(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 1.2.3.4\nnameserver 127.0.0.1\n")
    relay = Resolver(LOOPBACK, SystemClock(), SystemEntropy(), None, file)
    before = relay.upstreams()

    file.write_text("nameserver 5.6.7.8\nnameserver 9.9.9.9\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n")

    assert before == [("1.2.3.4", 53)]  # never the relay itself
    assert relay.upstreams() == [("5.6.7.8", 53), ("9.9.9.9", 53), ("8.8.8.8", 53)]
    file.unlink()
    assert relay.upstreams() == []


async def test_starting_twice_and_stopping_twice_is_quiet(relay: Relay) -> None:
    await relay[0].start(relay[1])
    await relay[0].stop()
    await relay[0].stop()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("1.2.3.4", ("1.2.3.4", 53)),
        ("1.2.3.4:5353", ("1.2.3.4", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
        ("fe80::1%eth0", ("fe80::1%eth0", 53)),
    ],
)
def test_upstreams_are_an_address_and_perhaps_a_port(text: str, parsed: tuple[str, int]) -> None:
    assert parse_upstream(text) == parsed


@pytest.mark.parametrize("text", ["", "dns.example", "1.2.3.4:0", "1.2.3.4:x", "1.2.3.4:65536"])
def test_anything_else_is_no_upstream(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_upstream(text)
    assert not isinstance(caught.value, Malformed)


def _query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes((len(each),)) + each.encode() for each in name.split("."))
    return (
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00" + kind.to_bytes(2, "big") + b"\x00\x01"
    )


async def _ask(port: int, query: bytes) -> bytes:
    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(5)
            asker.connect(("127.0.0.1", port))
            asker.send(query)
            return asker.recv(65535)

    return await asyncio.to_thread(ask)


def _codes(asker: socket.socket) -> list[int]:
    codes = []
    while True:
        try:
            codes.append(asker.recv(4096)[3] & 0x0F)
        except BlockingIOError:
            return codes


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
