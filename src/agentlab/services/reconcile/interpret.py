"""Carries out one step on a sandbox: the only code that changes what a backend or the network holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from agentlab.backends.interface import Backend, BackendError, NotOurs
from agentlab.base.clock import Clock
from agentlab.base.text import one_line
from agentlab.model import event as facts
from agentlab.model.failure import Failure
from agentlab.model.ids import SandboxId
from agentlab.model.machine import SandboxState as S
from agentlab.model.network import LinkEnd, NetworkMode, Port
from agentlab.model.sandbox import Observed, Power, Sandbox, SandboxSpec, Wish
from agentlab.network.interface import Network, NetworkError
from agentlab.plan import steps as plan
from agentlab.plan.sandboxes import Seen
from agentlab.services.limits import Limits
from agentlab.services.reconcile.snapshots import WAIT_STEP, SnapshotSteps
from agentlab.store import events, sandboxes, snapshots, steps
from agentlab.store.database import Database, Tx

log = logging.getLogger(__name__)

OPERATIONS = {
    S.REQUESTED: "provision",
    S.PROVISIONING: "provision",
    S.READY: "keep",
    S.STOPPING: "stop",
    S.STOPPED: "stop",
    S.STARTING: "start",
    S.PAUSED: "pause",
    S.DESTROYING: "destroy",
    S.FAILED: "cleanup",
    S.DESTROYED: "destroy",
}


class StepError(Exception):
    """A step did not succeed.  `retryable`: the same step may succeed later."""

    def __init__(self, *, code: str, cause: str, remedy: str, retryable: bool) -> None:
        super().__init__(cause)
        self.code, self.cause, self.remedy, self.retryable = code, cause, remedy, retryable


class Interpreter:
    """Each step has a time limit, a record with its duration, and on failure a cause and a remedy.

    `networks` has each backend's, by the backend's name.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        backends: Mapping[str, Backend],
        networks: Mapping[str, Network],
        limits: Limits,
    ) -> None:
        self._database, self._clock = database, clock
        self._backends, self._networks, self._limits = backends, networks, limits
        self._snapshots = SnapshotSteps(database=database, clock=clock, backends=backends)
        self._policed: dict[SandboxId, LinkEnd | None] = {}  # the end for which the policy was read back
        self._linked: set[SandboxId] = set()

    # Observation

    def set_linked(self, linked: set[SandboxId]) -> None:
        """What the network was just seen to hold."""
        self._linked = linked

    def distrust_policies(self) -> None:
        """The base rules were wrong: every policy has to be read back again."""
        self._policed.clear()

    def forget(self, sandbox: SandboxId) -> None:
        """The sandbox is gone."""
        self._policed.pop(sandbox, None)
        self._linked.discard(sandbox)

    def seen(self, row: Sandbox, observed: Observed | None, held: bool) -> Seen:
        """An observation together with what is known of the sandbox's policy."""
        policed = observed is not None and self._policed.get(row.id) == observed.end is not None
        return Seen(observed=observed, linked=row.id in self._linked, policed=policed, held=held)

    def with_snapshots(self, row: Sandbox, seen: Seen) -> Seen:
        """`seen` together with what the store knows of the sandbox's snapshots."""
        return self._snapshots.look(row, seen)

    async def look(self, row: Sandbox, held: bool) -> Seen:
        """Observe one sandbox now.  StepError if it cannot be asked."""
        if row.backend not in self._backends:
            raise StepError(
                code="backend/unusable",
                cause=f"this daemon has no backend {row.backend}",
                remedy="Put back its settings: until then nobody can see or remove what it made.",
                retryable=True,
            )
        try:
            async with asyncio.timeout(30):
                observed = await self._backends[row.backend].inspect(row.id)
                runs = observed is not None and observed.power is Power.RUNNING
                # One that runs since before this daemon did: its policy is believed only once it reads back.
                if runs and row.id not in self._policed and await self._network(row).verify(self._port(row)):
                    assert observed is not None
                    self._policed[row.id] = observed.end
        except (BackendError, NetworkError) as error:
            raise _translated(error) from error
        except TimeoutError:
            raise _too_slow("look", 30) from None
        return self.with_snapshots(row, self.seen(row, observed, held))

    # Action

    async def carry_out(self, row: Sandbox, seen: Seen, step: plan.Step) -> None:
        """Do `step`.  StepError if it did not succeed; what was written before stays true."""
        match step:
            case plan.Move(to=to, reason=reason):
                await self._database.write(lambda tx: self._move(tx, row, to, reason))
            case plan.EndLease():
                await self._database.write(lambda tx: self._end_lease(tx, row))
            case plan.Fail(cause=cause, remedy=remedy):
                await self.fail(
                    row, "observe", StepError(code="sandbox/lost", cause=cause, remedy=remedy, retryable=False)
                )
            case _:
                await self._recorded(row, seen, step)

    async def _recorded(self, row: Sandbox, seen: Seen, step: plan.Step) -> None:
        operation, began = step.operation or OPERATIONS[row.state], self._clock.now()
        limit_s = self._backends[row.backend].step_s_max.get(step.name, step.timeout_s)
        number: list[int] = []
        self._database.write_soon(lambda tx: number.append(steps.begin(tx, row.id, operation, step.name, began)))
        try:
            async with asyncio.timeout(limit_s):
                await self._act(row, seen, step)
        except Exception as error:  # the fence of every step: no failure is silent, not even a defect of ours
            problem = _problem(error, step, limit_s)
            self._write_failed(row, step, number, operation, began, problem)
            raise problem from error
        now = self._clock.now()
        done = facts.StepDone(subject=row.id, operation=operation, step=step.name, took_ms=_ms(now - began))

        def write_done(tx: Tx) -> None:
            steps.finish(tx, number[0], "done", now)
            events.append(tx, done, now)

        self._database.write_soon(write_done)

    def _write_failed(
        self, row: Sandbox, step: plan.Step, number: list[int], operation: str, began: float, problem: StepError
    ) -> None:
        now = self._clock.now()
        failed = facts.StepFailed(
            subject=row.id,
            operation=operation,
            step=step.name,
            took_ms=_ms(now - began),
            cause=problem.cause,
            remedy=problem.remedy,
        )

        def write(tx: Tx) -> None:
            steps.finish(tx, number[0], "failed", now, problem.cause)
            events.append(tx, failed, now)

        self._database.write_soon(write)
        log.warning("step failed", extra={"sandbox": row.id, "step": step.name, "cause": problem.cause})

    async def _act(self, row: Sandbox, seen: Seen, step: plan.Step) -> None:
        backend = self._backends[row.backend]
        match step:
            case plan.Create():
                await backend.create(self._spec(row))
            case plan.Arm():
                self._policed.pop(row.id, None)
                await self._arm(row, backend)
            case plan.Policy(repair=repair):
                await self._police(row, seen, repair)
            case plan.Start():
                assert seen.policed, "guest code never runs before its policy was read back"
                await backend.start(row.mark)
            case plan.Stop():
                await backend.stop(row.mark, self._limits.stop_grace_s)
                self._policed.pop(row.id, None)
            case plan.Pause():
                await backend.pause(row.mark)
            case plan.Resume():
                await backend.resume(row.mark)
            case plan.Detach():
                await self._network(row).detach(row.id)
                self._linked.discard(row.id)
            case plan.Destroy():
                await self._destroy(row, backend)
            case plan.SnapshotStep():
                await self._snapshots.carry_out(row, step)
            case _:
                raise AssertionError(f"no way to carry out {step}")

    async def _arm(self, row: Sandbox, backend: Backend) -> None:
        """The policy's rules need no namespace: they are applied while the backend makes it."""
        if row.network is not NetworkMode.OFF:
            self._linked.add(row.id)
        armed, expected = await asyncio.gather(
            backend.arm(self._spec(row)), self._network(row).expect(self._port(row)), return_exceptions=True
        )
        if isinstance(armed, BaseException):
            raise armed
        if isinstance(expected, BaseException) and not isinstance(expected, NetworkError):
            raise expected  # a NetworkError is left to the policy step, which does it all again

    async def _police(self, row: Sandbox, seen: Seen, repair: bool) -> None:
        assert seen.observed is not None
        port = self._port(row)
        if repair:
            fact = facts.PolicyBroken(subject=row.id, detail="its policy did not read back; applying it again")
            self._database.write_soon(lambda tx: events.append(tx, fact, self._clock.now()))
        if row.network is not NetworkMode.OFF:
            self._linked.add(row.id)
        end = seen.observed.end
        assert end is not None, "an armed sandbox has a place for its port to lead to"
        await self._network(row).attach(port, end)
        self._policed[row.id] = end

    async def _destroy(self, row: Sandbox, backend: Backend) -> None:
        try:
            await backend.destroy(row.mark)
        except NotOurs as error:
            fact = facts.ForeignFound(subject=row.id, what=error.cause)
            self._database.write_soon(lambda tx: events.append(tx, fact, self._clock.now()))
            raise
        self._policed.pop(row.id, None)

    def _network(self, row: Sandbox) -> Network:
        return self._networks[row.backend]

    def _port(self, row: Sandbox) -> Port:
        return self._network(row).port(row.id, row.slot, row.network)

    def _spec(self, row: Sandbox) -> SandboxSpec:
        networked = row.network is not NetworkMode.OFF
        return SandboxSpec(
            mark=row.mark,
            name=row.name or row.id,
            template=row.template,
            template_digest=row.template_digest,
            slot=row.slot,
            resources=row.resources,
            network=row.network,
            port=self._port(row) if networked else None,
            hostname=row.name or row.id,
            nameserver=str(self._network(row).resolver) if networked else None,
            nested_sandboxes=row.nested_sandboxes,
            source=row.source,
        )

    # Writing

    def _move(self, tx: Tx, row: Sandbox, to: S, reason: str) -> None:
        now = self._clock.now()
        changes: dict[str, object] = {}
        if to is S.READY:
            changes = {"failure": None, "ready_at": row.ready_at or now}
        if to is S.STOPPED and row.state is not S.STOPPING and row.wish is not Wish.STOPPED:
            # It ended by itself.  Starting it again unasked would hide that.
            changes = {"wish": Wish.STOPPED}
        if to is S.DESTROYED:
            changes = {"ended_at": now}
        sandboxes.transition(tx, row.id, to, now, reason=reason, **changes)
        if to is S.DESTROYED:
            snapshots.remove_all(tx, row.id, now, "its sandbox was destroyed")
            steps.finish_running(tx, row.id, WAIT_STEP, steps.INTERRUPTED, now)
            lived_s = round(now - row.created_at)
            fact = facts.SandboxDestroyed(subject=row.id, reason=row.ended_reason, lived_s=lived_s)
            events.append(tx, fact, now)

    def _end_lease(self, tx: Tx, row: Sandbox) -> None:
        events.append(tx, facts.LeaseEnded(subject=row.id), self._clock.now())
        sandboxes.update(tx, row.id, wish=Wish.DESTROYED, ended_reason="lease ended")

    async def give_up(self, row: Sandbox, step: plan.SnapshotStep, problem: StepError) -> None:
        """Write that a step on a snapshot did not succeed; the sandbox stays as it is."""
        failure = Failure(
            code=problem.code, step=step.name, cause=problem.cause, remedy=problem.remedy, at=self._clock.now()
        )
        await self._snapshots.give_up(row, step, failure)

    async def fail(self, row: Sandbox, step: str, problem: StepError) -> None:
        """Write that it could not be made or kept, with cause and remedy; its remains are removed next.

        A sandbox that only could not be started again goes back to `stopped`, so that its disk is kept.
        """
        now = self._clock.now()
        failure = Failure(code=problem.code, step=step, cause=problem.cause, remedy=problem.remedy, at=now)
        fact = facts.SandboxFailed(subject=row.id, step=step, cause=problem.cause, remedy=problem.remedy)

        def write(tx: Tx) -> None:
            current = sandboxes.get(tx, row.id)
            assert current is not None
            if current.wish is Wish.DESTROYED:
                sandboxes.update(tx, row.id, failure=failure)
                return
            if current.state is S.STARTING:
                changes = {"failure": failure, "wish": Wish.STOPPED}
                sandboxes.transition(tx, row.id, S.STOPPED, now, reason=problem.cause, **changes)
            else:
                sandboxes.transition(tx, row.id, S.FAILED, now, reason=problem.cause, failure=failure)
                snapshots.fail_requested(tx, row.id, failure, now)
                steps.finish_running(tx, row.id, WAIT_STEP, "failed", now, problem.cause)
            events.append(tx, fact, now)

        await self._database.write(write)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _problem(error: Exception, step: plan.Step, limit_s: float) -> StepError:
    if isinstance(error, BackendError | NetworkError):
        return _translated(error)
    if isinstance(error, TimeoutError):
        return _too_slow(step.name, limit_s)
    log.error("a step met a defect", extra={"step": step.name}, exc_info=error)
    return StepError(
        code="internal",
        cause=one_line(f"{type(error).__name__}: {error}"),
        remedy="This is a defect of AgentLab: please report it with the daemon's log.",
        retryable=False,
    )


def _too_slow(step: str, limit_s: float) -> StepError:
    return StepError(
        code="sandbox/step-timeout",
        cause=f"{step} did not end within {limit_s:g} s",
        remedy="The machine may be overloaded or a device may hang; see the daemon's log and `agentlab doctor`.",
        retryable=True,
    )


def _translated(error: BackendError | NetworkError) -> StepError:
    return StepError(code=error.code, cause=error.cause, remedy=error.remedy, retryable=error.retryable)
