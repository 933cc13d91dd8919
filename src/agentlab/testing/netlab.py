"""A network of one's own to test isolation with real packets: a host, its LAN, a tailnet, metadata, an internet.

    async with NetLab() as lab:
        with lab.on_host():                          # this thread, and what it starts, is on the host from here
            network = BridgeNetwork(…, upstreams=[NetLab.NAME_SERVER])
        sandbox = await lab.new_sandbox()            # a network namespace with a sleeping process: sandbox.pid
        lab.tcp(sandbox, "1.1.1.10", 80)

Daemons run in it with `ip netns exec <lab.host_name> …`.  Everything lives in network namespaces, is named uniquely
and goes when the context ends.  Needs root.  Two namespaces make the topology:

    host    192.168.50.2/24 dev up0   the way out; default route via 192.168.50.1
            100.64.0.2/10   dev ts0   a tailnet
            11.0.0.2/24     dev pub0  a public network that the host is directly on
            servers on every address of it: TCP 22, 80, 8006, 7; UDP 7
    world   everyone else: LAN, TAILNET, METADATA, PRIVATE, NEIGHBOUR, INTERNET addresses, with servers on each;
            the name server is NAME_SERVER; the way back to 10.0.0.0/8 leads to the host, so that what is not
            filtered does get an answer
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agentlab.base import process
from agentlab.base.entropy import SystemEntropy
from agentlab.network import namespace

T = TypeVar("T")

READY_TIMEOUT_S = 20.0
SANDBOX_LIFE_S = 900  # a forgotten sandbox ends by itself
ANSWER_TIMEOUT_S = 1.0

_TOPOLOGY = """\
link add up0 netns {host} type veth peer name lan0 netns {world}
link add ts0 netns {host} type veth peer name tail0 netns {world}
link add pub0 netns {host} type veth peer name near0 netns {world}
"""
_HOST = """\
link set lo up
addr add 192.168.50.2/24 dev up0
addr add 100.64.0.2/10 dev ts0
addr add 11.0.0.2/24 dev pub0
link set up0 up
link set ts0 up
link set pub0 up
route add default via 192.168.50.1
"""
_WORLD = """\
link set lo up
addr add 192.168.50.1/24 dev lan0
addr add 100.64.0.1/10 dev tail0
addr add 11.0.0.9/24 dev near0
link set lan0 up
link set tail0 up
link set near0 up
route add 10.77.0.0/16 via 192.168.50.2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A network namespace, told by a process in it."""

    pid: int
    name: str


class NetLab:
    """The topology above; an async context manager."""

    NAME_SERVER = "1.1.1.53"
    INTERNET = ("1.1.1.10", "8.8.4.4", "11.22.33.44")
    NEIGHBOUR = ("11.0.0.9",)  # public, but on the host's own network
    LAN = ("192.168.50.1", "192.168.50.9", "192.168.1.1")
    TAILNET = ("100.64.0.9", "100.100.100.100")
    METADATA = ("169.254.169.254",)
    PRIVATE = ("10.1.2.3", "10.255.255.53", "172.16.5.5", "172.31.9.9", "198.18.0.9")
    HOST = ("192.168.50.2", "100.64.0.2", "11.0.0.2")

    def __init__(self) -> None:
        word = SystemEntropy().word(6)
        self.host_name, self.world_name = f"nl{word}h", f"nl{word}w"
        self.host = self.world = Place(pid=0, name="")
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> NetLab:
        try:
            await self._build()
        except BaseException:
            await self._undo.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """The calling thread, and the processes and threads that it starts, are on the host until the end."""
        with _visit(self.host.pid):
            yield

    async def new_sandbox(self) -> Place:
        """A fresh network namespace with nothing but loopback, held by a sleeping process."""
        argv = ("unshare", "--net", "sleep", str(SANDBOX_LIFE_S))
        started = await process.spawn(argv)
        self._undo.push_async_callback(_end, started)
        # `unshare` has become `sleep` only once the namespace is made.
        async with asyncio.timeout(READY_TIMEOUT_S):
            while _comm(started.pid) != "sleep":  # noqa: ASYNC110 - nothing tells but looking
                await asyncio.sleep(0.002)
        return Place(pid=started.pid, name=f"sandbox {started.pid}")

    def socket(self, place: Place, kind: int, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
        """A socket that lies in that place's network, wherever it is used from."""
        made = self.run_in(place, lambda: socket.socket(family, kind, protocol))
        made.settimeout(ANSWER_TIMEOUT_S)
        return made

    def run_in(self, place: Place, work: Callable[[], T]) -> T:
        """Do something in that place's network, in a thread made for it; blocks."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(_entered, place.pid, work).result()

    def tcp(self, place: Place, address: str, port: int) -> str:
        """`open <who the server saw>`, `refused <error>` or `silent`."""
        with self.socket(place, socket.SOCK_STREAM) as asker:
            try:
                asker.connect((address, port))
                asker.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
                said = asker.recv(4096).decode()
            except TimeoutError:
                return "silent"
            except OSError as error:
                return f"refused {error.strerror}"
        return f"open {said.split()[-1]}" if said.split() else "refused closed"

    def udp(self, place: Place, address: str, port: int = 7) -> str:
        """The same over UDP."""
        with self.socket(place, socket.SOCK_DGRAM) as asker:
            try:
                asker.connect((address, port))
                asker.send(b"hello")
                return f"open {asker.recv(4096).decode().strip()}"
            except TimeoutError:
                return "silent"
            except OSError as error:
                return f"refused {error.strerror}"

    def ping(self, place: Place, address: str) -> str:
        """The same by an ICMP echo request."""
        echo = bytes.fromhex("08 00 f7 fd 00 01 00 01".replace(" ", ""))
        with self.socket(place, socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP) as asker:
            try:
                asker.connect((address, 0))
                asker.send(echo)
                while True:
                    kind = asker.recv(4096)[20]
                    if kind == 0:
                        return "open"
                    if kind == 3:
                        return "refused unreachable"
            except TimeoutError:
                return "silent"
            except OSError as error:
                return f"refused {error.strerror}"

    async def on(self, place: Place, *argv: str, stdin: str = "") -> str:
        """Run a program in that place's network and return what it printed.  ProgramFailed if it fails."""
        program = ("nsenter", f"--net=/proc/{place.pid}/ns/net", "--", *argv)
        return (await process.run(program, stdin=stdin.encode(), timeout_s=30)).out.decode()

    async def _build(self) -> None:
        for name in (self.host_name, self.world_name):
            await process.run(("ip", "netns", "add", name))
            self._undo.push_async_callback(process.run, ("ip", "netns", "del", name), check=False)
        topology = _TOPOLOGY.format(host=self.host_name, world=self.world_name)
        await process.run(("ip", "-batch", "-"), stdin=topology.encode())
        await process.run(("ip", "-n", self.host_name, "-batch", "-"), stdin=_HOST.encode())
        extra = "".join(f"addr add {each}/32 dev lo\n" for each in self._world_addresses())
        await process.run(("ip", "-n", self.world_name, "-batch", "-"), stdin=(_WORLD + extra).encode())
        self.world = await self._serve(self.world_name, [*self._world_addresses(), "11.0.0.9"], [self.NAME_SERVER])
        self.host = await self._serve(self.host_name, list(self.HOST), [])

    def _world_addresses(self) -> list[str]:
        others = (self.INTERNET, self.LAN[1:], self.TAILNET, self.METADATA, self.PRIVATE, (self.NAME_SERVER,))
        return [address for group in others for address in group]

    async def _serve(self, name: str, addresses: list[str], dns_addresses: list[str]) -> Place:
        module = "agentlab.testing.netlab_server"
        argv = ("ip", "netns", "exec", name, sys.executable, "-m", module, *addresses, "--dns", *dns_addresses)
        server = await process.spawn(argv, stdout=asyncio.subprocess.PIPE)
        self._undo.push_async_callback(_end, server)
        assert server.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT_S):
            said = await server.stdout.readline()
        assert said == b"ready\n", f"the server of {name} did not start"
        return Place(pid=server.pid, name=name)


@contextmanager
def _visit(pid: int) -> Iterator[None]:
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespace.move_thread(there)
        yield
    finally:
        namespace.move_thread(here)
        os.close(there)
        os.close(here)


def _entered(pid: int, work: Callable[[], T]) -> T:
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespace.enter(descriptor)
    finally:
        os.close(descriptor)
    return work()


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def _end(started: asyncio.subprocess.Process) -> None:
    if started.returncode is None:
        started.kill()
    await started.wait()
