"""Brings every job to its end: claim, sandbox, guest program, harvest, release."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from agentlab.backends.interface import Backend, BackendError, Command
from agentlab.base.clock import Clock
from agentlab.base.tasks import TaskScope
from agentlab.base.text import one_line
from agentlab.errors import AgentLabError, DiskFull
from agentlab.model import event as facts
from agentlab.model.failure import Failure
from agentlab.model.ids import JobId
from agentlab.model.job import Job
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import JobState as J
from agentlab.model.sandbox import Sandbox, Wish
from agentlab.plan import jobs as plan
from agentlab.services.guests import Guests
from agentlab.services.jobs import Jobs
from agentlab.services.limits import Limits
from agentlab.services.reconcile.workers import Workers
from agentlab.services.sandboxes import Sandboxes
from agentlab.services.wake import Wake
from agentlab.store import events, grants, jobs, sandboxes, steps
from agentlab.store.database import Database, Tx

log = logging.getLogger(__name__)

STEPS_MAX = 12
RETRY_S = 2.0
DEFECTS_MAX = 5  # unexpected errors of one job before it is ended
GUEST_COMMAND = (
    *("python3", "-I", "-S", "-B", "/opt/agentlab/guest.pyz"),
    *("--link", "unix:/opt/agentlab/guest.sock"),
)
GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class JobReconciler:
    """Each decision is taken from the job's row, its sandbox's row and its guest link, at that moment."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        backends: Mapping[str, Backend],
        jobs_service: Jobs,
        sandboxes_service: Sandboxes,
        guests: Guests,
        limits: Limits,
        wake: Wake,
        scope: TaskScope,
    ) -> None:
        self._database, self._clock, self._backends = database, clock, backends
        self._jobs, self._sandboxes, self._guests = jobs_service, sandboxes_service, guests
        self._limits, self._wake = limits, wake
        self._defects: Counter[JobId] = Counter()
        self.workers: Workers[JobId] = Workers(scope, "job", self._bring)

    async def tick(self) -> None:
        """Claim what can start; look at every job that is under way and at every sandbox whose job is over."""
        await self.claim()
        active, living = self._database.read(lambda tx: (jobs.active(tx), sandboxes.of_jobs(tx)))
        pending = {job.id for job in active}
        pending |= {row.job for row in living if row.job is not None and row.wish is not Wish.DESTROYED}
        for job in sorted(pending):
            if job not in self.workers:
                self.workers.kick(job)

    async def claim(self) -> None:
        """Take queued jobs, oldest first, as long as fewer than the limit are under way."""
        most = self._limits.jobs_running_max
        while job := await self._database.write(lambda tx: jobs.claim_next(tx, self._clock.now(), most)):
            self.workers.kick(job.id)

    async def _bring(self, job_id: JobId) -> float | None:
        for _ in range(STEPS_MAX):
            job, sandbox = self._database.read(lambda tx: _rows(tx, job_id))
            if job is None:
                return None
            now = self._clock.now()
            self._guests.tell_stop(job)
            step = plan.next_step(job, sandbox, self._guests.link_seen(job), now, self._limits.job)
            if step is None:
                return None
            try:
                await self._carry_out(job, sandbox, step)
            except BackendError as error:
                log.warning("launching a guest failed", extra={"job": job.id, "cause": error.cause})
                return RETRY_S
            except DiskFull as error:  # passes, and nothing of it was written: try until it does
                log.error("no room to go on with a job", extra={"job": job.id, "cause": str(error)})
                return RETRY_S
            except Exception as error:  # the fence of every step: no failure is silent, not even a defect of ours
                return await self._met_defect(job, error)
        return self._limits.reconcile_interval_s

    async def _met_defect(self, job: Job, error: Exception) -> float | None:
        log.error("a step of a job met a defect", extra={"job": job.id}, exc_info=error)
        self._defects[job.id] += 1
        if self._defects[job.id] < DEFECTS_MAX or job.state in JOB_FINAL:
            return RETRY_S
        cause = one_line(f"{type(error).__name__}: {error}")
        remedy = "This is a defect of AgentLab or its disk is full: see the daemon's log."
        state = J.FAILED if job.running_at is None else J.LOST
        await self.end(job, plan.End(state=state, step="daemon", cause=cause, remedy=remedy))
        return None

    async def _carry_out(self, job: Job, sandbox: Sandbox | None, step: plan.JobStep) -> None:
        match step:
            case plan.AskSandbox():
                await self._ask_sandbox(job)
            case plan.WakeSandbox():
                assert sandbox is not None
                await self._database.write(lambda tx: sandboxes.update(tx, sandbox.id, wish=Wish.RUNNING))
                self._wake.sandbox(sandbox.id)
                await self._sandboxes.wait_settled(sandbox.id, 60)
            case plan.Launch(rescue=rescue, cause=cause):
                assert sandbox is not None
                await self._launch(job, sandbox, rescue, cause)
            case plan.AskStop(reason=reason):
                await self._ask_stop(job, reason)
            case plan.End():
                await self.end(job, step)
            case plan.ReleaseSandbox():
                assert sandbox is not None
                await self._sandboxes.wish(sandbox.id, Wish.DESTROYED, reason=f"{job.id} {job.state}")

    async def _ask_sandbox(self, job: Job) -> None:
        request = self._jobs.sandbox_request(job)

        def write(tx: Tx) -> Sandbox:
            row = self._sandboxes.insert(tx, job.owner, request, job=job.id, keepalive=job.keepalive)
            jobs.update(tx, job.id, sandbox=row.id)
            return row

        try:
            row = await self._database.write(write)
        except AgentLabError as error:
            refused = plan.End(
                state=J.FAILED,
                step="sandbox",
                cause=f"{error}  {error.advice}",
                remedy="Correct this and run it again.",
            )
            await self.end(job, refused)
            return
        self._wake.sandbox(row.id)

    async def _launch(self, job: Job, sandbox: Sandbox, rescue: bool, cause: str) -> None:
        now = self._clock.now()
        token, grant = self._guests.new_grant(job, sandbox.id, rescue)
        number: list[int] = []

        def begin(tx: Tx) -> None:
            # An earlier guest that has not redeemed by now never may: the agent must not run twice.
            grants.revoke_sandbox(tx, sandbox.id)
            grants.insert(tx, grant)
            number.append(steps.begin(tx, job.id, "rescue" if rescue else "run", "guest", now))
            if rescue:
                jobs.update(tx, job.id, rescues=job.rescues + 1)
                events.append(tx, facts.JobRescued(subject=job.id, attempt=job.rescues + 1, cause=cause), now)

        await self._database.write(begin)
        self._guests.launched(job.id)
        backend = self._backends[sandbox.backend]
        command = Command(argv=(*GUEST_COMMAND, *backend.guest_arguments), env={"PATH": GUEST_PATH})
        try:
            await backend.launch(sandbox.mark, command, token.encode() + b"\n")
        except BackendError as error:
            failed = error.cause
            self._guests.launch_failed(job.id)
            self._database.write_soon(lambda tx: steps.finish(tx, number[0], "failed", self._clock.now(), failed))
            self._wake.sandbox(sandbox.id)
            raise
        self._database.write_soon(lambda tx: steps.finish(tx, number[0], "done", self._clock.now()))

    async def _ask_stop(self, job: Job, reason: str) -> None:
        now = self._clock.now()

        def write(tx: Tx) -> None:
            current = jobs.get(tx, job.id)
            if current is None or current.state in JOB_FINAL or current.stop_reason is not None:
                return
            jobs.update(tx, job.id, stop_reason=reason, stop_at=now)
            events.append(tx, facts.JobStopAsked(subject=job.id, reason=reason), now)

        await self._database.write(write)

    async def end(self, job: Job, end: plan.End) -> None:
        """Write the final state of a job whose guest did not report it."""
        now = self._clock.now()
        failure = Failure(code="job/not-succeeded", step=end.step, cause=end.cause, remedy=end.remedy, at=now)

        def write(tx: Tx) -> None:
            current = jobs.get(tx, job.id)
            if current is None or current.state in JOB_FINAL:
                return
            jobs.transition(tx, job.id, end.state, now, reason=end.cause, failure=failure, ended_at=now)
            if end.abandoned:
                abandoned = facts.HarvestAbandoned(
                    subject=job.id, limit_name=end.abandoned, limit_s=round(end.limit_s), cause=end.cause
                )
                events.append(tx, abandoned, now)
            ran_s = round(now - (job.running_at or now))
            events.append(tx, facts.JobEnded(subject=job.id, state=end.state, cause=end.cause, ran_s=ran_s), now)
            jobs.forget_env(tx, job.id)
            if job.sandbox is not None:
                grants.revoke_sandbox(tx, job.sandbox)

        await self._database.write(write)
        self._guests.ended(job.id)
        self._wake.queue()


def _rows(tx: Tx, job_id: JobId) -> tuple[Job | None, Sandbox | None]:
    job = jobs.get(tx, job_id)
    return job, None if job is None or job.sandbox is None else sandboxes.get(tx, job.sandbox)
