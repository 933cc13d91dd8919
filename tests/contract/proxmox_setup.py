"""A fresh simulated cluster, and somebody who sets it up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from agentlab.backends.proxmox.certificate import Endpoint, Trust
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.setup_steps import Call
from agentlab.backends.proxmox.transport import Transport
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SeededEntropy
from agentlab.base.secret import Secret
from agentlab.daemon.cluster_schema import endpoint_of
from agentlab.daemon.setup_proxmox import Outcome, Request, set_up
from agentlab.testing.proxmox.server import ProxmoxSim

GRANTEE = Grantee(token="agentlab@pve!daemon", pool="agentlab", storages=("thin",), uploads=("local",))


@dataclass
class Scripted:
    """Says what it was told to say, and keeps what it hears."""

    password: str
    answers: list[bool] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)

    def say(self, text: str = "") -> None:
        self.heard.append(text)

    def secret(self, what: str) -> Secret:
        self.heard.append(what)
        return Secret(self.password)

    def confirm(self, question: str, otherwise: str) -> None:
        self.heard.append(question)
        if not self.answers.pop(0):
            raise click.Abort


@dataclass
class Bench:
    """A cluster, and set-up as it is asked for by default: with `--yes`."""

    sim: ProxmoxSim
    folder: Path
    person: Scripted

    @property
    def endpoint(self) -> Endpoint:
        host, port = endpoint_of(self.sim.url)
        return Endpoint(host=host, port=port)

    @property
    def trust(self) -> Trust:
        return Trust(fingerprints=frozenset({self.sim.fingerprint}))

    def request(self, **changes: Any) -> Request:
        usual = Request(
            endpoints=[self.endpoint],
            trust=self.trust,
            admin="root@pam",
            grantee=GRANTEE,
            token_file=self.folder / "proxmox.token",
            templates={},
            yes=True,
        )
        return replace(usual, **changes)

    async def set_up(self, **changes: Any) -> Outcome:
        return await set_up(self.request(**changes), self.person, SystemClock(), SeededEntropy(1))

    async def as_administrator(self, calls: Sequence[Call]) -> list[Any]:
        """What a person does on a node."""
        transport = await self._logged_in()
        try:
            return [await transport.call(each.method, each.path, each.params) for each in calls]
        finally:
            await transport.close()

    async def _logged_in(self) -> Transport:
        from agentlab.backends.proxmox.administrator import Address, log_in

        address = Address(endpoints=[self.endpoint], trust=self.trust, clock=SystemClock(), entropy=SeededEntropy(2))
        return await log_in(address, "root@pam", Secret(self.sim.administrator[1]))

    def written(self) -> list[tuple[str, str]]:
        """The calls so far that change something, but for log-ins."""
        return [
            (method, path) for method, path in self.sim.cluster.calls if method != "GET" and path != "/access/ticket"
        ]


@asynccontextmanager
async def bench(folder: Path, version: str = "9.2", nodes: Sequence[str] = ("pve1",)) -> AsyncIterator[Bench]:
    """A cluster with a storage of files and one for disks, its firewall on."""
    async with ProxmoxSim(version=version, nodes=nodes) as sim:
        sim.add_storage("thin", "lvmthin")
        sim.cluster.firewall.options["enable"] = 1
        yield Bench(sim=sim, folder=folder, person=Scripted(password=sim.administrator[1]))
