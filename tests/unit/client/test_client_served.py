"""The clients against a served API."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import subprocess
from functools import partial
from typing import Any

import pytest

import agentlab
import agentlab.errors
from agentlab.client.sync import Connection
from agentlab.client.watch import JobFollower
from agentlab.errors import DaemonNotRunning, NotFound, ProvisionFailed
from agentlab.testing.served import serving

pytestmark = pytest.mark.anyio


async def in_thread(work: Any, *arguments: Any, **options: Any) -> Any:
    async with asyncio.timeout(30):
        return await asyncio.to_thread(partial(work, *arguments, **options))


async def test_a_sandbox_is_made_used_and_destroyed_with_the_sdk(served):
    def work():
        with agentlab.Client(served.socket) as client:
            made = client.new_sandbox(name="sdk", ttl_s=600)
            assert (made.state, made.name) == ("ready", "sdk")
            done = client.sandboxes.execute("sdk", argv=["echo", "hi"])
            assert done.exit_code == 0
            assert [row.id for row in client.sandboxes.list().items] == [made.id]
            client.sandboxes.destroy("sdk")
            return made.id

    assert (await in_thread(work)).startswith("sb-")


async def test_a_sandbox_that_cannot_be_made_raises_with_step_cause_and_remedy(idle):
    making = asyncio.ensure_future(in_thread(lambda: agentlab.Client(idle.socket).new_sandbox(name="one")))
    async with asyncio.timeout(10):
        while not (rows := (await idle.json("GET", "/v1/sandboxes"))[1]["items"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    await idle.fail(rows[0]["id"])

    with pytest.raises(ProvisionFailed, match="create failed: no room") as caught:
        await making
    assert caught.value.advice == "Make room."


async def test_the_asynchronous_client_does_the_same_in_parallel(served):
    async with agentlab.AsyncClient(served.socket) as client:
        made = await asyncio.gather(*(client.sandboxes.create(name=f"n{index}") for index in range(5)))
        ready = await asyncio.gather(*(client.wait_sandbox(row.id) for row in made))
        assert {row.state for row in ready} == {"ready"}
        with pytest.raises(NotFound):
            await client.sandboxes.get("sb-22222222")
        for row in made:
            await client.sandboxes.destroy(row.id)


async def test_the_asynchronous_client_says_when_there_is_no_daemon(tmp_path):
    async with agentlab.AsyncClient(tmp_path / "s") as client:
        with pytest.raises(DaemonNotRunning, match="no such socket"):
            await client.daemon.status()


async def test_a_local_repository_is_sent_and_only_once(idle, tmp_path):
    where = tmp_path / "repository"

    def work():
        subprocess.run(["git", "init", "-q", str(where)], check=True)
        author = ["-c", "user.name=A", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(where), *author, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
        with agentlab.Client(idle.socket) as client:
            first = client.run_job("true", where)
            return first, client.run_job("true", where)

    first, second = await in_thread(work)
    assert first.repo.bundle is not None
    assert idle.ground.blobs.has(first.repo.bundle)
    assert (first.repo.origin, second.repo.origin) == (str(where), str(where))


async def test_an_upload_by_either_client_arrives(idle):
    content = os.urandom(2_000_000)
    digest = hashlib.sha256(content).hexdigest()
    await in_thread(lambda: Connection(idle.socket).upload(digest, io.BytesIO(content), len(content)))
    assert idle.ground.blobs.path(digest).read_bytes() == content

    async def pieces():
        for place in range(0, len(other), 65536):
            yield other[place : place + 65536]

    other = os.urandom(1_000_000)
    digest = hashlib.sha256(other).hexdigest()
    async with agentlab.AsyncClient(idle.socket) as client:
        await client.upload(digest, pieces(), len(other))
    assert idle.ground.blobs.path(digest).read_bytes() == other


async def test_a_job_is_followed_across_a_restart_of_the_daemon_without_a_byte_lost_or_doubled(tmp_path):
    async with serving(tmp_path, reconcile=False) as first:
        _, made = await first.json("POST", "/v1/jobs", {"task": "true"})
        first.ground.outputs.append(made["id"], 0, b"before ")
        seen: list[Any] = []
        loop = asyncio.get_running_loop()
        output = asyncio.Event()

        def follow():
            for news in JobFollower(Connection(first.socket), made["id"]).news():
                seen.append(news)
                if news.kind == "output":
                    loop.call_soon_threadsafe(output.set)

        following = loop.run_in_executor(None, follow)
        await asyncio.wait_for(output.wait(), 10)
    async with serving(tmp_path, reconcile=False) as second:
        second.ground.outputs.append(made["id"], 7, b"after")
        await second.json("POST", f"/v1/jobs/{made['id']}/cancel")
        await asyncio.wait_for(following, 20)
    assert b"".join(news.value for news in seen if news.kind == "output") == b"before after"
    assert [news.kind for news in seen].count("cut") == 1
    assert (seen[-1].kind, seen[-1].value["state"]) == ("end", "cancelled")


async def whole(reader):
    """One message with its body, however many packets it comes in."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def test_a_call_is_repeated_after_a_cut_and_happens_once(idle):
    """The daemon answers, but the answer is lost on the way: the second try finds the first one's sandbox."""
    lost = idle.socket.with_name("lossy.sock")
    tries = 0

    async def relay(reader, writer):
        nonlocal tries
        tries += 1
        inner, outer = await asyncio.open_unix_connection(str(idle.socket))
        outer.write(await whole(reader))
        answer = await whole(inner)
        if tries > 1:
            writer.write(answer)
        writer.close()
        outer.close()

    server = await asyncio.start_unix_server(relay, str(lost))
    made = await in_thread(lambda: Connection(lost).call("sandboxes.create", name="once"))
    server.close()
    _, page = await idle.json("GET", "/v1/sandboxes")
    assert tries == 2
    assert [row["id"] for row in page["items"]] == [made["id"]]


async def test_a_refused_upload_says_why_and_not_that_the_pipe_broke(idle):
    content = b"x" * 1000
    with pytest.raises(agentlab.errors.Invalid, match="digest"):
        await in_thread(lambda: Connection(idle.socket).upload("0" * 64, io.BytesIO(content), len(content)))
