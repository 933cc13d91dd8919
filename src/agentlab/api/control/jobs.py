"""Jobs over the API."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from agentlab.api.call import Call
from agentlab.api.stream import Emitter, send_events
from agentlab.base.clock import sleep
from agentlab.base.secret import Secret
from agentlab.errors import Invalid
from agentlab.model.ids import Digest
from agentlab.model.job import Job, RepoSource
from agentlab.model.machine import JOB_FINAL, JobState
from agentlab.services.requests import NewJob
from agentlab.wire import requests, responses

FOLLOW_CHUNK_BYTES = 64 << 10
LOOK_S_MIN, LOOK_S_MAX = 0.03, 0.3  # how soon a follower looks again: soon after news, slower in silence


def shown(call: Call, row: Job) -> responses.Job:
    """A row as the API shows it."""
    waits = row.state is JobState.QUEUED
    return responses.Job.of(row, call.services.jobs.queue_position(row.id) if waits else None)


async def create(call: Call) -> responses.Job:
    """POST /v1/jobs"""
    body: requests.CreateJob = call.body
    repo = RepoSource(
        url=body.repo.url,
        bundle=None if body.repo.bundle is None else Digest(body.repo.bundle),
        ref=body.repo.ref,
        origin=body.repo.origin or body.repo.url or "",
    )
    asked = NewJob(
        repo=repo,
        task=body.task,
        profile=body.profile,
        agent=body.agent,
        backend=body.backend,
        ttl_s=body.ttl_s,
        timeout_s=body.timeout_s,
        keepalive=body.keepalive,
        env={name: Secret(value) for name, value in body.env.items()},
        artifact_globs=tuple(body.artifact_globs),
    )
    return shown(call, await call.services.jobs.create(call.identity.name, asked, call.key))


async def page(call: Call) -> responses.JobPage:
    """GET /v1/jobs"""
    query: requests.ListJobs = call.query
    rows, cursor = call.services.jobs.page(call.identity.owner, query.state or None, query.cursor, query.limit)
    return responses.JobPage.model_construct(items=[shown(call, row) for row in rows], next_cursor=cursor)


async def get(call: Call) -> responses.Job:
    """GET /v1/jobs/{job}"""
    row: Job = call.target
    if call.query.wait_s > 0:
        row = await call.while_connected(call.services.jobs.wait_ended(row.id, call.query.wait_s))
    return shown(call, row)


async def steps(call: Call) -> responses.Steps:
    """GET /v1/jobs/{job}/steps"""
    return responses.Steps(items=[responses.Step.of(each) for each in call.services.jobs.steps(call.target.id)])


async def cancel(call: Call) -> responses.Job:
    """POST /v1/jobs/{job}/cancel"""
    return shown(call, await call.services.jobs.cancel(call.target.id, call.key))


async def follow(call: Call) -> None:
    """GET /v1/jobs/{job}/output/stream"""
    offset = call.query.offset
    if (place := call.headers.get(b"last-event-id")) is not None:
        if not place.isdigit() or len(place) > 18:
            raise Invalid(cause="Last-Event-ID: not an offset")
        offset = int(place)
    await send_events(call, _Follower(call, offset).run)


@dataclass(slots=True)
class _Follower:
    """Compares a job with what was last told of it, and tells the difference."""

    call: Call
    offset: int
    told: bytes = b""
    told_steps: dict[tuple[str, ...], bytes] = field(default_factory=dict)

    async def run(self, emit: Emitter) -> None:
        """Until the job has ended and all of its output is told."""
        pause_s = LOOK_S_MIN
        while True:
            # The order matters: a row that is final was so before its output was looked at.
            row = self.call.services.jobs.get(self.call.target.id, self.call.identity.owner)
            news = await self._state(emit, row)
            news = await self._steps(emit) or news
            news = await self._output(emit) or news
            if row.state in JOB_FINAL:
                await emit.event("end", shown(self.call, row).model_dump_json().encode(), self.offset)
                return
            pause_s = LOOK_S_MIN if news else min(pause_s * 1.5, LOOK_S_MAX)
            await sleep(pause_s)

    async def _state(self, emit: Emitter, row: Job) -> bool:
        # The count of output bytes changes all the time and is told by the output itself.
        now = shown(self.call, row).model_dump_json(exclude={"output_bytes"}).encode()
        if now == self.told:
            return False
        self.told = now
        await emit.event("state", now)
        return True

    async def _steps(self, emit: Emitter) -> bool:
        news = False
        for each in self.call.services.jobs.steps(self.call.target.id):
            place = (each.subject, each.operation, each.step, str(each.started_at))
            now = responses.Step.of(each).model_dump_json().encode()
            if self.told_steps.get(place) != now:
                self.told_steps[place] = now
                await emit.event("step", now)
                news = True
        return news

    async def _output(self, emit: Emitter) -> bool:
        began = self.offset
        while data := self.call.services.jobs.output(self.call.target.id, self.offset, FOLLOW_CHUNK_BYTES):
            place = self.offset
            self.offset += len(data)
            text = base64.b64encode(data).decode()
            await emit.json("output", {"offset": place, "data_b64": text}, self.offset)
        return self.offset > began
