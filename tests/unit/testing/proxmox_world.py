"""A simulated cluster on virtual time, for the tests of its rules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentlab.base.entropy import SeededEntropy
from agentlab.base.tasks import TaskScope
from agentlab.testing.proxmox.access import ROOT, Token
from agentlab.testing.proxmox.api import Api
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.direct import Direct
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.setup import Setup
from agentlab.testing.proxmox.simulated_guests import SimulatedGuests
from agentlab.testing.simloop import SimClock, SimLoop

VMS = "/nodes/pve1/qemu"


@dataclass(kw_only=True)
class Sim:
    """The cluster, somebody with few rights, and root's token."""

    cluster: Cluster
    setup: Setup
    guests: SimulatedGuests
    api: Api
    token: Direct
    root: Direct

    async def clone(self, newid: int, **params: Any) -> str:
        """How a linked clone of the template ended."""
        return await self.token.done("POST", f"{VMS}/9000/clone", newid=newid, pool="agentlab", **params)


def simulate(
    story: Callable[[Sim], Awaitable[Any]],
    *,
    version: str = "9.2",
    nodes: Sequence[str] = ("pve1",),
    seed: int = 0,
    latency: Latency | None = None,
    privs: Sequence[str] | None = None,
) -> Any:
    """Run a story to its end on virtual time; what it returns."""
    loop = SimLoop()

    async def told() -> Any:
        clock, entropy = SimClock(loop), SeededEntropy(seed)
        async with TaskScope("cluster") as scope:
            used = latency or Latency.none()
            guests = SimulatedGuests(clock=clock, boot_s=used.boot_s)
            cluster = Cluster(
                version=version, nodes=nodes, clock=clock, entropy=entropy, scope=scope, guests=guests, latency=used
            )
            cluster.access.users[ROOT].tokens["t"] = Token(secret="s", privsep=0)
            setup, api = Setup(cluster), Api(cluster)
            setup.add_storage("local")
            setup.add_template(9000, "local", 3 << 30)
            token = Direct(api, setup.token(privs, user="agentlab@pve", pool="agentlab"))
            root = Direct(api, "root@pam!t=s")
            return await story(Sim(cluster=cluster, setup=setup, guests=guests, api=api, token=token, root=root))

    try:
        return loop.run_until_complete(told())
    finally:
        loop.close()
