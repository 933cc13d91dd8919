"""What a hostile guest can cost the host is bounded, however often it connects; on virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import json

from tests.unit.services.test_guest_sessions import Hand, greet, hello, its_sandbox, only_job, play

from agentlab.errors import DiskFull
from agentlab.model.machine import JobState as J
from agentlab.model.sandbox import Wish
from agentlab.services.allowance import PARTIALS_KEPT_MAX, REFUSALS_TOLD_MAX, Allowance
from agentlab.services.harvest import SKIPPED_KEPT_MAX
from agentlab.services.session import ALARMS_BURST_MAX
from agentlab.store import artifacts, events
from agentlab.testing.world import World
from agentlab_guest import messages as say


async def settled(world: World, grant: str) -> tuple[Hand, str]:
    """A guest that has its bootstrap, and its credential."""
    hand, welcome = await greet(world, hello(grant=grant))
    assert isinstance(welcome, say.Welcome)
    assert welcome.credential is not None
    hand.send(say.Accepted())
    return hand, welcome.credential


def offer(number: int, name: str, content: bytes) -> say.ArtifactOffer:
    digest = hashlib.sha256(content).hexdigest()
    return say.ArtifactOffer(id=number, name=name, kind="file", bytes=len(content), digest=digest)


def allowance(world: World) -> Allowance:
    assert world.core is not None
    job = only_job(world)
    return world.core.sessions.allowance(job.id, world.profiles.get(job.profile).artifacts)


def count(world: World, kind: str) -> int:
    return len(world.database.read(lambda tx: events.since(tx, 0, types=[kind], limit=5000)))


def partials(world: World) -> list[str]:
    return [file.name for file in world.blobs.path("a" * 64).parent.parent.joinpath("partial").iterdir()]


def test_p9_refused_credentials_are_told_in_bounded_numbers_and_the_rest_is_counted() -> None:
    async def scenario(world: World, grant: str) -> None:
        for _ in range(ALARMS_BURST_MAX + 50):
            _, answer = await greet(world, hello(credential="f" * 64))
            assert isinstance(answer, say.Refused)
        assert count(world, "grant.refused") <= ALARMS_BURST_MAX + 1

        await asyncio.sleep(60)
        await greet(world, hello(credential="f" * 64))

        last = world.database.read(lambda tx: events.since(tx, 0, types=["grant.refused"], limit=5000))[-1]
        assert "more were refused before" in last.data["reason"]

    play(scenario)


def test_p5_a_flood_of_refusals_does_not_hide_the_alarm_of_a_spent_grant() -> None:
    async def scenario(world: World, grant: str) -> None:
        await settled(world, grant)
        for _ in range(ALARMS_BURST_MAX + 10):
            await greet(world, hello(credential="f" * 64))

        await greet(world, hello(nonce="two", grant=grant))

        assert count(world, "sandbox.quarantined") == 1
        assert its_sandbox(world).wish is Wish.DESTROYED
        sandbox = its_sandbox(world).id
        about = world.database.read(lambda tx: events.since(tx, 0, subject=sandbox, limit=500))
        assert "grant.refused" in {each.type for each in about}

    play(scenario)


def test_p9_uploads_that_are_never_finished_are_kept_in_bounded_numbers() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, credential = await settled(world, grant)
        for number in range(3 * PARTIALS_KEPT_MAX):
            hand.send(offer(1, f"f{number}", b"%d" % number * 100))
            assert isinstance(await hand.receive(), say.ArtifactWant)
            hand.send(say.ArtifactChunk(id=1, offset=0, data=b"x"))
            hand, _ = await greet(world, hello(credential=credential))
            await asyncio.sleep(0.1)

        assert len(partials(world)) <= PARTIALS_KEPT_MAX

    play(scenario)


def test_p9_an_artifact_that_is_replaced_for_ever_runs_into_a_limit() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, _ = await settled(world, grant)
        allowance(world).bytes_left = 25
        answers = []
        for number in range(1, 5):
            content = b"content %d" % number
            hand.send(offer(number, "same", content))
            wanted = await hand.receive()
            if isinstance(wanted, say.ArtifactWant):
                hand.send(say.ArtifactChunk(id=number, offset=0, data=content))
                wanted = await hand.receive()
            answers.append(wanted)

        assert [type(each) for each in answers] == [say.ArtifactStored, say.ArtifactStored] + [say.ArtifactRefused] * 2
        assert isinstance(answers[-1], say.ArtifactRefused)
        assert "ARTIFACT_SENDINGS_MAX" in answers[-1].reason
        assert partials(world) == []

    play(scenario)


def test_p9_refused_artifacts_become_events_in_bounded_numbers_over_all_connections() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, _ = await settled(world, grant)
        allowance(world).refusals_left = 3
        for number in range(1, 8):
            hand.send(offer(number, "a/../b", b"x"))
            assert isinstance(await hand.receive(), say.ArtifactRefused)

        assert count(world, "job.artifact-refused") == 3
        assert REFUSALS_TOLD_MAX > 3

    play(scenario)


def test_unfinished_uploads_go_when_their_job_has_ended() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, credential = await settled(world, grant)
        hand.send(offer(1, "a", b"abc"))
        await hand.receive()
        hand.send(say.ArtifactChunk(id=1, offset=0, data=b"a"))
        hand, _ = await greet(world, hello(credential=credential))
        await asyncio.sleep(1)
        assert len(partials(world)) == 1

        report = b'{"outcome": "succeeded", "exit_status": 0, "summary": "", "base_commit": null, "head_commit": null,'
        report += b'"files_changed": 0, "lines_added": 0, "lines_removed": 0, "skipped": [], "failure": null}'
        hand.send(say.ReportMessage(data=report))
        assert isinstance(await hand.receive(), say.ReportAck)
        hand.close()
        await asyncio.sleep(1)

        assert only_job(world).state is J.SUCCEEDED
        assert partials(world) == []

    play(scenario)


def test_p9_a_report_with_thousands_of_remarks_is_kept_in_bounded_size() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, _ = await settled(world, grant)
        skipped = [{"name": f"{number}" + "n" * 900, "reason": "\x1b[31m" + "r" * 900} for number in range(900)]
        report = {"outcome": "succeeded", "exit_status": 0, "summary": "", "base_commit": None, "head_commit": None}
        report |= {"files_changed": 0, "lines_added": 0, "lines_removed": 0, "skipped": skipped, "failure": None}
        hand.send(say.ReportMessage(data=json.dumps(report).encode()))
        assert isinstance(await hand.receive(), say.ReportAck)

        result = only_job(world).result
        assert result is not None
        assert result.skipped[-1] == f"… and {900 - SKIPPED_KEPT_MAX} more"
        assert sum(len(each) for each in result.skipped) < 500 * SKIPPED_KEPT_MAX

    play(scenario)


def test_many_messages_in_one_piece_leave_others_their_turn() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, _ = await settled(world, grant)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        for _ in range(2000):
            hand.send(say.Heartbeat(phase="run", output=0))
        task = asyncio.ensure_future(other())
        for _ in range(2000):
            assert isinstance(await hand.receive(), say.HeartbeatAck)
        task.cancel()

        assert turns > 20

    play(scenario)


def test_a_full_disk_ends_the_link_as_busy_and_the_guest_goes_on_where_it_was_acknowledged() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, credential = await settled(world, grant)
        hand.send(say.Output(offset=0, data=b"hello "))
        assert await hand.receive() == say.OutputAck(offset=6)
        append = world.outputs.append

        def full(job: str, offset: int, data: bytes) -> int:
            raise DiskFull(path="/state", free="0 B", needed="1 MiB")

        world.outputs.append = full  # type: ignore[method-assign]  # a full disk cannot be had without root
        hand.send(say.Output(offset=6, data=b"world"))
        refused = await hand.receive()
        assert isinstance(refused, say.Refused)
        assert refused.code == "busy"
        assert await hand.receive() is None
        world.outputs.append = append  # type: ignore[method-assign]

        hand, welcome = await greet(world, hello(credential=credential))
        assert isinstance(welcome, say.Welcome)
        assert welcome.output_acked == 6
        hand.send(say.Output(offset=6, data=b"world"))
        assert await hand.receive() == say.OutputAck(offset=11)
        assert world.outputs.read(only_job(world).id, 0, 100) == b"hello world"

    play(scenario)


def test_thousands_of_artifacts_are_counted_without_being_listed() -> None:
    async def scenario(world: World, grant: str) -> None:
        hand, _ = await settled(world, grant)
        for number, content in enumerate((b"abc", b"de"), 1):
            hand.send(offer(number, f"f{number}", content))
            await hand.receive()
            hand.send(say.ArtifactChunk(id=number, offset=0, data=content))
            assert isinstance(await hand.receive(), say.ArtifactStored)

        job = only_job(world).id
        assert world.database.read(lambda tx: artifacts.total_without(tx, job, "")) == (2, 5)
        assert world.database.read(lambda tx: artifacts.total_without(tx, job, "f1")) == (1, 2)

    play(scenario)
