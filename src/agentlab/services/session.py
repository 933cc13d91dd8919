"""One connection of a guest program: hello, then everything it brings.  All of it is hostile input."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from agentlab.base.clock import Clock, sleep
from agentlab.base.entropy import Entropy
from agentlab.base.pace import Pace
from agentlab.base.tasks import TaskScope
from agentlab.base.text import one_line
from agentlab.errors import AgentLabError
from agentlab.model import event as facts
from agentlab.model.grant import Grant
from agentlab.model.ids import JobId
from agentlab.model.job import Job
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import JobState as J
from agentlab.model.profile import ArtifactLimits
from agentlab.model.sandbox import Sandbox
from agentlab.secrets.seal import Seal
from agentlab.services.allowance import Allowance
from agentlab.services.bootstrap import bootstrap
from agentlab.services.events import Events
from agentlab.services.guests import Guests, hashed
from agentlab.services.harvest import Harvest
from agentlab.services.limits import Limits
from agentlab.services.profiles import Profiles
from agentlab.services.quarantine import quarantine
from agentlab.services.wake import Wake
from agentlab.store import events, grants, jobs, progress, sandboxes, steps
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database, Tx
from agentlab.store.outputs import Outputs
from agentlab_guest import messages as say
from agentlab_guest.protocol import DaemonSide, ProtocolError, agreed_protocol
from agentlab_guest.strict import Data

log = logging.getLogger(__name__)

HELLO_S_MAX = 10.0  # from the connection to a complete hello
MESSAGES_AT_ONCE_MAX = 64  # of one guest, before others get their turn
# Refused grants and credentials become events, but whoever can reach the socket can cause them without end.
ALARMS_PER_SECOND_MAX, ALARMS_BURST_MAX = 0.1, 100
REMARKS_PER_SECOND_MAX, REMARKS_BURST_MAX = 1.0, 100  # lines of the log about guests that misbehave
REFUSED_AS = {"spent": "grant-spent", "expired": "grant-unknown", "unknown": "grant-unknown"}


class Stream(Protocol):
    """The connection, whatever carries it."""

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""
        ...

    def write(self, buffers: Sequence[Data]) -> None:
        """Queue bytes."""
        ...

    async def drain(self) -> None:
        """Wait while too much is queued."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Sessions:
    """Serves guest connections; holds what every session needs."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        guests: Guests,
        profiles: Profiles,
        blobs: Blobs,
        outputs: Outputs,
        seal: Seal,
        limits: Limits,
        wake: Wake,
        log: Events,
        scope: TaskScope,
    ) -> None:
        self.database, self.clock, self.entropy, self.guests = database, clock, entropy, guests
        self.profiles, self.blobs, self.outputs, self.seal = profiles, blobs, outputs, seal
        self.limits, self.wake, self.log, self.scope = limits, wake, log, scope
        self.draining = False
        self.alarms = Pace(clock, per_s=ALARMS_PER_SECOND_MAX, burst=ALARMS_BURST_MAX)
        self.remarks = Pace(clock, per_s=REMARKS_PER_SECOND_MAX, burst=REMARKS_BURST_MAX)
        self._allowances: dict[JobId, Allowance] = {}

    async def serve(self, stream: Stream) -> None:
        """Serve one connection to its end.  Never raises what a guest can cause."""
        session = _Session(self, stream)
        try:
            await session.run()
        except ProtocolError as error:
            session.refuse(error.code, error.detail)
        except AgentLabError as error:
            # Ours, such as a full disk.  The guest keeps what was not acknowledged, and comes again.
            session.refuse("busy", str(error))
        except (ConnectionError, TimeoutError) as error:
            if self.remarks.allows():
                log.info("a guest link was cut", extra={"cause": one_line(str(error))})
        finally:
            try:
                await session.ended()
            finally:
                stream.close()

    def allowance(self, job: JobId, limits: ArtifactLimits) -> Allowance:
        """What this job's guest may still send; the same object for all of its connections."""
        return self._allowances.setdefault(job, Allowance.of(limits))

    async def forget(self, job: JobId) -> None:
        """The job is final: what was left of its uploads goes."""
        if (allowance := self._allowances.pop(job, None)) is not None:
            for token in allowance.partials.values():
                await asyncio.to_thread(self.blobs.discard, token)


