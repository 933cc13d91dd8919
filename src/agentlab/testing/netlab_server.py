"""The other end of a NetLab: echo, HTTP and DNS on many addresses at once.  Run by NetLab.

TCP 80: HTTP, answers with the asker's address.  TCP 7, 22, 8006 and UDP 7: one line with the asker's address.
UDP and TCP 53: names below `netlab.test` (see NAMES).  Prints `ready` once everything listens.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Sequence
from typing import cast

TCP_PORTS = (7, 22, 8006)
NAMES = {
    "web.netlab.test": ("1.1.1.10",),
    "intranet.netlab.test": ("192.168.50.9",),
    "rebind.netlab.test": ("1.1.1.10", "127.0.0.1"),
    "many.netlab.test": tuple(f"1.1.2.{number}" for number in range(1, 101)),
}


def dns_reply(query: bytes, bytes_max: int) -> bytes:
    """Answer a question from NAMES; what does not fit is cut down and marked truncated."""
    end = query.index(0, 12) + 5
    labels, offset = list[str](), 12
    while query[offset]:
        labels.append(query[offset + 1 : offset + 1 + query[offset]].decode("ascii", "replace").lower())
        offset += 1 + query[offset]
    name, kind = ".".join(labels), int.from_bytes(query[end - 4 : end - 2], "big")
    known = name in NAMES
    addresses = NAMES.get(name, ()) if kind == 1 else ()
    records = b"".join(
        b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes(map(int, address.split("."))) for address in addresses
    )
    flags = 0x8180 | (0 if known else 3)
    head = query[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0) + query[12:end]
    if len(head) + len(records) > bytes_max:
        return query[:2] + struct.pack("!HHHHH", flags | 0x0200, 1, 0, 0, 0) + query[12:end]
    return head + records


class _Echo(asyncio.DatagramProtocol):
    """Answers datagrams from the address that they were sent to."""

    def __init__(self, port: int) -> None:
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(dns_reply(data, 512) if self._port == 53 else f"{addr[0]}\n".encode(), addr)


async def _greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"{writer.get_extra_info('peername')[0]}\n".encode())
    await writer.drain()
    writer.close()


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = f"{writer.get_extra_info('peername')[0]}\n"
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    await writer.drain()
    writer.close()


async def _dns(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    length = int.from_bytes(await reader.readexactly(2), "big")
    reply = dns_reply(await reader.readexactly(length), 65535)
    writer.write(len(reply).to_bytes(2, "big") + reply)
    await writer.drain()
    writer.close()


async def serve(addresses: Sequence[str], dns_addresses: Sequence[str]) -> None:
    """Listen everywhere, say so, and go on until killed."""
    loop = asyncio.get_running_loop()
    for port, handler in ((80, _http), *((port, _greet) for port in TCP_PORTS)):
        await asyncio.start_server(handler, "0.0.0.0", port)
    for address in addresses:
        await loop.create_datagram_endpoint(lambda: _Echo(7), local_addr=(address, 7))
    for address in dns_addresses:
        await asyncio.start_server(_dns, address, 53)
        await loop.create_datagram_endpoint(lambda: _Echo(53), local_addr=(address, 53))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    split = sys.argv.index("--dns")
    asyncio.run(serve(sys.argv[1:split], sys.argv[split + 1 :]))
