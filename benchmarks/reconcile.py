"""A thousand ready sandboxes in memory: how long one full reconcile pass takes, and what idling costs.

The whole core of the daemon (services, store on disk with its writer thread, both reconcilers) on a fake backend and
network, at the shipped interval.  The floor of a pass is what it must do at the least: one listing of the backend, one
of the network, and one reading of all rows.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from harness import percentile, report

from agentlab.backends.interface import Probe
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.base.redaction import Redaction
from agentlab.base.tasks import TaskScope
from agentlab.daemon.build import Core, build_core
from agentlab.daemon.ground import Ground
from agentlab.model.ids import Digest
from agentlab.model.machine import SandboxState
from agentlab.model.template import Template
from agentlab.secrets.seal import Seal
from agentlab.services.limits import Limits
from agentlab.services.profiles import Profiles
from agentlab.services.requests import NewSandbox
from agentlab.services.sandboxes import BackendEntry
from agentlab.store import meta, sandboxes, templates
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database
from agentlab.store.outputs import Outputs
from agentlab.templates.build import TemplateBuilder
from agentlab.testing.fake_backend import FakeBackend
from agentlab.testing.fake_network import FakeNetwork

SANDBOXES = 1000
RUNS = 30
IDLE_S = 20.0
DIGEST = Digest("ab" * 32)


async def ground(folder: Path, left: AsyncExitStack) -> Ground:
    clock, entropy = SystemClock(), SystemEntropy()
    database = Database.open(folder / "agentlab.db")
    left.push_async_callback(database.close)
    installation = await database.write(lambda tx: meta.installation(tx, entropy))
    base = Template(
        name="base", digest=DIGEST, recipe_digest=DIGEST, built_at=0.0, build_s=0.0, bytes_count=1, state="ready"
    )
    await database.write(lambda tx: templates.put(tx, base))
    backend, network = FakeBackend(installation=installation), FakeNetwork(installation=installation)
    probe = Probe(findings=(), capabilities=backend.capabilities, missing_guarantees=())
    outputs = Outputs(folder / "outputs")
    left.callback(outputs.close)
    return Ground(
        clock=clock,
        entropy=entropy,
        state_dir=folder,
        guest_dir=folder,
        installation=installation,
        database=database,
        blobs=Blobs(folder / "blobs", clock, entropy, disk_reserve_bytes=0),
        outputs=outputs,
        seal=Seal.open(folder / "keys"),
        redaction=Redaction(),
        backends={"oci": BackendEntry(backend=backend, probe=probe)},
        default_backend="oci",
        network=network,
        subnet=str(await network.open()),
        builder=TemplateBuilder(folder, folder / "cache", clock),
    )


async def all_ready(core: Core, on: Ground) -> None:
    for _ in range(SANDBOXES):
        await core.sandboxes.create("uid:0", NewSandbox(profile="yolo-ephemeral"), None)
    await core.reconciler.tick()
    assert await core.sandbox_reconciler.workers.idle(60)
    assert all(row.state is SandboxState.READY for row in on.database.read(sandboxes.living))


async def tick_ms(core: Core) -> float:
    began = time.perf_counter()
    await core.reconciler.tick()
    return (time.perf_counter() - began) * 1000


async def least_ms(on: Ground) -> float:
    began = time.perf_counter()
    await on.network.check()
    await on.network.list()
    await on.backends["oci"].backend.list()
    on.database.read(sandboxes.living)
    return (time.perf_counter() - began) * 1000


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(folder: Path) -> None:
    async with AsyncExitStack() as left:
        on = await ground(folder, left)
        profiles = Profiles([])
        profiles.load()
        scope = await left.enter_async_context(TaskScope("bench"))
        limits = Limits(sandboxes_max=SANDBOXES + 1)
        core = build_core(on, profiles, limits, scope)
        await all_ready(core, on)
        for _ in range(3):
            await tick_ms(core)
        pairs = [(await tick_ms(core), await least_ms(on)) for _ in range(RUNS)]
        ours, least = [each[0] for each in pairs], statistics.median(each[1] for each in pairs)
        p50, what = statistics.median(ours), f"reconcile: one pass over {SANDBOXES} sandboxes"
        p99 = percentile(ours, 99)
        report(what=what, n=RUNS, p50_ms=p50, p99_ms=p99, ratio=p50 / least, floor_p50_ms=least, reach="<= 100 ms")
        await idle(core, scope, limits)
        assert len(on.database.read(sandboxes.living)) == SANDBOXES


async def idle(core: Core, scope: TaskScope, limits: Limits) -> None:
    """The floor is a process of as many threads that does nothing at all."""
    running = scope.start(core.reconciler.run(), "reconcile")
    await asyncio.sleep(1)
    before, began = cpu_s(), time.monotonic()
    await asyncio.sleep(IDLE_S)
    percent = (cpu_s() - before) / (time.monotonic() - began) * 100
    running.cancel()
    before, began = cpu_s(), time.monotonic()
    await asyncio.sleep(2)
    floor = (cpu_s() - before) / (time.monotonic() - began) * 100
    report(
        what=f"reconcile: processor time while {SANDBOXES} sandboxes idle",
        n=1,
        percent_of_a_core=percent,
        floor_percent=floor,
        interval_s=limits.reconcile_interval_s,
        reach="<= 2 %",
    )


def main() -> None:
    os.umask(0o077)
    with tempfile.TemporaryDirectory(prefix="agentlab-bench-", dir="/var/tmp") as folder:
        uvloop.run(measure(Path(folder)))


if __name__ == "__main__":
    main()
