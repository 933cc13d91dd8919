"""What every backend must do.  An author of a backend subclasses `BackendContract` and gives it two fixtures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from agentlab.backends.interface import Backend, Capability, Command, Gone, NotOurs
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark, Power, SandboxSpec

MakeSpec = Callable[[], SandboxSpec]
ANSWER_S_MAX = 20.0


async def running(backend: Backend, spec: SandboxSpec) -> Mark:
    """Bring a sandbox up as the reconciler does, and give its mark."""
    await backend.create(spec)
    await backend.arm(spec)
    await backend.start(spec.mark)
    return spec.mark


async def result_of(
    backend: Backend, mark: Mark, command: Command, stdin: bytes | None = b""
) -> tuple[int, bytes, bytes]:
    """Run a command to its end: status, standard output, standard error.  `stdin` None leaves its input open."""
    streams = {"stdout": b"", "stderr": b""}
    async with asyncio.timeout(ANSWER_S_MAX), backend.execute(mark, command) as execution:
        if stdin:
            await execution.write(stdin)
        if stdin is not None:
            await execution.close_input()
        async for stream, chunk in execution.output():
            streams[stream] += chunk
        status = await execution.wait()
    return status, streams["stdout"], streams["stderr"]


async def power_of(backend: Backend, sandbox: SandboxId) -> Power | None:
    """What the backend sees, None if nothing."""
    observed = await backend.inspect(sandbox)
    return None if observed is None else observed.power


class BackendContract:
    """Give `backend`, a fresh backend, and `make_spec`, which makes specs with new ids and slots.

    The fixtures clean up after each test: whatever `make_spec` was called for is destroyed.
    """

    pytestmark = pytest.mark.anyio

    async def test_probe_says_what_it_can_do(self, backend: Backend) -> None:
        probe = await backend.probe()

        assert probe.usable, probe.findings
        assert probe.capabilities == backend.capabilities
        assert Capability.EXEC in probe.capabilities

    async def test_what_is_offered_is_there(self, backend: Backend) -> None:
        offered = (await backend.probe()).capabilities

        assert (backend.snapshots is not None) == (Capability.SNAPSHOT in offered)
        assert (backend.workspaces is not None) == (Capability.WORKSPACE in offered)
        assert offered.isdisjoint({Capability.MEMORY_SNAPSHOT, Capability.FORK}) or Capability.SNAPSHOT in offered

    async def test_a_created_sandbox_is_listed_and_does_not_run(self, backend: Backend, make_spec: MakeSpec) -> None:
        spec = make_spec()

        created = await backend.create(spec)

        assert (created.mark, created.power) == (spec.mark, Power.STOPPED)
        assert [each.mark for each in await backend.list()] == [spec.mark]

    async def test_create_with_the_same_id_returns_the_same_sandbox(
        self, backend: Backend, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        await backend.create(spec)

        again = await backend.create(spec)

        assert again.mark == spec.mark
        assert len(await backend.list()) == 1

    async def test_create_beside_a_foreign_sandbox_of_that_id_is_refused(
        self, backend: Backend, make_spec: MakeSpec
    ) -> None:
        spec = make_spec()
        await backend.create(spec)

        with pytest.raises(NotOurs):
            await backend.create(replace(spec, mark=replace(spec.mark, nonce="another")))

    async def test_an_unknown_sandbox_is_none(self, backend: Backend) -> None:
        assert await backend.inspect(SandboxId("sb-zzzzzzzz")) is None
        assert await backend.console(SandboxId("sb-zzzzzzzz")) == ""

    async def test_an_armed_sandbox_is_held(self, backend: Backend, make_spec: MakeSpec) -> None:
        spec = make_spec()
        await backend.create(spec)

        armed = await backend.arm(spec)

        assert armed.power is Power.ARMED
        assert await power_of(backend, spec.mark.sandbox) is Power.ARMED
        with pytest.raises(Gone):
            await result_of(backend, spec.mark, Command(argv=("true",)))

    async def test_arming_twice_and_starting_twice_are_quiet(self, backend: Backend, make_spec: MakeSpec) -> None:
        spec = make_spec()
        await backend.create(spec)
        first = await backend.arm(spec)

        second = await backend.arm(spec)
        await backend.start(spec.mark)
        await backend.start(spec.mark)
        third = await backend.arm(spec)

        assert second == first
        assert (third.power, third.end) == (Power.RUNNING, first.end)

    async def test_arming_what_was_never_created_says_gone(self, backend: Backend, make_spec: MakeSpec) -> None:
        with pytest.raises(Gone):
            await backend.arm(make_spec())

    async def test_starting_what_is_not_armed_says_gone(self, backend: Backend, make_spec: MakeSpec) -> None:
        spec = make_spec()
        await backend.create(spec)

        with pytest.raises(Gone):
            await backend.start(spec.mark)

    async def test_a_command_gives_its_output_and_status(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())
        command = Command(argv=("sh", "-c", "echo out; echo err >&2; exit 7"))

        assert await result_of(backend, mark, command) == (7, b"out\n", b"err\n")

    async def test_a_command_reads_its_input_to_the_end(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        assert await result_of(backend, mark, Command(argv=("cat",)), b"to be\nor not") == (0, b"to be\nor not", b"")

    async def test_a_missing_program_is_a_result(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        status, _, complaint = await result_of(backend, mark, Command(argv=("no-such-program",)))

        assert status == 127
        assert b"no-such-program" in complaint

    async def test_a_signal_is_128_and_its_number(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        assert (await result_of(backend, mark, Command(argv=("sh", "-c", "kill -15 $$"))))[0] == 143

    async def test_a_command_has_its_environment_folder_and_user(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())
        script = "printenv WHO; pwd; id -u"
        command = Command(argv=("sh", "-c", script), env={"WHO": "me"}, cwd="/tmp", user="nobody")

        assert await result_of(backend, mark, command) == (0, b"me\n/tmp\n65534\n", b"")

    async def test_a_command_can_be_signalled(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        async with asyncio.timeout(ANSWER_S_MAX), backend.execute(mark, Command(argv=("sleep", "300"))) as execution:
            await execution.signal(9)
            status = await execution.wait()
            await execution.signal(9)

        assert status == 137

    async def test_leaving_its_context_ends_a_command(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        async with asyncio.timeout(ANSWER_S_MAX):
            async with backend.execute(mark, Command(argv=("sleep", "300"))) as execution:
                await asyncio.sleep(0)
            assert await execution.wait() == 137

    async def test_input_to_a_command_that_ended_is_a_broken_pipe(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        async with asyncio.timeout(ANSWER_S_MAX), backend.execute(mark, Command(argv=("true",))) as execution:
            await execution.wait()
            with pytest.raises(BrokenPipeError):
                await execution.write(b"too late")

    async def test_a_terminal_has_one_stream(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())
        command = Command(argv=("sh", "-c", "echo out; echo err >&2"), tty=True)

        assert await result_of(backend, mark, command, None) == (0, b"out\r\nerr\r\n", b"")

    async def test_the_disk_outlives_a_stop(self, backend: Backend, make_spec: MakeSpec) -> None:
        spec = make_spec()
        mark = await running(backend, spec)
        await result_of(backend, mark, Command(argv=("sh", "-c", "echo kept > /root/file")))

        await backend.stop(mark, 1)
        stopped = await power_of(backend, mark.sandbox)
        await running(backend, spec)

        assert stopped is Power.STOPPED
        assert await result_of(backend, mark, Command(argv=("cat", "/root/file"))) == (0, b"kept\n", b"")

    async def test_stopping_twice_and_stopping_what_never_ran_are_quiet(
        self, backend: Backend, make_spec: MakeSpec
    ) -> None:
        never, once = make_spec(), make_spec()
        await backend.create(never)
        await running(backend, once)

        await backend.stop(never.mark, 1)
        await backend.stop(once.mark, 1)
        await backend.stop(once.mark, 1)

        assert [each.power for each in await backend.list()] == [Power.STOPPED, Power.STOPPED]

    async def test_commands_in_a_stopped_sandbox_say_gone(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())
        await backend.stop(mark, 0)

        with pytest.raises(Gone):
            await result_of(backend, mark, Command(argv=("true",)))
        with pytest.raises(Gone):
            await backend.launch(mark, Command(argv=("true",)), b"")

    async def test_pausing_and_resuming_twice_are_quiet(self, backend: Backend, make_spec: MakeSpec) -> None:
        if Capability.PAUSE not in (await backend.probe()).capabilities:
            pytest.skip("this backend cannot pause here")
        mark = await running(backend, make_spec())

        await backend.pause(mark)
        await backend.pause(mark)
        paused = await power_of(backend, mark.sandbox)
        await backend.resume(mark)
        await backend.resume(mark)

        assert paused is Power.PAUSED
        assert await result_of(backend, mark, Command(argv=("echo", "on"))) == (0, b"on\n", b"")

    async def test_a_paused_sandbox_can_be_stopped_and_destroyed(self, backend: Backend, make_spec: MakeSpec) -> None:
        if Capability.PAUSE not in (await backend.probe()).capabilities:
            pytest.skip("this backend cannot pause here")
        stopped, destroyed = await running(backend, make_spec()), await running(backend, make_spec())
        await backend.pause(stopped)
        await backend.pause(destroyed)

        await backend.stop(stopped, 1)
        await backend.destroy(destroyed)

        assert await power_of(backend, stopped.sandbox) is Power.STOPPED
        assert await backend.inspect(destroyed.sandbox) is None

    async def test_destroying_twice_is_quiet(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        await backend.destroy(mark)
        await backend.destroy(mark)

        assert list(await backend.list()) == []

    async def test_destroying_what_never_was_is_quiet(self, backend: Backend, make_spec: MakeSpec) -> None:
        await backend.destroy(make_spec().mark)

    async def test_a_foreign_mark_is_refused_and_nothing_is_touched(
        self, backend: Backend, make_spec: MakeSpec
    ) -> None:
        mark = await running(backend, make_spec())
        foreign = replace(mark, nonce="another")

        with pytest.raises(NotOurs):
            await backend.destroy(foreign)
        with pytest.raises(NotOurs):
            await backend.stop(foreign, 0)

        assert await power_of(backend, mark.sandbox) is Power.RUNNING

    async def test_an_id_can_be_made_anew_after_its_end(self, backend: Backend, make_spec: MakeSpec) -> None:
        spec = make_spec()
        await running(backend, spec)
        await backend.destroy(spec.mark)

        await running(backend, spec)

        assert await power_of(backend, spec.mark.sandbox) is Power.RUNNING

    async def test_a_launched_program_is_accepted_with_its_input(self, backend: Backend, make_spec: MakeSpec) -> None:
        mark = await running(backend, make_spec())

        await backend.launch(mark, Command(argv=("cat",)), b"a grant")

        assert await power_of(backend, mark.sandbox) is Power.RUNNING
