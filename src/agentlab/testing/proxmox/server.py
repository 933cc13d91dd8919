"""A simulated Proxmox VE cluster behind real TLS sockets, set up for tests."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from agentlab.base.clock import Clock, SystemClock
from agentlab.base.entropy import Entropy, SeededEntropy
from agentlab.base.tasks import TaskScope
from agentlab.testing.proxmox.access import ROOT
from agentlab.testing.proxmox.api import Api
from agentlab.testing.proxmox.certificates import fingerprint, make_authority, make_certificate
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.codec import Answer, Request
from agentlab.testing.proxmox.connection import IDLE_S_MAX, Connection
from agentlab.testing.proxmox.guests import GuestHost
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.setup import Setup
from agentlab.testing.proxmox.simulated_guests import SimulatedGuests
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.storage import Store
from agentlab.testing.proxmox.units import GIB

HOST = "127.0.0.1"


class ProxmoxSim:
    """`async with ProxmoxSim(...) as sim:` serves a cluster on 127.0.0.1, one port per node.

    With `folder` the storage `local` keeps real files there.  `guests` runs what is started; simulated guests
    without it.  `firewall`: that of the datacenter is on.  Leaving ends all tasks and connections.
    """

    def __init__(
        self,
        *,
        version: str = "9.2",
        nodes: Sequence[str] = ("pve1",),
        seed: int = 0,
        latency: Latency | None = None,
        guests: GuestHost | None = None,
        folder: Path | None = None,
        port: int = 0,
        clock: Clock | None = None,
        idle_s: float = IDLE_S_MAX,
        firewall: bool = True,
    ) -> None:
        self.ca_pem, self.endpoints, self.fingerprints = "", dict[str, str](), dict[str, str]()
        self._version, self._nodes, self._latency = version, tuple(nodes), latency or Latency.none()
        self._clock: Clock = clock or SystemClock()
        self._entropy: Entropy = SeededEntropy(seed)
        self._guests = guests or SimulatedGuests(clock=self._clock, boot_s=self._latency.boot_s)
        self._folder, self._port, self._idle_s = folder, port, idle_s
        self._firewall = firewall
        self._stack = AsyncExitStack()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        scope = await self._stack.enter_async_context(TaskScope("proxmox"))
        self.cluster = Cluster(
            version=self._version,
            nodes=self._nodes,
            clock=self._clock,
            entropy=self._entropy,
            scope=scope,
            guests=self._guests,
            latency=self._latency,
        )
        await self._guests.opened(self.cluster)
        self._stack.push_async_callback(self._guests.closed)
        self.api, self.setup = Api(self.cluster), Setup(self.cluster)
        self.setup.add_storage("local", folder=self._folder)
        if self._firewall:
            self.cluster.firewall.options["enable"] = 1
        self._keys = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="proxmox-sim-")))
        self.ca_pem = await make_authority(self._keys, self.cluster.name)
        for node in self._nodes:
            await self._listen(node)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        """Where the first node listens."""
        return self.endpoints[self._nodes[0]]

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the first node's certificate."""
        return self.fingerprints[self._nodes[0]]

    @property
    def administrator(self) -> tuple[str, str]:
        """User and password for POST /access/ticket."""
        password = self.cluster.access.users[ROOT].password
        assert password is not None
        return ROOT, password

    def token(self, privs: Iterable[str] | None = None, *, user: str = "agentlab@pve", pool: str = "agentlab") -> str:
        """What a correct set-up makes: user, roles, pool, token and the rights of both; `user@realm!id=secret`.

        `privs` are all that is granted anywhere; each path gets those that belong there.
        """
        return self.setup.token(privs, user=user, pool=pool)

    def add_template(
        self,
        vmid: int = 9000,
        storage: str = "local",
        disk_bytes: int = 3 * GIB,
        *,
        node: str | None = None,
        image: Path | None = None,
    ) -> Vm:
        """A template with a guest agent and a NIC on vmbr0 whose firewall is on; tokens may clone it.

        `image` becomes its disk where the storage keeps real files.
        """
        return self.setup.add_template(vmid, storage, disk_bytes, node, image)

    def add_storage(self, name: str, kind: str = "dir", *, shared: bool = False, folder: Path | None = None) -> Store:
        """One more storage for images; tokens may use it."""
        return self.setup.add_storage(name, kind, shared=shared, folder=folder)

    async def change_certificate(self, node: str | None = None, *, expired: bool = False) -> str:
        """Give a node another certificate, for connections to come; its fingerprint."""
        name = node or self._nodes[0]
        file = await make_certificate(self._keys, name, expired)
        self._contexts[name].load_cert_chain(file)
        self._note(name, file)
        return self.fingerprints[name]

    def drop_connections(self) -> None:
        """Reset every connection that is open now."""
        for writer in tuple(self._connections):
            writer.transport.abort()

    async def _listen(self, node: str) -> None:
        file = await make_certificate(self._keys, node)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        self._contexts[node] = context
        port = self._port if node == self._nodes[0] else 0
        server = await asyncio.start_server(
            lambda reader, writer: self._connected(node, reader, writer), HOST, port, ssl=context, backlog=512
        )
        self._stack.callback(server.close)
        self._stack.callback(self.drop_connections)
        self.endpoints[node] = f"https://{HOST}:{server.sockets[0].getsockname()[1]}"
        self._note(node, file)

    def _note(self, node: str, file: Path) -> None:
        self.fingerprints[node] = self.cluster.nodes[node].fingerprint = fingerprint(file)

    async def _connected(self, node: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def handle(request: Request) -> Answer:
            return await self.api.handle(request, served_by=node)

        self._connections.add(writer)
        try:
            if self.cluster.nodes[node].absence is None:
                await Connection(reader, writer, handle, self._idle_s).serve()
        finally:
            self._connections.discard(writer)
            writer.transport.abort() if self.cluster.nodes[node].absence else writer.close()
