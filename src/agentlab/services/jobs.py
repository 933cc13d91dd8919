"""Jobs: what a request for one means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.files import free_bytes
from agentlab.base.redaction import Redaction
from agentlab.base.text import did_you_mean
from agentlab.base.units import format_bytes
from agentlab.errors import DiskFull, Invalid, LimitReached, NotFound, ResultMissing, TaskInvalid, TooLarge
from agentlab.model import event as facts
from agentlab.model.agents import AGENTS, Agent
from agentlab.model.artifact import Artifact
from agentlab.model.ids import JobId
from agentlab.model.job import ENV_BYTES_MAX, ENV_COUNT_MAX, GLOBS_MAX, TASK_BYTES_MAX, TIMEOUT_S_MAX, Job
from agentlab.model.lease import LEASE_TTL_S_MAX
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import JobState as J
from agentlab.model.profile import Profile
from agentlab.model.sandbox import Sandbox, StepRecord
from agentlab.secrets.seal import Seal
from agentlab.services.bootstrap import seal_env
from agentlab.services.events import Events
from agentlab.services.harvest import output_topic
from agentlab.services.limits import Limits
from agentlab.services.profiles import Profiles
from agentlab.services.requests import Idempotency, NewJob, NewSandbox
from agentlab.services.reserve import Reserve
from agentlab.services.sandboxes import Sandboxes
from agentlab.services.wake import Wake
from agentlab.store import artifacts, events, idempotency, jobs, steps
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database, Tx
from agentlab.store.outputs import Outputs


class Jobs:
    """Queues jobs and shows them; the reconciler runs them."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        profiles: Profiles,
        sandboxes: Sandboxes,
        blobs: Blobs,
        outputs: Outputs,
        seal: Seal,
        redaction: Redaction,
        limits: Limits,
        wake: Wake,
        log: Events,
        reserve: Reserve,
        state_dir: Path,
    ) -> None:
        self._database, self._clock, self._entropy = database, clock, entropy
        self._profiles, self._sandboxes = profiles, sandboxes
        self._blobs, self._outputs, self._seal = blobs, outputs, seal
        self._limits, self._wake, self._log, self._state_dir = limits, wake, log, state_dir
        self._redaction, self._reserve = redaction, reserve

    async def create(self, identity: str, request: NewJob, key: Idempotency | None) -> Job:
        """Queue a job.  TaskInvalid, TooLarge, Invalid, NotFound (profile, agent, bundle), LimitReached, DiskFull."""
        profile = self._profiles.get(request.profile)
        agent = AGENTS.get(request.agent or profile.agent)
        if agent is None:
            name = request.agent or profile.agent
            raise NotFound(noun="agent", name=name, hint=did_you_mean(name, AGENTS))
        self._check(request, profile, agent)
        job = self._draft(identity, request, profile, agent)
        secret = {name: value.reveal() for name, value in request.env.items()}
        self._redaction.add(secret.values())
        sealed = seal_env(self._seal, dict(profile.env), secret)

        def write(tx: Tx) -> Job:
            if key is not None and (known := idempotency.recall(tx, key.owner, key.key, key.fingerprint)):
                found = jobs.get(tx, JobId(known))
                assert found is not None
                return found
            if jobs.count(tx, J.QUEUED) >= self._limits.jobs_queued_max:
                raise LimitReached(
                    limit_name="jobs_queued_max",
                    limit=self._limits.jobs_queued_max,
                    cause="this many jobs wait already",
                    what_to_do="Wait until some have run, or cancel some: `agentlab job list`.",
                )
            # A sandbox that cannot be made is refused now rather than after a wait in the queue.
            self._sandboxes.check(tx, self.sandbox_request(job))
            jobs.insert(tx, job, sealed)
            fact = facts.JobQueued(
                subject=job.id, agent=job.agent, profile=job.profile, repo=job.repo.origin, owner=identity
            )
            events.append(tx, fact, job.queued_at)
            if key is not None:
                idempotency.remember(tx, key.owner, key.key, key.fingerprint, job.id, job.queued_at)
            return job

        job = await self._database.write(write)
        self._wake.queue()
        return job

    def sandbox_request(self, job: Job) -> NewSandbox:
        """The sandbox that a job needs."""
        profile, agent = self._profiles.get(job.profile), AGENTS[job.agent]
        # A profile's own choice wins; only the plain base is replaced by the template that has the agent.
        template = agent.template if profile.template == "base" else profile.template
        return NewSandbox(profile=job.profile, template=template, backend=job.backend, ttl_s=job.ttl_s)

    def get(self, text: str, owner: str | None = None) -> Job:
        """By id or unique prefix; NotFound, Ambiguous."""
        return self._database.read(lambda tx: jobs.find(tx, text, owner))

    def page(
        self,
        owner: str | None = None,
        states: Sequence[J] | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[list[Job], str | None]:
        """Newest first, with the cursor of the next page."""
        return self._database.read(lambda tx: jobs.page(tx, owner=owner, states=states, after=after, limit=limit))

    def steps(self, job: JobId) -> list[StepRecord]:
        """What was done for it and for its sandbox, in order of time."""
        row = self.get(job)
        found = self._database.read(
            lambda tx: [*steps.of(tx, job), *(steps.of(tx, row.sandbox) if row.sandbox is not None else [])]
        )
        return sorted(found, key=lambda each: each.started_at)

    async def cancel(self, job: JobId, key: Idempotency | None = None) -> Job:
        """Want it to stop; its work is still brought back.  Quiet if it has ended."""

        def write(tx: Tx) -> Job:
            row, now = jobs.get(tx, job), self._clock.now()
            assert row is not None
            if row.state in JOB_FINAL or row.stop_reason is not None:
                return row
            events.append(tx, facts.JobStopAsked(subject=job, reason="cancelled"), now)
            row = jobs.update(tx, job, stop_reason="cancelled", stop_at=now)
            if row.state is J.QUEUED:
                row = jobs.transition(tx, job, J.CANCELLED, now, reason="cancelled in the queue", ended_at=now)
                events.append(tx, facts.JobEnded(subject=job, state=J.CANCELLED, cause="cancelled in the queue"), now)
                jobs.forget_env(tx, job)
            if key is not None:
                idempotency.remember(tx, key.owner, key.key, key.fingerprint, row.id, now)
            return row

        row = await self._reserve.write(self._database, write)
        self._wake.job(job)
        return row

    async def wait_ended(self, job: JobId, timeout_s: float) -> Job:
        """The row once it is final, or as it is after `timeout_s`."""

        def ended(row: Job | None) -> bool:
            return row is None or row.state in JOB_FINAL

        row = await self._log.wait_until(job, lambda tx: jobs.get(tx, job), ended, timeout_s)
        assert row is not None
        return row

    def sandbox_of(self, job: Job) -> Sandbox | None:
        """Its sandbox, as long as the store knows it."""
        return None if job.sandbox is None else self._sandboxes.get(job.sandbox)

    def output(self, job: JobId, offset: int, limit: int) -> bytes:
        """Output of the agent from `offset`, at most `limit` bytes; empty at the end."""
        return self._outputs.read(job, offset, limit)

    def output_size(self, job: JobId) -> int:
        """How many bytes of output have arrived."""
        return self._outputs.size(job)

    async def wait_output(self, job: JobId, offset: int, timeout_s: float) -> bool:
        """Wait until there is output beyond `offset` or the job has ended; False when `timeout_s` passed before."""

        def look(tx: Tx) -> tuple[int, Job | None]:
            return self._outputs.size(job), jobs.get(tx, job)

        def ready(found: tuple[int, Job | None]) -> bool:
            return found[0] > offset or found[1] is None or found[1].state in JOB_FINAL

        return ready(await self._log.wait_until(output_topic(job), look, ready, timeout_s))

    def artifacts(self, job: JobId) -> list[Artifact]:
        """What has come out of it, by name."""
        return self._database.read(lambda tx: artifacts.of(tx, job))

    def artifact(self, job: JobId, name: str) -> Artifact:
        """One artifact; ResultMissing says why there is none."""
        found = self._database.read(lambda tx: artifacts.get(tx, job, name))
        if found is None:
            row = self.get(job)
            cause = "it changed nothing, or did not bring this back" if row.state in JOB_FINAL else f"it is {row.state}"
            raise ResultMissing(job=job, what=name, cause=cause)
        return found

    def queue_position(self, job: JobId) -> int:
        """1 for the job that starts next; 0 if it does not wait."""
        return self._database.read(lambda tx: jobs.queue_position(tx, job))

    def _draft(self, identity: str, request: NewJob, profile: Profile, agent: Agent) -> Job:
        globs = tuple(dict.fromkeys((*profile.artifacts.globs, *request.artifact_globs)))
        return Job(
            id=JobId(f"job-{self._entropy.word(8)}"),
            owner=identity,
            state=J.QUEUED,
            profile=profile.name,
            agent=agent.name,
            backend=request.backend,
            task=request.task,
            repo=request.repo,
            env_names=tuple(sorted({*request.env, *(name for name, _ in profile.env)})),
            artifact_globs=globs,
            timeout_s=request.timeout_s if request.timeout_s is not None else profile.timeout_s,
            ttl_s=request.ttl_s if request.ttl_s is not None else profile.ttl_s,
            keepalive=request.keepalive if request.keepalive is not None else profile.keepalive,
            queued_at=self._clock.now(),
        )

    def _check(self, request: NewJob, profile: Profile, agent: Agent) -> None:
        if not request.task.strip():
            raise TaskInvalid(cause="it is empty")
        if len(request.task.encode()) > TASK_BYTES_MAX:
            raise TooLarge(what="The task", limit_name="TASK_BYTES_MAX", limit=format_bytes(TASK_BYTES_MAX))
        if request.repo.bundle is not None and not self._blobs.has(request.repo.bundle):
            raise NotFound(noun="blob", name=request.repo.bundle, hint=" Upload the repository's bundle first.")
        if request.repo.bundle is not None and request.repo.url is not None:
            raise Invalid(cause="repo: give either url or bundle")
        names = {*request.env, *(name for name, _ in profile.env)}
        size = sum(len(name) + len(value.reveal()) for name, value in request.env.items())
        if len(names) > ENV_COUNT_MAX or size > ENV_BYTES_MAX:
            raise TooLarge(what="The environment", limit_name="ENV_BYTES_MAX", limit=format_bytes(ENV_BYTES_MAX))
        for name in names:
            if not name.replace("_", "a").isalnum() or not name.isascii() or name[0].isdigit():
                raise Invalid(cause=f"env: {name!r} is not a variable name")
        if agent.key_names and not names & set(agent.key_names):
            keys = " or ".join(agent.key_names)
            raise Invalid(cause=f"agent {agent.name} needs a provider key: pass --env {keys}")
        if len(request.artifact_globs) > GLOBS_MAX:
            raise LimitReached(
                limit_name="GLOBS_MAX",
                limit=GLOBS_MAX,
                cause="too many artifact patterns",
                what_to_do="Use wider patterns.",
            )
        for name, value, most in (
            ("timeout", request.timeout_s, TIMEOUT_S_MAX),
            ("ttl", request.ttl_s, LEASE_TTL_S_MAX),
        ):
            if value is not None and not 1 <= value <= most:
                raise Invalid(cause=f"{name}: {value:g} s is outside 1 s … {most} s")
        if (free := free_bytes(self._state_dir)) < self._limits.disk_reserve_bytes:
            raise DiskFull(
                path=self._state_dir, free=format_bytes(free), needed=format_bytes(self._limits.disk_reserve_bytes)
            )
