"""What happens in a simulated world, and what must hold afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import SandboxState as S
from agentlab.model.machine import SnapshotState as K
from agentlab.model.sandbox import Observed, Wish
from agentlab.model.snapshot import SnapshotRecord
from agentlab.store import events, jobs, sandboxes, snapshots
from agentlab.testing.fake_backend import FakeBackend
from agentlab.testing.proxmox_world import ClusterWorld
from agentlab.testing.world import World

ACTIONS = 30
MOMENTS_TTL_S = 4 * 3600.0  # longer than the storm and the rest after it
REST_S = 1800.0  # longer than every back-off and limit of a step
CALM_S = 2.5 * 3600.0  # longer than every lease, job and limit of the scenarios


async def _live(world: World, actions: int, crash: float) -> None:
    """Users, accidents and crashes at random moments, then calm weather until every lease has ended."""
    entropy = world.entropy
    for _ in range(actions):
        await asyncio.sleep(entropy.fraction() * 60)
        await _something(world)
        if entropy.fraction() < crash:
            await world.kill()
            await asyncio.sleep(entropy.fraction() * 40)
            await world.start()
    world.calm()
    if world.core is None:
        await world.start()
    await asyncio.sleep(CALM_S)


async def _something(world: World) -> None:
    entropy, database = world.entropy, world.database
    roll = entropy.fraction()
    living = database.read(sandboxes.living)
    active = database.read(jobs.active)
    some = living[int(entropy.fraction() * len(living))] if living else None
    if roll < 0.30:
        await world.new_sandbox(ttl_s=60 + entropy.fraction() * 1800)
    elif roll < 0.60:
        await world.new_job(timeout_s=20 + entropy.fraction() * 200)
    elif roll < 0.65 and active:
        await world.cancel(active[int(entropy.fraction() * len(active))].id)
    elif some is None:
        return
    elif roll < 0.80:
        wishes = (Wish.STOPPED, Wish.RUNNING, Wish.PAUSED, Wish.RUNNING, Wish.DESTROYED)
        await world.wish(some.id, wishes[int(entropy.fraction() * len(wishes))])
    elif roll < 0.88:
        world.kill_guest(some.id)
    elif roll < 0.94:
        world.kill_sandbox(some.id)
    elif roll < 0.97:
        world.clock.shift_s += (entropy.fraction() - 0.5) * 600  # somebody sets the clock
    else:
        await world.disturb()


def stormy_night(seed: int, *, forgetful: bool = False) -> None:
    """Faults in a tenth of all calls, a crash every few minutes; `forgetful` plants a bug that must be found."""
    world = World(seed, fault_rate=0.1)

    async def scenario(world: World) -> None:
        if forgetful:
            _plant_memory(world.backend)
        await _live(world, ACTIONS, crash=0.15)
        world.check_settled()

    world.run(scenario)


def stormy_cluster(seed: int) -> None:
    """The same on a cluster: lost replies, dead tasks, nodes that go, VMs that move, and a foreign VM in between."""
    world = ClusterWorld(seed, fault_rate=0.1)

    async def scenario(world: World) -> None:
        await _live(world, ACTIONS, crash=0.15)
        world.check_settled()

    world.run(scenario)


def many_moments(seed: int) -> int:
    """Sandboxes are kept, restored and forked while calls fail and the daemon is killed; how many forks were made."""
    world = World(seed, fault_rate=0.1)
    forks = 0

    async def scenario(world: World) -> None:
        nonlocal forks
        for _ in range(ACTIONS):
            await asyncio.sleep(world.entropy.fraction() * 30)
            await _something_kept(world)
            if world.entropy.fraction() < 0.15:
                await world.kill()
                await asyncio.sleep(world.entropy.fraction() * 40)
                await world.start()
        world.calm()
        if world.core is None:
            await world.start()
        await asyncio.sleep(REST_S)
        world.check_at_rest()
        forks = sum(row.source is not None for row in world.database.read(sandboxes.living))
        await _calm_moment(world)
        world.check_at_rest()
        await asyncio.sleep(MOMENTS_TTL_S)
        world.check_settled()

    world.run(scenario)
    return forks


async def _calm_moment(world: World) -> None:
    """Without faults, whatever is asked of a sandbox that is ready comes true."""
    database = world.database
    ready = next((row for row in database.read(sandboxes.living) if row.state is S.READY), None)
    if ready is None:
        return
    for old in database.read(lambda tx: snapshots.of(tx, ready.id)):
        await world.remove_snapshot(ready.id, old.name)
    await asyncio.sleep(REST_S)
    before = {row.id for row in database.read(sandboxes.living)}
    await world.snapshot(ready.id, memory=True)
    await world.fork(ready.id, 3, None)
    await asyncio.sleep(REST_S)
    new = [row for row in database.read(sandboxes.living) if row.id not in before]
    assert [row.state for row in new] == [S.READY] * 3, f"forks: {new}; {world.replay_hint}"
    kept = database.read(lambda tx: snapshots.of(tx, ready.id))
    assert [each.state for each in kept] == [K.READY], f"snapshots: {kept}; {world.replay_hint}"
    await world.restore(ready.id, kept[0].name)
    await asyncio.sleep(REST_S)
    after = database.read(lambda tx: sandboxes.get(tx, ready.id))
    assert after is not None
    assert (after.state, after.failure) == (S.READY, None), f"restored: {after}; {world.replay_hint}"


async def _something_kept(world: World) -> None:
    entropy, database = world.entropy, world.database
    roll = entropy.fraction()
    living = database.read(sandboxes.living)
    some = living[int(entropy.fraction() * len(living))] if living else None
    if some is None or (roll < 0.15 and len(living) < 10):
        await world.new_sandbox(ttl_s=MOMENTS_TTL_S)
        return
    kept: list[SnapshotRecord] = database.read(lambda tx: snapshots.of(tx, some.id))
    one = kept[int(entropy.fraction() * len(kept))] if kept else None
    if roll < 0.40 or one is None:
        await world.snapshot(some.id, memory=entropy.fraction() < 0.5)
    elif roll < 0.55:
        await world.restore(some.id, one.name)
    elif roll < 0.70:
        await world.fork(some.id, 1 + int(entropy.fraction() * 3), one.name if entropy.fraction() < 0.5 else None)
    elif roll < 0.78:
        await world.remove_snapshot(some.id, one.name)
    elif roll < 0.92:
        wishes = (Wish.STOPPED, Wish.RUNNING, Wish.PAUSED, Wish.RUNNING, Wish.DESTROYED)
        await world.wish(some.id, wishes[int(entropy.fraction() * len(wishes))])
    else:
        world.kill_sandbox(some.id)


def quiet_day(seed: int) -> None:
    """No faults, no crashes: whatever fails was made to fail by its agent."""
    world = World(seed, fault_rate=0.0)

    async def scenario(world: World) -> None:
        for _ in range(8):
            await world.new_job(timeout_s=300)
            await asyncio.sleep(5)
        await asyncio.sleep(CALM_S)
        found = world.database.read(lambda tx: jobs.page(tx, limit=100))[0]
        assert len(found) == 8
        assert {job.state for job in found} <= JOB_FINAL
        assert all(job.result is not None for job in found), world.replay_hint
        assert sum(world.agent_runs.values()) == 8
        world.check_settled()

    world.run(scenario)


def busy_days(seed: int) -> Sequence[tuple[int, str, str]]:
    """A stormy run, as the trace of its events: equal for equal seeds."""
    world = World(seed, fault_rate=0.1)
    trace: list[tuple[int, str, str]] = []

    async def scenario(world: World) -> None:
        await _live(world, ACTIONS, crash=0.15)
        last = 0
        while page := world.database.read(partial(events.since, seq=last, limit=500)):
            trace.extend((each.at_ms, each.type, each.subject) for each in page)
            last = page[-1].seq

    world.run(scenario)
    return trace


def _plant_memory(backend: FakeBackend) -> None:
    """The bug of the earlier system: what was listed once is believed for ever."""
    real_list = backend.list
    believed: dict[str, Sequence[Observed]] = {}

    async def remembered() -> Sequence[Observed]:
        if not believed:
            believed["all"] = await real_list()
        return believed["all"]

    async def blind(sandbox: str) -> Observed | None:
        return next((each for each in await remembered() if each.mark.sandbox == sandbox), None)

    setattr(backend, "list", remembered)  # noqa: B010
    setattr(backend, "inspect", blind)  # noqa: B010
