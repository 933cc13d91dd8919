"""A command with its streams connected, over a WebSocket.  wire.attach describes the messages."""

from __future__ import annotations

import asyncio
from collections import deque

from uvicorn.protocols.utils import ClientDisconnected

from agentlab.api.call import Call, CallerGone, Message
from agentlab.api.parse import parse_body
from agentlab.backends.interface import Command, Execution
from agentlab.base.tasks import TaskScope
from agentlab.errors import AgentLabError, Draining, Invalid
from agentlab.wire.attach import STDERR, STDIN, STDIN_WINDOW_BYTES, STDOUT, binary_of, text_of
from agentlab.wire.problem import to_problem
from agentlab.wire.requests import AttachControl, AttachStart

MESSAGES_WAITING_MAX = 100_000  # the window bounds bytes; messages may be empty, and the command may not read
CHANNELS = {"stdout": STDOUT, "stderr": STDERR}


async def attach(call: Call) -> None:
    """GET /v1/sandboxes/{sandbox}/attach"""
    await call.receive()  # websocket.connect
    call.answered = True
    try:
        await call.send({"type": "websocket.accept"})
        try:
            await _attach(call)
        except AgentLabError as error:
            await _tell(call, text_of("error", problem=to_problem(error, call.request_id)))
        await call.send({"type": "websocket.close", "code": 1000})
    except ClientDisconnected:
        pass


async def _attach(call: Call) -> None:
    first = await call.receive()
    if first["type"] == "websocket.disconnect":
        return
    start = parse_body(AttachStart, (first.get("text") or "").encode())
    command = Command(
        argv=tuple(start.argv),
        env=dict(start.env),
        cwd=start.cwd,
        user=start.user or call.target.user,
        tty=start.tty,
        rows=start.rows,
        columns=start.columns,
    )
    inputs = _Inputs(call)
    try:
        await call.while_connected(_run(call, command, inputs), inputs.take)
    except CallerGone:
        if inputs.problem is not None:
            raise inputs.problem from None
        if call.server.draining:
            raise Draining from None


async def _run(call: Call, command: Command, inputs: _Inputs) -> None:
    async with call.services.sandboxes.execute(call.target.id, command) as execution:
        await _tell(call, text_of("started"))
        async with TaskScope(f"{call.request_id}/input") as scope:
            scope.start(inputs.feed(execution), "feed")
            async for stream, data in execution.output():
                await call.send({"type": "websocket.send", "bytes": binary_of(CHANNELS[stream], data)})
            status = await execution.wait()
    await _tell(call, text_of("exit", status=status))


async def _tell(call: Call, text: str) -> None:
    await call.send({"type": "websocket.send", "text": text})


class _Inputs:
    """What the caller sends: taken as it comes, given to the command as that reads."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._data: deque[bytes | None] = deque()
        self._controls: deque[AttachControl] = deque()
        self._pending_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self.problem: AgentLabError | None = None

    async def take(self, message: Message) -> bool:
        """One message from the caller; False if it breaks the protocol, and `problem` then says how."""
        try:
            self._take(message)
        except AgentLabError as error:
            self.problem = error
            return False
        self._news.set()
        return True

    def _take(self, message: Message) -> None:
        if (text := message.get("text")) is not None:
            control = parse_body(AttachControl, text.encode())
            if control.type == "eof":
                self._data.append(None)  # behind the data that came before it
            else:
                self._controls.append(control)
            self._bounded()
            return
        data: bytes = message.get("bytes") or b""
        if not data or data[0] != STDIN:
            raise Invalid(cause="attach: a binary message must begin with the byte 0")
        self._pending_bytes += len(data) - 1
        if self._pending_bytes > STDIN_WINDOW_BYTES:
            raise Invalid(cause=f"attach: more than STDIN_WINDOW_BYTES = {STDIN_WINDOW_BYTES} are under way")
        self._data.append(data[1:])
        self._bounded()

    def _bounded(self) -> None:
        if len(self._data) + len(self._controls) > MESSAGES_WAITING_MAX:
            raise Invalid(cause=f"attach: more than MESSAGES_WAITING_MAX = {MESSAGES_WAITING_MAX} are under way")

    async def feed(self, execution: Execution) -> None:
        """Until cancelled."""
        async with TaskScope(f"{self._call.request_id}/stdin") as scope:
            scope.start(self._write(execution), "write")
            while True:
                await self._news.wait()
                self._news.clear()
                while self._controls:
                    await self._control(execution, self._controls.popleft())
                self._room.set()

    async def _control(self, execution: Execution, control: AttachControl) -> None:
        if control.type == "resize":
            await execution.resize(control.rows, control.columns)
        else:
            await execution.signal(control.number)

    async def _write(self, execution: Execution) -> None:
        try:
            while True:
                await self._room.wait()
                self._room.clear()
                while self._data:
                    data = self._data.popleft()
                    if data is None:
                        await execution.close_input()
                        continue
                    await execution.write(data)
                    self._pending_bytes -= len(data)
                    await _tell(self._call, text_of("taken", bytes=len(data)))
        except (BrokenPipeError, ClientDisconnected):
            pass  # the program ended, or does not want its input: its status tells
