"""Grants and sessions against the real services, on virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from agentlab.backends.interface import Command
from agentlab.model.job import Job
from agentlab.model.machine import JobState as J
from agentlab.model.sandbox import Mark, Sandbox, Wish
from agentlab.store import events, jobs, sandboxes
from agentlab.testing.world import End, World
from agentlab_guest import messages as say
from agentlab_guest.protocol import GuestSide


class Hand:
    """A guest played by hand."""

    def __init__(self, link: End) -> None:
        self._link, self._side, self._pending = link, GuestSide(), list[say.Message]()

    def send(self, message: say.Message) -> None:
        self._link.write(self._side.send(message))

    def close(self) -> None:
        self._link.close()

    async def receive(self) -> say.Message | None:
        while not self._pending:
            data = await self._link.read()
            if not data:
                return None
            self._pending = self._side.receive(data)
        return self._pending.pop(0)


def play(scenario: Callable[[World, str], Awaitable[None]]) -> None:
    """Run a world whose guests are played by hand: the scenario gets the first grant that is given out."""
    world = World(1, fault_rate=0.0)

    async def run(world: World) -> None:
        given: asyncio.Queue[str] = asyncio.Queue()

        def launched(mark: Mark, command: Command, stdin: bytes) -> None:
            given.put_nowait(stdin.decode().strip())

        world.backend.on_launch = launched
        await world.new_job()
        await scenario(world, await given.get())

    world.run(run)


def hello(nonce: str = "one", **more: str) -> say.Hello:
    return say.Hello(protocol_min=1, protocol_max=1, version="test", nonce=nonce, **more)


async def greet(world: World, message: say.Hello) -> tuple[Hand, say.Message | None]:
    hand = Hand(await world.connect())
    hand.send(message)
    return hand, await hand.receive()


def only_job(world: World) -> Job:
    return world.database.read(lambda tx: jobs.page(tx, limit=1))[0][0]


def its_sandbox(world: World) -> Sandbox:
    wanted = only_job(world).sandbox
    assert wanted is not None
    row = world.database.read(lambda tx: sandboxes.get(tx, wanted))
    assert row is not None
    return row


def types(world: World) -> set[str]:
    return {each.type for each in world.database.read(lambda tx: events.since(tx, 0, limit=500))}


def test_p5_a_grant_gives_job_secrets_and_credential_once() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, welcome = await greet(world, hello(grant=grant))

        assert isinstance(welcome, say.Welcome)
        assert welcome.credential
        assert json.loads(bytes(welcome.data))["job"] == only_job(world).id
        hand.send(say.Accepted())
        await asyncio.sleep(1)
        assert only_job(world).state is J.RUNNING

    play(scenario)


def test_p5_a_second_guest_with_the_same_grant_is_refused_and_the_sandbox_is_quarantined() -> None:
    async def scenario(world: World, grant: str) -> None:
        first, _ = await greet(world, hello(grant=grant))
        first.send(say.Accepted())

        _, answer = await greet(world, hello(nonce="two", grant=grant))

        assert isinstance(answer, say.Refused)
        assert answer.code == "grant-spent"
        assert {"grant.refused", "sandbox.quarantined"} <= types(world)
        row = its_sandbox(world)
        assert row.wish is Wish.DESTROYED
        assert row.ended_reason.startswith("quarantined")
        await asyncio.sleep(5)
        assert world.network.ports == {}, "a quarantined sandbox loses its network at once"

    play(scenario)


def test_p5_the_same_guest_may_redeem_again_until_it_has_accepted() -> None:
    async def scenario(world: World, grant: str) -> None:
        await greet(world, hello(grant=grant))

        _, again = await greet(world, hello(grant=grant))

        assert isinstance(again, say.Welcome)
        assert "sandbox.quarantined" not in types(world)

    play(scenario)


def test_p5_a_replay_after_the_acceptance_is_refused_even_with_the_same_nonce() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, _ = await greet(world, hello(grant=grant))
        hand.send(say.Accepted())
        await asyncio.sleep(1)

        _, answer = await greet(world, hello(grant=grant))

        assert isinstance(answer, say.Refused)
        assert "sandbox.quarantined" in types(world)

    play(scenario)


def test_a_grant_that_comes_too_late_is_refused_without_an_alarm_about_the_sandbox() -> None:
    async def scenario(world: World, grant: str) -> None:
        world.clock.shift_s += 3600

        _, answer = await greet(world, hello(grant=grant))

        assert isinstance(answer, say.Refused)
        assert answer.code == "grant-unknown"
        assert "sandbox.quarantined" not in types(world)

    play(scenario)


def test_a_newer_connection_of_the_same_guest_replaces_the_older_one() -> None:
    async def scenario(world: World, grant: str) -> None:
        first, welcome = await greet(world, hello(grant=grant))
        assert isinstance(welcome, say.Welcome)
        assert welcome.credential is not None
        first.send(say.Accepted())
        await asyncio.sleep(1)

        second, answer = await greet(world, hello(credential=welcome.credential))

        assert isinstance(answer, say.Welcome)
        assert await first.receive() is None
        second.send(say.Heartbeat(phase="run", output=0))
        assert isinstance(await second.receive(), say.HeartbeatAck)

    play(scenario)


def test_output_is_acknowledged_once_and_resumes_without_repetition() -> None:
    async def scenario(world: World, grant: str) -> None:
        first, welcome = await greet(world, hello(grant=grant))
        assert isinstance(welcome, say.Welcome)
        assert welcome.credential is not None
        first.send(say.Accepted())
        first.send(say.Output(offset=0, data=b"hello "))
        assert await first.receive() == say.OutputAck(offset=6)

        second, resumed = await greet(world, hello(credential=welcome.credential))
        assert isinstance(resumed, say.Welcome)
        assert resumed.output_acked == 6
        second.send(say.Output(offset=6, data=b"world"))
        assert await second.receive() == say.OutputAck(offset=11)

        assert world.outputs.read(only_job(world).id, 0, 100) == b"hello world"

    play(scenario)


def test_a_protocol_without_a_common_version_is_refused_cleanly() -> None:
    async def scenario(world: World, grant: str) -> None:
        old = say.Hello(protocol_min=0, protocol_max=0, version="old", nonce="n", grant=grant)

        _, answer = await greet(world, old)

        assert isinstance(answer, say.Refused)
        assert answer.code == "protocol-version"
        assert only_job(world).state is J.STARTING, "the grant was not spent on it"

    play(scenario)


def test_a_blob_that_is_not_the_jobs_own_is_missing_for_its_guest() -> None:
    async def scenario(world: World, grant: str) -> None:
        upload = world.blobs.begin(100)
        upload.write(b"somebody else's repository")
        digest = upload.finish(None)
        hand, _ = await greet(world, hello(grant=grant))
        hand.send(say.Accepted())

        hand.send(say.BlobWant(digest=digest, offset=0))

        assert isinstance(await hand.receive(), say.BlobMissing)

    play(scenario)


def test_an_artifact_whose_content_does_not_match_is_refused_and_leaves_nothing() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, _ = await greet(world, hello(grant=grant))
        hand.send(say.Accepted())
        hand.send(say.ArtifactOffer(id=1, name="a", kind="file", bytes=3, digest="0" * 64))
        assert await hand.receive() == say.ArtifactWant(id=1, offset=0)

        hand.send(say.ArtifactChunk(id=1, offset=0, data=b"abc"))

        assert isinstance(await hand.receive(), say.ArtifactRefused)
        assert "job.artifact-refused" in types(world)

    play(scenario)
