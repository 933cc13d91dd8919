"""Brings every sandbox to what is wanted: observe, plan one step, carry it out, observe again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from agentlab.backends.interface import Backend, BackendError, Refused
from agentlab.base.clock import Clock
from agentlab.base.tasks import TaskScope
from agentlab.model import event as facts
from agentlab.model.event import Event
from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import SandboxState as S
from agentlab.model.sandbox import Observed, Sandbox
from agentlab.network.interface import Network, NetworkError
from agentlab.plan import steps as plan
from agentlab.plan.orphans import orphans
from agentlab.plan.sandboxes import next_step
from agentlab.services.limits import Limits
from agentlab.services.reconcile.interpret import Interpreter, StepError
from agentlab.services.reconcile.workers import Workers
from agentlab.services.wake import Wake
from agentlab.store import events, jobs, sandboxes, snapshots
from agentlab.store.database import Database, Tx

log = logging.getLogger(__name__)

BUILDING = (S.REQUESTED, S.PROVISIONING, S.STARTING)
STEPS_MAX = 40  # of one run of a worker; a plan that never comes to rest is a defect, and is said
REPEATS_MAX = 4  # of one step within a run: a sandbox that dies again and again at start is given up
BACKOFF_S = (0.2, 1.0, 3.0, 10.0, 30.0, 60.0)


class SandboxReconciler:
    """Level-triggered: each decision is taken from what is seen at that moment."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        installation: InstallationId,
        backends: Mapping[str, Backend],
        networks: Mapping[str, Network],
        interpreter: Interpreter,
        limits: Limits,
        wake: Wake,
        scope: TaskScope,
    ) -> None:
        self._database, self._clock, self._installation = database, clock, installation
        self._backends, self._interpreter = backends, interpreter
        self._networks = tuple({id(each): each for each in networks.values()}.values())
        self._limits, self._wake = limits, wake
        self._failures: Counter[SandboxId] = Counter()
        self._gates = {name: asyncio.Semaphore(backend.parallel_max) for name, backend in backends.items()}
        self.workers: Workers[SandboxId] = Workers(scope, "sandbox", self._bring)

    async def tick(self) -> None:
        """Observe everything once: one listing per backend, one per network; wake what needs a step."""
        linked = await self._check_networks()
        rows, unfinished = self._database.read(lambda tx: (sandboxes.living(tx), snapshots.unfinished(tx)))
        living = {row.id: row for row in rows}
        for orphan in sorted(linked - living.keys()):
            if orphan not in self.workers:
                await self._detach_orphan(orphan, linked[orphan])
        observed: dict[SandboxId, Observed] = {}
        answered: set[str] = set()
        for name, backend in self._backends.items():
            try:
                async with asyncio.timeout(60):
                    found = await backend.list()
            except (BackendError, TimeoutError) as error:
                if isinstance(error, Refused) and not any(row.backend == name for row in living.values()):
                    continue  # not usable on this machine, which was said at start, and nothing of ours is there
                log.error("a backend could not be listed", extra={"backend": name, "cause": str(error)})
                continue
            answered.add(name)
            observed |= {each.mark.sandbox: each for each in found}
            await self._remove_orphans(name, backend, found, living)
        now = self._clock.now()
        for row in living.values():
            if row.id in self.workers or row.backend not in answered:
                continue
            self._warn(row, now)
            seen = self._interpreter.seen(row, observed.get(row.id), self._held(row))
            if row.source is not None or row.id in unfinished:
                seen = self._interpreter.with_snapshots(row, seen)
            if next_step(row, seen, now) is not None:
                self.workers.kick(row.id)

    async def _bring(self, sandbox: SandboxId) -> float | None:
        repeats: Counter[plan.Step] = Counter()
        for _ in range(STEPS_MAX):
            row = self._database.read(lambda tx: sandboxes.get(tx, sandbox))
            if row is None or row.state is S.DESTROYED:
                self._interpreter.forget(sandbox)
                self._failures.pop(sandbox, None)
                return None
            step: plan.Step | None = None
            try:
                seen = await self._interpreter.look(row, self._held(row))
                step = next_step(row, seen, self._clock.now())
                if step is None:
                    return None
                repeats[step] += 1
                if repeats[step] > REPEATS_MAX and not isinstance(step, plan.Move):
                    raise StepError(
                        code="sandbox/unstable",
                        cause=f"it ends as soon as it is started{_because(seen.observed)}",
                        remedy="See `agentlab sandbox logs`; the template may lack what it needs.",
                        retryable=False,
                    )
                if isinstance(step, plan.Create | plan.Arm | plan.Start) and row.state in BUILDING:
                    async with self._gates[row.backend]:
                        await self._interpreter.carry_out(row, seen, step)
                else:
                    await self._interpreter.carry_out(row, seen, step)
                self._failures.pop(sandbox, None)
                self._moved(row, step)
            except StepError as problem:
                if (delay := await self._failed(row, step, problem)) is not None:
                    return delay
        log.error("a sandbox does not come to rest", extra={"sandbox": sandbox})
        return self._limits.reconcile_interval_s

    async def _failed(self, row: Sandbox, step: plan.Step | None, problem: StepError) -> float | None:
        """After a failed step: the seconds to wait before the next try, or None to go on at once."""
        self._failures[row.id] += 1
        tries = self._failures[row.id]
        building = row.state in BUILDING and step is not None
        lasting = not problem.retryable or tries >= self._limits.step_tries_max
        if isinstance(step, plan.SnapshotStep) and lasting:
            self._failures.pop(row.id, None)
            await self._interpreter.give_up(row, step, problem)
            self._moved(row, step)
            return None
        if building and lasting:
            self._failures.pop(row.id, None)
            assert step is not None
            await self._interpreter.fail(row, step.name, problem)
            self._moved(row, plan.Move(to=S.FAILED))
            return None
        return BACKOFF_S[min(tries, len(BACKOFF_S)) - 1]

    def _tell(self, fact: Event) -> None:
        self._database.write_soon(lambda tx: events.append(tx, fact, self._clock.now()))

    def _moved(self, row: Sandbox, step: plan.Step) -> None:
        if row.job is not None and isinstance(step, plan.Move | plan.EndLease | plan.Fail):
            self._wake.job(row.job)
        if isinstance(step, plan.TakeSnapshot):
            for fork in self._database.read(lambda tx: snapshots.waiting_forks(tx, row.id, step.snapshot)):
                self._wake.sandbox(fork)
        if row.source is not None and isinstance(step, plan.Move):
            self._wake.sandbox(row.source.mark.sandbox)  # it may keep a snapshot for this fork alone

    def _held(self, row: Sandbox) -> bool:
        if row.job is None:
            return False
        wanted = row.job
        job = self._database.read(lambda tx: jobs.get(tx, wanted))
        return job is not None and job.state not in JOB_FINAL and job.running_at is not None

    def _warn(self, row: Sandbox, now: float) -> None:
        due = row.lease.warning_due(now)
        if due is None or (row.lease_warned_s is not None and row.lease_warned_s <= due):
            return
        fact = facts.LeaseWarned(subject=row.id, remaining_s=max(0, round(row.lease.until - now)))

        def write(tx: Tx) -> None:
            sandboxes.update(tx, row.id, lease_warned_s=due)
            events.append(tx, fact, now)

        self._database.write_soon(write)

    async def _check_networks(self) -> dict[SandboxId, Network]:
        """The sandboxes for which a network holds something, and which; none of one that cannot be asked."""
        linked: dict[SandboxId, Network] = {}
        answered = True
        for network in self._networks:
            try:
                async with asyncio.timeout(30):
                    stood = await network.check()
                    found = await network.list()
            except (NetworkError, TimeoutError) as error:
                log.error("the network could not be checked", extra={"cause": str(error)})
                answered = False
                continue
            linked |= {SandboxId(each): network for each in found}
            if not stood:
                self._interpreter.distrust_policies()
                broken = "the base rules did not read back; applied again"
                self._tell(facts.PolicyBroken(subject="network", detail=broken))
        if answered:
            self._interpreter.set_linked(set(linked))
        return linked

    async def _detach_orphan(self, orphan: SandboxId, network: Network) -> None:
        self._tell(facts.OrphanFound(subject=orphan, what="a network link"))
        try:
            async with asyncio.timeout(30):
                await network.detach(orphan)
        except (NetworkError, TimeoutError) as error:
            log.error("an orphaned link could not be removed", extra={"sandbox": orphan, "cause": str(error)})

    async def _remove_orphans(
        self, name: str, backend: Backend, found: Sequence[Observed], living: Mapping[SandboxId, Sandbox]
    ) -> None:
        marks = {row.id: row.mark for row in living.values() if row.backend == name}
        for orphan in orphans(found, marks, self._installation):
            if orphan.mark.sandbox in self.workers:
                continue
            self._tell(facts.OrphanFound(subject=orphan.mark.sandbox, what=f"a sandbox of backend {name}"))
            try:
                async with asyncio.timeout(120):
                    await backend.destroy(orphan.mark)
            except (BackendError, TimeoutError) as error:
                log.error("an orphan could not be removed", extra={"sandbox": orphan.mark.sandbox, "cause": str(error)})


def _because(observed: Observed | None) -> str:
    return f": {observed.exit_detail}" if observed is not None and observed.exit_detail else ""
