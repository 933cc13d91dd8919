"""A served API: real services, store and sockets, over the fake backend and network."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentlab.api.identity import Identity, Role
from agentlab.api.server import ApiServer
from agentlab.backends.interface import Capability, Probe
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.base.redaction import Redaction
from agentlab.base.tasks import TaskScope
from agentlab.daemon.backends import Entrance
from agentlab.daemon.build import Daemon, build
from agentlab.daemon.ground import Ground
from agentlab.daemon.settings import load_settings
from agentlab.model.failure import Failure
from agentlab.model.ids import Digest
from agentlab.model.machine import SandboxState
from agentlab.model.template import Template
from agentlab.secrets.seal import Seal
from agentlab.services.profiles import Profiles
from agentlab.services.sandboxes import BackendEntry
from agentlab.store import meta, sandboxes, templates
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database, Tx
from agentlab.store.outputs import Outputs
from agentlab.templates.build import TemplateBuilder
from agentlab.templates.image import ImageBuilder
from agentlab.testing.fake_backend import FakeBackend
from agentlab.testing.fake_network import FakeNetwork

DIGEST = Digest("ab" * 32)


class Served:
    """A daemon without its guests' door, and requests to it as anybody."""

    def __init__(self, daemon: Daemon, ground: Ground, socket: Path) -> None:
        self.daemon, self.ground, self.socket = daemon, ground, socket
        self.services = daemon.services
        self.server: ApiServer = daemon.api
        self.caller: Identity | None = None
        dispatcher = self.server.dispatcher
        identify = dispatcher._identify
        # Who calls is what the kernel says, or whom the test wants to be: the sockets of one process have one uid.
        setattr(dispatcher, "_identify", lambda peer: self.caller or identify(peer))  # noqa: B010

    def become(self, name: str, role: Role) -> None:
        """Who calls from now on."""
        self.caller = Identity(name=name, role=role)

    async def fail(self, sandbox: str) -> None:
        """A sandbox could not be made: as the reconciler would record it."""
        now = self.ground.clock.now()
        failure = Failure(code="backend/refused", step="create", cause="no room", remedy="Make room.", at=now)

        def write(tx: Tx) -> None:
            sandboxes.transition(tx, sandbox, SandboxState.FAILED, now, failure=failure)

        await self.ground.database.write(write)

    async def request(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers and body."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        lines = [f"{method} {target} HTTP/1.1", "host: agentlab", "connection: close"]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        # A connection that was switched to another protocol stays open: its head is all of the answer.
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 101"):
            answer += await reader.read()
        writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        found = dict(line.split(": ", 1) for line in rest)
        return int(first.split()[1]), found, content

    async def json(self, method: str, target: str, value: Any = None, **headers: str) -> tuple[int, Any]:
        """One request with a JSON body, or none: status and plain value."""
        body = None if value is None else json.dumps(value).encode()
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        status, _, content = await self.request(method, target, body, named)
        return status, json.loads(content) if content else None


@asynccontextmanager
async def serving(folder: Path, *, reconcile: bool = True) -> AsyncIterator[Served]:
    """A daemon below `folder`, from here to the end of the context."""
    settings = load_settings(None, {}, os.getuid(), folder)
    for each in (settings.state_dir, settings.run_dir, settings.cache_dir):
        each.mkdir(parents=True, exist_ok=True)
    clock, entropy = SystemClock(), SystemEntropy()
    profiles = Profiles([])
    profiles.load()
    database = Database.open(settings.state_dir / "agentlab.db", durable=False)
    installation = await database.write(lambda tx: meta.installation(tx, entropy))
    await database.write(lambda tx: templates.put(tx, _template()))
    backend, network = FakeBackend(entropy=entropy), FakeNetwork(entropy=entropy)
    network.installation = installation
    probe = Probe(findings=(), capabilities=frozenset(Capability))
    builder = TemplateBuilder(settings.state_dir, settings.cache_dir, clock, recipe_dirs=[])
    ground = Ground(
        clock=clock,
        entropy=entropy,
        state_dir=settings.state_dir,
        guest_dir=settings.run_dir,
        installation=installation,
        database=database,
        blobs=Blobs(settings.state_dir / "blobs", clock, entropy, disk_reserve_bytes=0),
        outputs=Outputs(settings.state_dir / "outputs"),
        seal=Seal.open(settings.state_dir / "keys"),
        redaction=Redaction(),
        backends={"fake": BackendEntry(backend=backend, network=network, probe=probe)},
        entrance=Entrance(),
            default_backend="fake",
        subnet="10.77.0.0/16",
        builder=builder,
        images=ImageBuilder(builder, settings.state_dir, clock),
    )  # fmt: skip

    async def reload() -> list[str]:
        problem = profiles.reload()
        return [] if problem is None else [str(problem)]

    try:
        async with TaskScope("daemon") as scope:
            daemon = build(settings, ground, profiles, scope, reload)
            await daemon.api.start()
            if reconcile:
                scope.start(daemon.reconciler.run(), "reconcile")
            try:
                yield Served(daemon, ground, settings.socket)
            finally:
                daemon.services.events.close()
                await daemon.api.stop()
    finally:
        await database.close()


def _template() -> Template:
    return Template(
        name="base", digest=DIGEST, recipe_digest=DIGEST, state="ready", bytes_count=1, built_at=0.0, build_s=1.0
    )
