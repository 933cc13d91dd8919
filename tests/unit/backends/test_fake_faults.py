"""The fake backend's faults: seeded, repeatable, and of three kinds."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from agentlab.backends.interface import Command, Gone, Unavailable
from agentlab.base.entropy import SeededEntropy
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, Power, SandboxSpec
from agentlab.testing.fake_backend import FakeBackend
from agentlab.testing.simloop import SimLoop

INSTALLATION = InstallationId("test2345")


def spec_of(name: str) -> SandboxSpec:
    return SandboxSpec(
        mark=Mark(installation=INSTALLATION, sandbox=SandboxId(name), nonce="n"),
        name="x",
        template="t",
        template_digest=Digest("0" * 64),
        slot=0,
        resources=Resources(),
        network=NetworkMode.OFF,
        port=None,
        hostname="box",
        nameserver=None,
    )


async def work(backend: FakeBackend, rounds: int) -> None:
    spec = spec_of("sb-22222222")
    for _ in range(rounds):
        with suppress(Unavailable):
            await backend.create(spec)
        with suppress(Unavailable, Gone):
            await backend.arm(spec)


def trace(seed: int) -> list[tuple[str, str]]:
    backend = FakeBackend(entropy=SeededEntropy(seed), fault_rate=0.2, latency_s=1.0)
    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(work(backend, 30))
    return list(backend.calls)


def test_the_same_seed_gives_the_same_faults() -> None:
    assert trace(7) == trace(7)
    assert trace(7) != trace(8)


def test_faults_are_refusals_and_lost_answers_in_their_share() -> None:
    outcomes = Counter(outcome for _, outcome in trace(3))

    assert outcomes["refused"] > 0
    assert outcomes["done, unanswered"] > 0
    assert outcomes["done"] > outcomes["refused"]


@pytest.mark.anyio
async def test_a_killed_sandbox_is_stopped_with_its_reason_and_its_commands_end() -> None:
    backend, spec = FakeBackend(), spec_of("sb-22222222")
    await backend.create(spec)
    await backend.arm(spec)
    await backend.start(spec.mark)

    async with backend.execute(spec.mark, Command(argv=("sleep", "300"))) as execution:
        backend.kill(spec.mark.sandbox, "out of memory")
        status = await execution.wait()
    seen = await backend.inspect(spec.mark.sandbox)

    assert status == 137
    assert seen is not None
    assert (seen.power, seen.exit_detail) == (Power.STOPPED, "out of memory")


@pytest.mark.anyio
async def test_a_launch_calls_the_hook_with_what_was_given() -> None:
    backend, spec, seen = FakeBackend(), spec_of("sb-22222222"), []
    backend.on_launch = lambda mark, command, stdin: seen.append((mark, command.argv, stdin))
    await backend.create(spec)
    await backend.arm(spec)
    await backend.start(spec.mark)

    await backend.launch(spec.mark, Command(argv=("guest",)), b"grant")

    assert seen == [(spec.mark, ("guest",), b"grant")]


@pytest.mark.anyio
async def test_another_installations_sandboxes_are_not_shown() -> None:
    backend, spec = FakeBackend(installation=InstallationId("strange2")), spec_of("sb-22222222")
    await backend.create(spec)

    assert list(await backend.list()) == []
    assert await backend.inspect(spec.mark.sandbox) is None
