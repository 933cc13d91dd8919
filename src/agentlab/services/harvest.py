"""What a guest brings: output, phases, artifacts and the report, each durable before it is acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentlab.base.text import one_line
from agentlab.errors import AgentLabError, DiskFull, TooLarge
from agentlab.model import event as facts
from agentlab.model.artifact import ARTIFACTS_MAX, Artifact, artifact_name_problem
from agentlab.model.failure import Failure
from agentlab.model.ids import Digest, JobId
from agentlab.model.job import Job, JobResult
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import JobState as J
from agentlab.services.allowance import ARTIFACT_SENDINGS_MAX, PARTIALS_KEPT_MAX
from agentlab.store import artifacts, events, jobs, progress
from agentlab.store.database import Tx
from agentlab.store.upload import Upload
from agentlab_guest import messages as say
from agentlab_guest.protocol import Malformed, ProtocolError
from agentlab_guest.report import Report, parse_report

if TYPE_CHECKING:
    from agentlab.services.session import Sessions

log = logging.getLogger(__name__)

PHASES = ("fetch", "prepare", "run", "collect", "report")
SKIPPED_KEPT_MAX = 100  # of what could not be brought back; every list of jobs carries them
EVENTS_MAX = 10_000  # of one job; later ones are acknowledged and dropped
FLUSH_S = 0.5  # how long output may wait to be durable and acknowledged
FLUSH_AGAIN_S = 5.0  # after a failure, such as a full disk
FLUSH_BYTES = 4 << 20
THREAD_BYTES_MIN = 128 << 10  # smaller chunks are written at once: a thread would cost more
FINAL = {
    "succeeded": J.SUCCEEDED,
    "failed": J.FAILED,
    "timed_out": J.TIMED_OUT,
    "cancelled": J.CANCELLED,
    "lost": J.LOST,
}


_SPENT = f"ARTIFACT_SENDINGS_MAX = {ARTIFACT_SENDINGS_MAX} times what artifacts.total_max allows was sent already"


class Harvest:
    """The receiving end of one session.  A later session of the same job goes on where this one ended."""

    def __init__(self, sessions: Sessions, job: Job, send: Callable[[say.Message], None], rescue: bool) -> None:
        self._all, self._job_id, self._send, self._rescue = sessions, job.id, send, rescue
        self._limits = sessions.profiles.get(job.profile).artifacts
        self._allowance = sessions.allowance(job.id, self._limits)
        self._offers: dict[int, say.ArtifactOffer] = {}
        self._uploads: dict[int, Upload] = {}
        self._output_end = 0
        self._output_durable = 0
        self._flush: asyncio.TimerHandle | None = None
        self._flushing = asyncio.Lock()
        self._flush_task: asyncio.Task[None] | None = None

    async def receive(self, message: say.Message) -> None:
        """Take one message; ProtocolError if the guest breaks a rule that only the daemon can check."""
        match message:
            case say.Output(offset=offset, data=data):
                await self._output(offset, bytes(data))
            case say.Event():
                await self._event(message)
            case say.ArtifactOffer():
                await self._offer(message)
            case say.ArtifactChunk():
                await self._chunk(message)
            case say.ReportMessage(data=data):
                await self._report(bytes(data))
            case _:
                raise ProtocolError("out-of-order", f"{type(message).__name__} is not expected")

    async def close(self) -> None:
        """Keep what has arrived: output becomes durable, uploads can be resumed."""
        if self._flush is not None:
            self._flush.cancel()
        try:
            await self._make_durable(acknowledge=False)
        finally:
            await self._keep_uploads()

    async def _keep_uploads(self) -> None:
        job = self._all.database.read(lambda tx: jobs.get(tx, self._job_id))
        over, kept = job is None or job.state in JOB_FINAL, self._allowance.partials
        for number, upload in self._uploads.items():
            if over or len(kept) >= PARTIALS_KEPT_MAX:
                await asyncio.to_thread(upload.abandon)  # removing a large file takes a while
            else:
                kept[Digest(self._offers[number].digest)] = upload.token
                upload.close()
        self._uploads.clear()
        if over:
            await self._all.forget(self._job_id)

    # Output

    async def _output(self, offset: int, data: bytes) -> None:
        try:
            end = self._all.outputs.append(self._job_id, offset, data)
        except ValueError as error:
            raise ProtocolError("out-of-order", str(error)) from error
        self._output_end = max(end, offset + len(data))
        self._all.log.poke(output_topic(self._job_id))
        if self._output_end - self._output_durable >= FLUSH_BYTES:
            await self._make_durable(acknowledge=True)
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_due)

    def _flush_due(self) -> None:
        self._flush = None
        self._flush_task = self._all.scope.start(self._flush_now(), f"flush {self._job_id}")

    async def _flush_now(self) -> None:
        try:
            await self._make_durable(acknowledge=True)
        except AgentLabError as error:
            # The guest keeps what is not acknowledged, so trying again later loses nothing.
            log.error("output could not be made durable", extra={"job": self._job_id, "cause": str(error)})
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(FLUSH_AGAIN_S, self._flush_due)

    async def _make_durable(self, *, acknowledge: bool) -> None:
        async with self._flushing:
            end = self._output_end
            if end <= self._output_durable:
                return
            await asyncio.to_thread(self._all.outputs.sync, self._job_id)

            def write(tx: Tx) -> None:
                progress.output(tx, self._job_id, end)
                jobs.update(tx, self._job_id, output_bytes=end)

            await self._all.database.write(write)
            self._output_durable = end
            if acknowledge:
                self._send(say.OutputAck(offset=end))

    # Phases

    async def _event(self, message: say.Event) -> None:
        now, job_id = self._all.clock.now(), self._job_id
        phase, detail = one_line(message.phase, 64), one_line(message.detail, 1000)

        def write(tx: Tx) -> None:
            if message.seq <= progress.get(tx, job_id).event_acked:
                return
            progress.event(tx, job_id, message.seq)
            if message.seq > EVENTS_MAX:
                return
            events.append(tx, facts.JobPhase(subject=job_id, phase=phase, detail=detail), now)
            job = jobs.get(tx, job_id)
            if phase not in PHASES or job is None or job.state in JOB_FINAL:
                return
            jobs.update(tx, job_id, phase=phase)
            if phase == "collect" and job.state in (J.STARTING, J.RUNNING):
                jobs.transition(tx, job_id, J.COLLECTING, now, collecting_at=now)

        await self._all.database.write(write)
        self._send(say.EventAck(seq=message.seq))

    # Artifacts

    async def _offer(self, offer: say.ArtifactOffer) -> None:
        if (problem := self._offer_problem(offer)) is not None:
            await self._refuse(offer, problem)
            return
        known = self._all.database.read(lambda tx: artifacts.get(tx, self._job_id, offer.name))
        if known is not None and known.digest == offer.digest:
            self._send(say.ArtifactStored(id=offer.id))
            return
        token = self._allowance.partials.pop(Digest(offer.digest), None)
        try:
            # On a thread: what an earlier connection sent of it is read and hashed again.
            upload = await asyncio.to_thread(self._all.blobs.begin, offer.bytes, token)
        except DiskFull as error:
            await self._refuse(offer, str(error))
            return
        self._offers[offer.id], self._uploads[offer.id] = offer, upload
        if upload.offset == offer.bytes:
            await self._stored(offer, upload)
        else:
            self._send(say.ArtifactWant(id=offer.id, offset=upload.offset))

    def _offer_problem(self, offer: say.ArtifactOffer) -> str | None:
        if (problem := artifact_name_problem(offer.name)) is not None:
            return f"its name is {problem}"
        count, stored = self._all.database.read(lambda tx: artifacts.total_without(tx, self._job_id, offer.name))
        waiting = sum(each.bytes for each in self._offers.values())
        if self._allowance.spent:
            return _SPENT
        if count >= ARTIFACTS_MAX:
            return f"ARTIFACTS_MAX = {ARTIFACTS_MAX} is reached"
        if offer.kind == "file" and offer.bytes > self._limits.file_bytes_max:
            return f"artifacts.file_max = {self._limits.file_bytes_max} bytes; it has {offer.bytes}"
        if stored + waiting + offer.bytes > self._limits.total_bytes_max:
            return f"artifacts.total_max = {self._limits.total_bytes_max} bytes is reached"
        return None

    async def _refuse(self, offer: say.ArtifactOffer, reason: str) -> None:
        if self._allowance.tells_refusal():
            fact = facts.ArtifactRefused(subject=self._job_id, name=one_line(offer.name), reason=one_line(reason))
            await self._all.log.append(fact, self._all.clock.now())
        self._send(say.ArtifactRefused(id=offer.id, reason=one_line(reason)))

    async def _chunk(self, chunk: say.ArtifactChunk) -> None:
        upload = self._uploads.get(chunk.id)
        if upload is None:
            return  # refused in mid-transfer; the rest of it is still arriving
        offer = self._offers[chunk.id]
        self._allowance.bytes_left -= len(chunk.data)
        if self._allowance.spent:
            self._forget(chunk.id)
            upload.abandon()
            await self._refuse(offer, _SPENT)
            return
        try:
            if len(chunk.data) >= THREAD_BYTES_MIN:
                await asyncio.to_thread(upload.write, chunk.data)
            else:
                upload.write(chunk.data)
        except (DiskFull, TooLarge) as error:
            self._forget(chunk.id)
            upload.abandon()
            await self._refuse(offer, str(error))
            return
        if upload.offset == offer.bytes:
            await self._stored(offer, upload)

    async def _stored(self, offer: say.ArtifactOffer, upload: Upload) -> None:
        self._forget(offer.id)
        self._allowance.stores_left -= 1
        try:
            digest = await asyncio.to_thread(upload.finish, Digest(offer.digest))
        except ValueError as error:
            await self._refuse(offer, str(error))
            return
        now = self._all.clock.now()
        row = Artifact(
            job=self._job_id,
            name=offer.name,
            kind=offer.kind,
            bytes_count=offer.bytes,
            digest=digest,
            created_at=now,
        )
        fact = facts.ArtifactStored(
            subject=self._job_id, name=offer.name, kind=offer.kind, bytes_count=offer.bytes, digest=digest
        )

        def write(tx: Tx) -> None:
            artifacts.insert(tx, row)
            events.append(tx, fact, now)

        await self._all.database.write(write)
        self._send(say.ArtifactStored(id=offer.id))

    def _forget(self, number: int) -> None:
        self._uploads.pop(number, None)
        self._offers.pop(number, None)

    # The end

    async def _report(self, raw: bytes) -> None:
        try:
            report = parse_report(raw)
        except Malformed as error:
            raise ProtocolError("malformed", str(error)) from error
        await self._make_durable(acknowledge=True)
        now = self._all.clock.now()
        await self._all.database.write(lambda tx: self._finish(tx, report, now))
        self._send(say.ReportAck())
        self._all.log.poke(output_topic(self._job_id))
        self._all.wake.job(self._job_id)
        self._all.wake.queue()

    def _finish(self, tx: Tx, report: Report, now: float) -> None:
        progress.reported(tx, self._job_id)
        job = jobs.get(tx, self._job_id)
        if job is None or job.state in JOB_FINAL:
            return
        outcome = job.stop_reason if self._rescue and job.stop_reason is not None else report.outcome
        state = FINAL[outcome]
        result, failure = _result(report, outcome), _failure(report, state, now)
        cause = "" if failure is None else failure.cause
        jobs.transition(
            tx, job.id, state, now, reason=cause, result=result, failure=failure, ended_at=now, phase="report"
        )
        ran_s = round(now - (job.running_at or now))
        events.append(tx, facts.JobEnded(subject=job.id, state=state, cause=cause, ran_s=ran_s), now)
        jobs.forget_env(tx, job.id)


def output_topic(job: JobId) -> str:
    """The subject on which waits for new output of a job listen."""
    return f"output:{job}"


def _result(report: Report, outcome: str) -> JobResult:
    return JobResult(
        outcome=outcome,
        exit_status=report.exit_status,
        summary=one_line(report.summary),
        base_commit=report.base_commit,
        head_commit=report.head_commit,
        files_changed=report.files_changed,
        lines_added=report.lines_added,
        lines_removed=report.lines_removed,
        skipped=_skipped(report),
    )


def _skipped(report: Report) -> tuple[str, ...]:
    told = [f"{one_line(each.name, 200)}: {one_line(each.reason, 200)}" for each in report.skipped[:SKIPPED_KEPT_MAX]]
    if len(report.skipped) > SKIPPED_KEPT_MAX:
        told.append(f"… and {len(report.skipped) - SKIPPED_KEPT_MAX} more")
    return tuple(told)


def _failure(report: Report, state: J, now: float) -> Failure | None:
    if state is J.SUCCEEDED:
        return None
    if report.failure is not None:
        step, cause = one_line(report.failure.phase, 64), one_line(report.failure.cause)
        return Failure(code="job/not-succeeded", step=step, cause=cause, remedy=one_line(report.failure.remedy), at=now)
    causes = {
        J.FAILED: f"the agent ended with status {report.exit_status}",
        J.TIMED_OUT: "its time limit was reached",
        J.CANCELLED: "it was cancelled",
        J.LOST: "the guest program was lost while the agent ran",
    }
    remedy = "See its output; the work that was there was brought back."
    return Failure(code="job/not-succeeded", step="run", cause=causes[state], remedy=remedy, at=now)
