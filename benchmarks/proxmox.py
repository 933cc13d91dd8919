"""A cluster: what the daemon adds to Proxmox VE's own time, a burst of a hundred, and a look at a thousand VMs.

On a simulated Proxmox VE with latencies as they were measured on a real one, on virtual time: what is counted is how
long and how often the daemon lets the cluster wait, not how fast this machine simulates one.  The floors are the sum of
the cluster's own tasks, and the sum of the clones, of which a storage makes one after the other.  The look is in real
time: processor time of one listing, less what the simulated cluster needs to answer.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from harness import percentile, report

from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.machine import SandboxState
from agentlab.model.sandbox import Mark, Sandbox
from agentlab.services.requests import NewSandbox
from agentlab.store import sandboxes
from agentlab.testing.proxmox_world import BOOT_S, TEMPLATE, ClusterWorld
from agentlab.testing.world import LIMITS

COLD, BURST, VMS, RUNS = 12, 100, 1000, 10
WAIT_S_MAX = 1800.0
_POLL = re.compile(r"/tasks(/[^/]+/(status|log))?$")


class Bench(ClusterWorld):
    """The world, with a watch at what the cluster itself takes: `spent` has seconds by kind of work."""

    limits = replace(LIMITS, sandboxes_max=2 * BURST, reconcile_interval_s=5.0)

    async def _make_ground(self) -> None:
        await super()._make_ground()
        self.spent: Counter[str] = Counter()
        original = self.cluster.spend

        async def watched(kind: str) -> None:
            began = self.clock.monotonic()
            await original(kind)
            self.spent[kind] += self.clock.monotonic() - began  # type: ignore[assignment]

        setattr(self.cluster, "spend", watched)  # noqa: B010
        self.cluster.tasks._spend = watched

    def own_s(self) -> float:
        """What its tasks have taken so far; to answer calls is not among it."""
        tasks = ("fork", "reap", "resize")
        return sum(took for kind, took in self.spent.items() if kind.startswith("qm") or kind in tasks)

    def ready(self) -> list[Sandbox]:
        return [row for row in self.database.read(sandboxes.living) if row.state is SandboxState.READY]

    async def until(self, reached: Callable[[], bool]) -> None:
        waited = 0.0
        while not reached() and waited < WAIT_S_MAX:
            await asyncio.sleep(0.02)
            waited += 0.02

    async def ask(self) -> SandboxId:
        assert self.core is not None
        return (await self.core.sandboxes.create("uid:0", NewSandbox(template="base", ttl_s=7200), None)).id


def in_world(story: Callable[[Bench], Awaitable[Any]]) -> Any:
    """What a story on virtual time, without misfortunes, told."""
    told: list[Any] = []
    world = Bench(1, fault_rate=0.0)

    async def scenario(_: Any) -> None:
        told.append(await story(world))

    world.run(scenario)
    return told[0]


async def cold(world: Bench) -> tuple[list[float], list[int], list[int]]:
    """One after the other: seconds added to the cluster's own, calls beside looks at tasks, and those."""
    added, calls, polls = [], [], []
    for number in range(COLD):
        before, own, began = len(world.cluster.calls), world.own_s(), world.clock.monotonic()
        await world.ask()
        await world.until(lambda number=number: len(world.ready()) == number + 1)  # type: ignore[misc]
        took = world.clock.monotonic() - began
        made = world.cluster.calls[before:]
        looks = [path for method, path in made if method == "GET" and (_POLL.search(path) or is_tick(path))]
        added.append(took - (world.own_s() - own) - BOOT_S)
        # The invitation is taken out of the configuration once it was redeemed; nobody waits for that.
        afterwards = sum(1 for method, path in made if method == "PUT" and path.endswith("/config")) - 1
        calls.append(len(made) - len(looks) - afterwards)
        polls.append(sum(1 for path in looks if not is_tick(path)))
    return added, calls, polls


def is_tick(path: str) -> bool:
    """The two calls of a look at everything, which are made whether or not a sandbox is."""
    return path in ("/cluster/resources", "/cluster/tasks")


async def burst(world: Bench) -> tuple[int, float, float, int]:
    """A hundred at once: how many became ready, seconds, what the storage's lock forces, most calls at once."""
    began = world.clock.monotonic()
    await asyncio.gather(*(world.ask() for _ in range(BURST)))
    await world.until(lambda: len(world.ready()) == BURST)
    took = world.clock.monotonic() - began
    return len(world.ready()), took, world.spent["qmclone"], world.cluster.calls_in_flight_max


async def look(world: Bench) -> tuple[list[float], list[float], int]:
    """Milliseconds of processor time of one listing with 1,000 VMs of ours, those of the cluster, and its calls."""
    installation = world._records.installation
    await world.kill()  # a daemon would take them for orphans, which nobody asked for
    for number in range(VMS):
        vmid, sandbox = 30_000 + number, SandboxId(f"sb-{number + 22222222:08d}".translate(str.maketrans("01", "zy")))
        mark = Mark(installation=InstallationId(installation), sandbox=sandbox, nonce="n")
        world.cluster.human_clone(TEMPLATE, vmid, name=sandbox)
        world.cluster.access.pools["agentlab"].vms.add(vmid)
        world._records.write_mark(mark)
        world._records.write(sandbox, record(vmid))
    await asyncio.sleep(60)  # until the cluster shows them all
    ours, floor, calls = [], [], 0
    for _ in range(RUNS):
        before = len(world.cluster.calls)
        began = time.process_time()
        found = await world.proxmox.list()
        ours.append((time.process_time() - began) * 1000)
        calls = len(world.cluster.calls) - before
        assert len(found) == VMS, len(found)
        began = time.process_time()
        for path in ("/cluster/resources", "/cluster/tasks"):
            await world.proxmox._cluster.transport.call("GET", path)
        floor.append((time.process_time() - began) * 1000)
    return ours, floor, calls


def record(vmid: int) -> Any:
    from agentlab.backends.proxmox.records import VmRecord

    return VmRecord(
        vmid=vmid, node="pve1", template=TEMPLATE, storage="local", memory_bytes=1 << 30, cpus=1.0, disk_bytes=1 << 30,
        made=True, identified=True,
    )  # fmt: skip


def main() -> None:
    added, calls, polls = in_world(cold)
    report(
        what="cluster: seconds that a cold sandbox takes beyond the cluster's own tasks and its boot",
        n=len(added),
        p50_s=statistics.median(added),
        p99_s=percentile(added, 99),
        reach="p50 <= 0.5 s",
    )
    report(
        what="cluster: calls of a cold sandbox from create to ready",
        n=len(calls),
        p50=statistics.median(calls),
        most=max(calls),
        task_polls_p50=statistics.median(polls),
        reach="<= 8 beside looks at tasks",
    )
    ready, took, forced, in_flight = in_world(burst)
    report(
        what="cluster: burst of creations, realistic latencies",
        n=BURST,
        succeeded=ready,
        took_s=took,
        forced_by_storage_s=forced,
        ratio=took / forced,
        calls_in_flight_max=in_flight,
        reach="all succeed, ratio <= 1.2",
    )
    ours, floor, count = in_world(look)
    report(
        what=f"cluster: a look at {VMS} VMs of ours",
        n=RUNS,
        calls=count,
        cpu_ms=statistics.median(ours) - statistics.median(floor),
        cpu_ms_with_the_simulated_cluster=statistics.median(ours),
        reach="2 calls, <= 150 ms",
    )


if __name__ == "__main__":
    main()
