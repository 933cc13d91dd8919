"""Attaching to a command: the client's side and the daemon's, over a real WebSocket."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from agentlab.api.control.attach import _Inputs
from agentlab.client.attach import Attachment
from agentlab.client.sync import connected
from agentlab.errors import Invalid, NotFound, ProvisionFailed
from agentlab.wire.attach import STDIN_WINDOW_BYTES

pytestmark = pytest.mark.anyio


async def _thread(work: Any, *arguments: Any, **options: Any) -> Any:
    async with asyncio.timeout(20):
        return await asyncio.to_thread(partial(work, *arguments, **options))


@pytest.fixture
async def sandbox(served):
    _, made = await served.json("POST", "/v1/sandboxes", {})
    return made["id"]


def _run(path, sandbox, argv, stdin=b"", **options):
    out = {"stdout": b"", "stderr": b""}
    with Attachment(path, sandbox, argv, **options) as attachment:
        place = 0
        while place < len(stdin):
            chunk = stdin[place : place + attachment.window]
            attachment.write(chunk)
            place += len(chunk)
            while attachment.window == 0:
                for piece in attachment.receive():
                    if piece.kind in out:
                        out[piece.kind] += piece.value
        attachment.close_input()
        for piece in attachment.pieces():
            if piece.kind == "exit":
                return piece.value, out["stdout"], out["stderr"]
            if piece.kind in out:
                out[piece.kind] += piece.value
    raise AssertionError


async def test_streams_and_status_come_back(served, sandbox):
    argv = ["sh", "-c", "cat; echo err >&2; exit 7"]
    assert await _thread(_run, served.socket, sandbox, argv, b"in") == (7, b"in", b"err\n")


async def test_input_larger_than_the_window_arrives_whole(served, sandbox):
    data = bytes(range(256)) * 16384
    assert len(data) > 2 * STDIN_WINDOW_BYTES
    status, out, _ = await _thread(_run, served.socket, sandbox, ["cat"], data)
    assert (status, out == data) == (0, True)


async def test_a_signal_reaches_a_command_that_reads_nothing(served, sandbox):
    def interrupt():
        with Attachment(served.socket, sandbox, ["sleep", "60"]) as attachment:
            assert attachment.receive()[0].kind == "started"
            attachment.write(b"x" * attachment.window)
            attachment.signal(2)
            return next(piece.value for piece in attachment.pieces() if piece.kind == "exit")

    assert await _thread(interrupt) == 130


async def test_hanging_up_ends_the_command(served, sandbox):
    backend = served.ground.backends["fake"].backend

    def begin():
        with Attachment(served.socket, sandbox, ["sleep", "60"]) as attachment:
            attachment.receive()

    await _thread(begin)
    async with asyncio.timeout(5):
        while backend.sandboxes[sandbox].executions:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_missing_sandbox_is_told_before_the_connection_is_switched(served):
    with pytest.raises(NotFound):
        await _thread(Attachment, served.socket, "sb-22222222", ["true"])


async def test_an_attach_waits_for_a_sandbox_that_is_being_made(served):
    _, made = await served.json("POST", "/v1/sandboxes", {})
    assert (await _thread(_run, served.socket, made["id"], ["echo", "hi"]))[1] == b"hi\n"


async def test_an_attach_to_a_sandbox_that_failed_tells_why(idle):
    _, made = await idle.json("POST", "/v1/sandboxes", {})
    await idle.fail(made["id"])
    with pytest.raises(ProvisionFailed, match="create failed: no room") as caught:
        await _thread(_run, idle.socket, made["id"], ["true"])
    assert caught.value.advice == "Make room."


@pytest.mark.parametrize(
    "first", [b'{"type":"begin"}', b'{"type":"start","argv":[]}', b"nonsense", b'{"type":"start","argv":["a"],"x":1}']
)
async def test_a_first_message_that_is_not_understood_is_told(served, sandbox, first):
    def speak():
        attachment = Attachment.__new__(Attachment)
        real, Attachment._say = Attachment._say, lambda *_, **__: None
        try:
            attachment.__init__(served.socket, sandbox, ["true"])
        finally:
            Attachment._say = real
        from wsproto.events import Message

        attachment._link.sendall(attachment._protocol.send(Message(data=first.decode())))
        with attachment:
            return list(attachment.pieces())

    with pytest.raises(Invalid):
        await _thread(speak)


async def test_more_input_than_the_window_is_refused():
    inputs = _Inputs(None)
    message = {"type": "websocket.receive", "bytes": b"\0" + b"x" * (STDIN_WINDOW_BYTES // 2)}
    assert await inputs.take(message)
    assert await inputs.take(message)
    assert not await inputs.take({"type": "websocket.receive", "bytes": b"\0x"})
    assert "STDIN_WINDOW_BYTES" in str(inputs.problem)


async def test_a_message_beyond_the_limit_ends_the_connection_and_nothing_else(served, sandbox):
    def flood():
        with Attachment(served.socket, sandbox, ["sleep", "60"]) as attachment:
            from wsproto.events import Message

            attachment._link.sendall(attachment._protocol.send(Message(data=b"\0" * (3 << 20))))
            return list(attachment.pieces())

    with pytest.raises((OSError, Invalid)):
        await _thread(flood)
    assert (await served.json("GET", "/v1/whoami"))[0] == 200


async def test_garbage_frames_do_no_harm(served, sandbox):
    def speak():
        with Attachment(served.socket, sandbox, ["sleep", "60"]) as attachment:
            attachment._link.sendall(b"\xff" * 1000)
            return list(attachment.pieces())

    with pytest.raises(OSError):
        await _thread(speak)
    link = await _thread(connected, served.socket, 5)
    link.close()
    assert (await served.json("GET", "/v1/whoami"))[0] == 200
