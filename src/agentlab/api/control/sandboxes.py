"""Sandboxes over the API."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field

from agentlab.api.call import Call
from agentlab.backends.interface import Command, Execution
from agentlab.base.tasks import TaskScope
from agentlab.model.sandbox import Sandbox, Wish
from agentlab.services.requests import NewSandbox
from agentlab.wire import requests, responses
from agentlab.wire.requests import EXEC_OUTPUT_BYTES_MAX


def shown(call: Call, row: Sandbox) -> responses.Sandbox:
    """A row as the API shows it."""
    return responses.Sandbox.of(row, call.services.sandboxes.address(row))


async def create(call: Call) -> responses.Sandbox:
    """POST /v1/sandboxes"""
    body: requests.CreateSandbox = call.body
    asked = NewSandbox(**{name: getattr(body, name) for name in type(body).model_fields})
    return shown(call, await call.services.sandboxes.create(call.identity.name, asked, call.key))


async def page(call: Call) -> responses.SandboxPage:
    """GET /v1/sandboxes"""
    query: requests.ListSandboxes = call.query
    rows, cursor = call.services.sandboxes.page(
        call.identity.owner, query.state or None, query.all, query.cursor, query.limit
    )
    return responses.SandboxPage.model_construct(items=[shown(call, row) for row in rows], next_cursor=cursor)


async def get(call: Call) -> responses.Sandbox:
    """GET /v1/sandboxes/{sandbox}"""
    row: Sandbox = call.target
    if call.query.wait_s > 0:
        row = await call.while_connected(call.services.sandboxes.wait_settled(row.id, call.query.wait_s))
    return shown(call, row)


async def steps(call: Call) -> responses.Steps:
    """GET /v1/sandboxes/{sandbox}/steps"""
    return responses.Steps(items=[responses.Step.of(each) for each in call.services.sandboxes.steps(call.target.id)])


async def destroy(call: Call) -> responses.Sandbox:
    """DELETE /v1/sandboxes/{sandbox}"""
    return await _wish(call, Wish.DESTROYED)


async def stop(call: Call) -> responses.Sandbox:
    """POST /v1/sandboxes/{sandbox}/stop"""
    return await _wish(call, Wish.STOPPED)


async def start(call: Call) -> responses.Sandbox:
    """POST /v1/sandboxes/{sandbox}/start"""
    return await _wish(call, Wish.RUNNING)


async def pause(call: Call) -> responses.Sandbox:
    """POST /v1/sandboxes/{sandbox}/pause"""
    return await _wish(call, Wish.PAUSED)


async def resume(call: Call) -> responses.Sandbox:
    """POST /v1/sandboxes/{sandbox}/resume"""
    return await _wish(call, Wish.RUNNING)


async def renew(call: Call) -> responses.Sandbox:
    """POST /v1/sandboxes/{sandbox}/lease"""
    return shown(call, await call.services.sandboxes.renew(call.target.id, call.body.ttl_s, call.key))


async def console(call: Call) -> responses.Console:
    """GET /v1/sandboxes/{sandbox}/console"""
    return responses.Console(text=await call.services.sandboxes.console(call.target.id))


async def execute(call: Call) -> responses.Executed:
    """POST /v1/sandboxes/{sandbox}/exec"""
    return await call.while_connected(_execute(call))


async def _wish(call: Call, wish: Wish) -> responses.Sandbox:
    return shown(call, await call.services.sandboxes.wish(call.target.id, wish, call.key))


@dataclass(slots=True)
class _Captured:
    """What a command wrote, up to the limit of each stream."""

    streams: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    truncated: bool = False

    def take(self, stream: str, data: bytes) -> None:
        """Keep what still fits."""
        kept = self.streams[stream]
        room = EXEC_OUTPUT_BYTES_MAX - len(kept)
        kept += data[:room]
        self.truncated = self.truncated or len(data) > room

    def text(self, stream: str) -> str:
        """One stream for the wire."""
        return base64.b64encode(self.streams[stream]).decode()


async def _execute(call: Call) -> responses.Executed:
    body: requests.Execute = call.body
    command = Command(
        argv=tuple(body.argv), env=dict(body.env), cwd=body.cwd, user=body.user or call.target.user
    )  # fmt: skip
    captured, exit_code = _Captured(), None
    async with call.services.sandboxes.execute(call.target.id, command) as execution:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(body.timeout_s) as limit, TaskScope(call.request_id) as scope:
                scope.start(_feed(execution, base64.b64decode(body.stdin_b64)), "input")
                async for stream, data in execution.output():
                    captured.take(stream, data)
                exit_code = await execution.wait()
        except TimeoutError:
            if not limit.expired():
                raise
        took_s = asyncio.get_running_loop().time() - began
    return responses.Executed(
        exit_code=exit_code,
        timed_out=exit_code is None,
        stdout_b64=captured.text("stdout"),
        stderr_b64=captured.text("stderr"),
        truncated=captured.truncated,
        took_s=took_s,
    )


async def _feed(execution: Execution, data: bytes) -> None:
    try:
        if data:
            await execution.write(data)
        await execution.close_input()
    except BrokenPipeError:
        pass  # the program did not want its input: its own affair