class _Session:
    """The daemon's side of one connection."""

    def __init__(self, sessions: Sessions, stream: Stream) -> None:
        self._all, self._stream = sessions, stream
        self._close = stream.close  # one object: it identifies this session in the registry
        self._side = DaemonSide()
        self._job: JobId | None = None
        self._credential_hash = ""
        self._harvest: Harvest | None = None

    async def run(self) -> None:
        async with asyncio.timeout(HELLO_S_MAX):
            pending = await self._next()
        while pending:
            for number, message in enumerate(pending, 1):
                await self._receive(message)
                if number % MESSAGES_AT_ONCE_MAX == 0:
                    await sleep(0)  # thousands fit into one read, and none of them needs to wait for anything
            pending = await self._next()

    async def _next(self) -> list[say.Message]:
        """The next complete messages; empty at the end of the connection."""
        while data := await self._stream.read():
            if self._job is not None:
                self._all.guests.heard(self._job)
            if received := self._side.receive(data):
                return received
        return []

    async def _receive(self, message: say.Message) -> None:
        if isinstance(message, say.Hello):
            await self._hello(message)
            return
        if self._job is None or self._harvest is None:
            raise ProtocolError("out-of-order", "nothing may come before a welcome")
        match message:
            case say.Accepted():
                await self._accepted()
            case say.Heartbeat():
                self._send(say.HeartbeatAck())
            case say.BlobWant():
                await self._send_blob(message)
            case _:
                await self._harvest.receive(message)
        await self._stream.drain()

    def _send(self, message: say.Message) -> None:
        self._stream.write(self._side.send(message))

    def refuse(self, code: str, detail: str) -> None:
        """Say why, if the connection still takes it, and end."""
        if self._all.remarks.allows():
            facts = {"code": code, "detail": one_line(detail), "job": self._job, "untold": self._all.remarks.missed()}
            log.info("a guest was refused", extra=facts)
        try:
            self._send(say.Refused(code=code, message=one_line(detail, 500)))
        except (ProtocolError, ValueError, ConnectionError):
            log.debug("a refusal could not be sent")
        self._stream.close()

    async def ended(self) -> None:
        """Whatever ended the connection: keep what arrived, and let planning know."""
        try:
            if self._harvest is not None:
                await self._harvest.close()
        except AgentLabError as error:
            log.error("what a guest sent is not durable", extra={"job": self._job, "cause": str(error)})
        if self._job is not None:
            self._all.guests.disconnected(self._job, self._close)
            self._all.wake.job(self._job)

    # Hello

    async def _hello(self, hello: say.Hello) -> None:
        if self._all.draining:
            raise ProtocolError("busy", "the daemon is stopping")
        protocol = agreed_protocol(hello)  # before the grant is touched: a guest that is too old does not spend it
        if hello.grant is not None:
            credential = self._all.entropy.token(32)
            grant, fresh = await self._redeem(hello.grant, hello.nonce, credential)
        else:
            credential, fresh = None, False
            grant = await self._resume(hello.credential or "")
        job, sandbox, sealed, state = self._all.database.read(lambda tx: _rows(tx, grant))
        if job is None or sandbox is None or (job.state in JOB_FINAL and not state.reported):
            raise ProtocolError("credential-unknown", "the job has ended")
        self._job = job.id
        content = b""
        if credential is not None:
            profile = self._all.profiles.get(job.profile)
            content = bootstrap(
                job,
                sandbox,
                rescue=grant.rescue,
                sealed_env=sealed,
                seal=self._all.seal,
                blobs=self._all.blobs,
                limits=profile.artifacts,
                stop_grace_s=self._all.limits.stop_grace_s,
                collect_s_max=self._all.limits.job.harvest_s_max * 0.8,
            )
        self._harvest = Harvest(self._all, job, self._send, grant.rescue)
        self._all.guests.connected(job.id, self._stop, self._close, job.stop_reason is not None)
        self._send(
            say.Welcome(
                protocol=protocol,
                credential=credential,
                output_acked=state.output_acked,
                event_acked=state.event_acked,
                reported=state.reported,
                stop=job.stop_reason,
                data=content,
            )
        )
        if fresh or job.stop_reason is not None:
            self._all.wake.job(job.id)

    def _stop(self, reason: str) -> None:
        self._send(say.Stop(reason=reason))

    async def _redeem(self, token: str, nonce: str, credential: str) -> tuple[Grant, bool]:
        token_hash, self._credential_hash = hashed(token), hashed(credential)
        now = self._all.clock.now()

        def write(tx: Tx) -> tuple[str, Grant | None, bool]:
            outcome, grant = grants.redeem(tx, token_hash, nonce, self._credential_hash, now)
            if outcome == "redeemed":
                assert grant is not None
                self._started(tx, grant, now)
            quarantined = grant is not None and self._quarantine(tx, grant, outcome, now)
            return outcome, grant, quarantined

        outcome, grant, quarantined = await self._all.database.write(write)
        if outcome not in ("redeemed", "again"):
            if not quarantined:
                await self._alarm("guest-link" if grant is None else grant.sandbox, outcome)
            if grant is not None:
                self._all.wake.sandbox(grant.sandbox)
                self._all.wake.job(grant.job)
            raise ProtocolError(REFUSED_AS[outcome], f"this grant is {outcome}")
        assert grant is not None
        return grant, outcome == "redeemed"

    def _started(self, tx: Tx, grant: Grant, now: float) -> None:
        # From the redemption on the agent may have run: a lost guest is rescued, never started over.
        job = jobs.get(tx, grant.job)
        assert job is not None
        if job.state is J.STARTING:
            jobs.transition(tx, job.id, J.RUNNING, now, running_at=now)
        operation = "rescue" if grant.rescue else "run"
        steps.finish(tx, steps.begin(tx, job.id, operation, "connected", now), "done", now)
        events.append(tx, facts.GrantRedeemed(subject=job.id, sandbox=grant.sandbox), now)

    def _quarantine(self, tx: Tx, grant: Grant, outcome: str, now: float) -> bool:
        if outcome != "spent":
            return False
        return quarantine(tx, grant.sandbox, outcome, "its grant was presented a second time", now)

    async def _alarm(self, subject: str, reason: str) -> None:
        if self._all.alarms.allows():
            missed = self._all.alarms.missed()
            untold = f" ({missed} more were refused before)" if missed else ""
            await self._all.log.append(
                facts.GrantRefused(subject=subject, reason=reason + untold), self._all.clock.now()
            )

    async def _resume(self, credential: str) -> Grant:
        self._credential_hash = hashed(credential)
        grant = self._all.database.read(lambda tx: grants.by_credential(tx, self._credential_hash))
        if grant is None:
            await self._alarm("guest-link", "unknown credential")
            raise ProtocolError("credential-unknown", "no such session")
        return grant

    async def _accepted(self) -> None:
        job, now = self._job, self._all.clock.now()
        assert job is not None

        def write(tx: Tx) -> None:
            grants.acknowledge(tx, self._credential_hash)
            jobs.forget_env(tx, job)  # delivered: it need not be kept any longer
            steps.finish(tx, steps.begin(tx, job, "run", "bootstrapped", now), "done", now)

        await self._all.database.write(write)

    async def _send_blob(self, want: say.BlobWant) -> None:
        job = self._all.database.read(lambda tx: jobs.get(tx, self._job or JobId("")))
        bundle = None if job is None else job.repo.bundle
        if bundle is None or want.digest != bundle or not self._all.blobs.has(bundle):
            self._send(say.BlobMissing(digest=want.digest, reason="this job has no such blob"))
            return
        total = self._all.blobs.size(bundle)
        with self._all.blobs.open(bundle) as file:
            file.seek(offset := min(want.offset, total))
            while chunk := file.read(say.CHUNK_BYTES_MAX):
                self._send(say.BlobChunk(digest=bundle, offset=offset, total=total, data=chunk))
                offset += len(chunk)
                await self._stream.drain()


def _rows(tx: Tx, grant: Grant) -> tuple[Job | None, Sandbox | None, bytes | None, progress.Progress]:
    return (
        jobs.get(tx, grant.job),
        sandboxes.get(tx, grant.sandbox),
        jobs.sealed_env(tx, grant.job),
        progress.get(tx, grant.job),
    )
