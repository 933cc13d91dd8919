"""The life of a real container through crashes, restarts and foreign hands."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.backends.interface import Command, Gone, NotOurs, Refused
from agentlab.backends.oci.disk import is_clean
from agentlab.backends.oci.loop import users_of
from agentlab.model.ids import InstallationId
from agentlab.model.network import Namespace
from agentlab.model.sandbox import Mark, Power
from agentlab.testing.backend_contract import power_of, result_of, running
from agentlab.testing.oci_rig import SMALL, OciRig, oci_rig

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OciRig]:
    async with oci_rig(tmp_path) as rig:
        yield rig


def sh(script: str, **changes: object) -> Command:
    return replace(Command(argv=("sh", "-c", script)), **changes)  # type: ignore[arg-type]


def disk_of(rig: OciRig, mark: Mark) -> Path:
    return rig.folder / "state" / "sandboxes" / mark.sandbox / "disk.img"


async def first_pid(rig: OciRig, mark: Mark) -> int:
    observed = await rig.backend.inspect(mark.sandbox)
    assert observed is not None
    assert isinstance(observed.end, Namespace)
    return observed.end.pid


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_stopped(rig: OciRig, mark: Mark) -> None:
    async def stopped() -> bool:
        return await power_of(rig.backend, mark.sandbox) is Power.STOPPED

    await until(stopped)


async def test_a_sandbox_whose_first_process_dies_is_stopped_and_starts_again_on_its_disk(rig: OciRig) -> None:
    spec = rig.spec()
    mark = await running(rig.backend, spec)
    await result_of(rig.backend, mark, sh("echo kept > /root/file"))

    os.kill(await first_pid(rig, mark), signal.SIGKILL)
    await until_stopped(rig, mark)
    seen = await rig.backend.inspect(mark.sandbox)
    await running(rig.backend, spec)

    assert seen is not None
    assert seen.exit_detail == "its first process ended"
    assert await result_of(rig.backend, mark, sh("cat /root/file")) == (0, b"kept\n", b"")


async def test_a_disk_that_was_not_unmounted_is_repaired_before_it_is_used(rig: OciRig) -> None:
    spec = rig.spec()
    mark = await running(rig.backend, spec)
    await result_of(rig.backend, mark, sh("echo kept > /root/file; sync"))
    torn = disk_of(rig, mark).read_bytes()  # as a crash of the host would leave it
    await rig.backend.stop(mark, 0)
    disk_of(rig, mark).write_bytes(torn)
    before = is_clean(disk_of(rig, mark))

    await running(rig.backend, spec)

    assert before is False
    assert await result_of(rig.backend, mark, sh("cat /root/file")) == (0, b"kept\n", b"")


async def test_a_ruined_disk_is_refused_with_a_remedy(rig: OciRig) -> None:
    spec = rig.spec()
    await rig.backend.create(spec)
    disk_of(rig, spec.mark).write_bytes(b"\0" * 100_000)

    with pytest.raises(Refused, match="no file system") as caught:
        await rig.backend.arm(spec)

    assert "new one" in caught.value.remedy


async def test_another_daemon_sees_runs_and_destroys_what_the_first_left(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    await rig.backend.launch(mark, sh("while :; do sleep 1; done"), b"")
    await rig.backend.close()

    successor = rig.another()
    seen = await successor.list()
    _, out, _ = await result_of(successor, mark, sh("ps ax | grep -c '[w]hile'"))
    await successor.destroy(mark)

    assert [(each.mark, each.power) for each in seen] == [(mark, Power.RUNNING)]
    assert out == b"1\n"
    assert list(await successor.list()) == []


async def test_destroying_leaves_nothing_behind(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    pid = await first_pid(rig, mark)
    disk = disk_of(rig, mark)

    await rig.backend.destroy(mark)

    assert not lives(pid)
    assert list((rig.folder / "state" / "sandboxes").iterdir()) == []
    assert list((rig.folder / "run" / "sandboxes").iterdir()) == []
    assert list((rig.folder / "run" / "runtime").iterdir()) == []
    hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    assert [each for each in hierarchies if (each / f"agentlab-{mark.installation}").exists()] == []

    async def released() -> bool:
        return not users_of(disk)

    await until(released)


async def test_a_half_made_sandbox_is_listed_finished_and_destroyed(rig: OciRig) -> None:
    half, finished = rig.spec(), rig.spec()
    for spec in (half, finished):
        await rig.backend.create(spec)
        disk_of(rig, spec.mark).unlink()  # the daemon died after the mark and before the disk

    listed = {each.mark for each in await rig.backend.list()}
    await rig.backend.destroy(half.mark)
    await running(rig.backend, finished)

    assert listed == {half.mark, finished.mark}
    assert [each.mark for each in await rig.backend.list()] == [finished.mark]


async def test_a_container_that_was_made_but_never_noted_is_replaced(rig: OciRig) -> None:
    spec = rig.spec()
    await rig.backend.create(spec)
    await rig.backend.arm(spec)
    lost = await first_pid(rig, spec.mark)
    (rig.folder / "run" / "sandboxes" / spec.mark.sandbox / "init.json").unlink()

    await running(rig.backend, spec)

    assert not lives(lost)
    assert await result_of(rig.backend, spec.mark, sh("echo on")) == (0, b"on\n", b"")


async def test_a_cancelled_arm_leaves_something_that_can_be_armed_or_destroyed(rig: OciRig) -> None:
    spec = rig.spec()
    await rig.backend.create(spec)
    arming = asyncio.create_task(rig.backend.arm(spec))
    await asyncio.sleep(0.02)
    arming.cancel()
    await asyncio.wait([arming])

    await running(rig.backend, spec)

    assert await power_of(rig.backend, spec.mark.sandbox) is Power.RUNNING


async def test_only_our_installation_is_listed(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    stranger = rig.another(installation=InstallationId("strange2"))

    listed, seen = await stranger.list(), await stranger.inspect(mark.sandbox)
    with pytest.raises(NotOurs):
        await stranger.destroy(replace(mark, installation=InstallationId("strange2")))

    assert (list(listed), seen) == ([], None)
    assert await power_of(rig.backend, mark.sandbox) is Power.RUNNING


async def test_a_container_with_a_foreign_annotation_is_not_touched(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    config = rig.folder / "run" / "sandboxes" / mark.sandbox / "config.json"
    ours = config.read_text()
    content = json.loads(ours)
    content["annotations"]["org.agentlab.nonce"] = "another"
    config.write_text(json.dumps(content))

    with pytest.raises(NotOurs):
        await rig.backend.destroy(mark)
    alive = lives(await first_pid(rig, mark))
    config.write_text(ours)

    assert alive


async def test_stopping_asks_first_and_then_insists(rig: OciRig) -> None:
    spec = rig.spec()
    mark = await running(rig.backend, spec)
    await rig.backend.launch(mark, sh("trap 'echo asked > /root/said; exit' TERM; while :; do sleep 0.05; done"), b"")
    await rig.backend.launch(mark, sh("trap '' TERM; while :; do sleep 0.05; done"), b"")
    await asyncio.sleep(0.3)

    started = asyncio.get_running_loop().time()
    await rig.backend.stop(mark, 0.5)
    took_s = asyncio.get_running_loop().time() - started
    await running(rig.backend, spec)

    assert 0.5 <= took_s < 5
    assert await result_of(rig.backend, mark, sh("cat /root/said")) == (0, b"asked\n", b"")


async def test_a_launched_program_gets_its_input_through_a_pipe_and_writes_to_the_console(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    grant = b"g" * 200_000  # more than a pipe holds

    await rig.backend.launch(mark, sh("wc -c; echo oops >&2; readlink /proc/self/fd/0 | cut -c1-4"), grant)

    async def told() -> bool:
        return (await rig.backend.console(mark.sandbox)).count("\n") == 3

    await until(told)
    assert (await rig.backend.console(mark.sandbox)).splitlines() == ["200000", "oops", "pipe"]


async def test_a_chatty_launched_program_fills_neither_host_nor_secrets(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    await rig.backend.launch(mark, sh("yes 0123456789 | head -c 5000000; echo done > /root/done"), b"")

    async def done() -> bool:
        return (await result_of(rig.backend, mark, sh("cat /root/done")))[0] == 0

    await until(done)

    assert len(await rig.backend.console(mark.sandbox, bytes_max=1000)) == 1000
    assert await result_of(rig.backend, mark, sh("head -c 500000 /dev/zero > /run/agentlab/key")) == (0, b"", b"")


async def test_a_console_that_the_guest_replaced_by_a_link_reads_nothing_of_the_host(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    await result_of(
        rig.backend, mark, sh("rm -f /run/agentlab/console/log; ln -s /etc/shadow /run/agentlab/console/log")
    )

    await rig.backend.launch(mark, sh("echo hello"), b"")

    assert "hello" not in Path("/etc/shadow").read_text()
    assert await rig.backend.console(mark.sandbox) == ""


async def test_large_output_passes_without_growth_of_memory(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    await result_of(rig.backend, mark, sh("true"))
    before, total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0

    async with rig.backend.execute(mark, sh("head -c 100000000 /dev/zero")) as execution:
        await asyncio.sleep(0.5)  # nobody reads: the program waits
        async for _, chunk in execution.output():
            total += len(chunk)
        status = await execution.wait()

    assert (status, total) == (0, 100_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10  # KiB


async def test_leaving_a_command_ends_what_it_started(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    async with rig.backend.execute(mark, sh("sleep 4321 & sleep 4321 & echo up; wait")) as execution:
        async for _ in execution.output():
            break
    await asyncio.sleep(0.1)

    assert (await result_of(rig.backend, mark, sh("pgrep -c sleep")))[1] == b"0\n"


async def test_a_terminal_has_a_size_that_can_change(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    # The signal also comes once for the first size.
    script = 'trap \'[ "$(stty size)" != "50 150" ] || exit 5\' WINCH; stty size; tty; while :; do sleep 0.05; done'
    text = b""

    async with asyncio.timeout(20), rig.backend.execute(mark, sh(script, tty=True, rows=30, columns=99)) as execution:
        async for _, chunk in execution.output():
            text += chunk
            if text.count(b"\n") == 2:
                await execution.resize(50, 150)
        status = await execution.wait()

    assert (status, text.decode().split()) == (5, ["30", "99", "/dev/pts/0"])


async def test_a_terminal_passes_control_c_and_end_of_input(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    text, echoed = b"", b""

    async with asyncio.timeout(20), rig.backend.execute(mark, sh("cat; echo end", tty=True)) as execution:
        await execution.write(b"line\n")
        await execution.close_input()
        async for _, chunk in execution.output():
            text += chunk
        first = await execution.wait()
    async with asyncio.timeout(20), rig.backend.execute(mark, Command(argv=("cat",), tty=True)) as execution:
        await execution.write(b"up\n")
        async for _, chunk in execution.output():
            echoed += chunk
            if echoed.count(b"up") == 2:  # once by the terminal, once by the program, which therefore runs
                await execution.write(b"\x03")
                echoed = b""
        second = await execution.wait()

    assert text.decode().split() == ["line", "line", "end"]
    assert (first, second) == (0, 130)


async def test_an_unknown_user_is_refused_and_an_unknown_folder_is_a_result(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    with pytest.raises(Refused, match="nosuch"):
        await result_of(rig.backend, mark, sh("true", user="nosuch"))

    assert (await result_of(rig.backend, mark, sh("true", cwd="/no/such/folder")))[0] == 126


async def test_a_command_whose_sandbox_dies_ends(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    async with asyncio.timeout(20), rig.backend.execute(mark, sh("echo up; sleep 300")) as execution:
        async for _ in execution.output():
            break
        os.kill(await first_pid(rig, mark), signal.SIGKILL)
        async for _ in execution.output():
            pass
        status = await execution.wait()
    with pytest.raises(Gone):
        await result_of(rig.backend, mark, sh("true"))

    assert status == 137


async def test_a_sandbox_that_runs_out_of_memory_as_a_whole_says_so(rig: OciRig) -> None:
    spec = rig.spec(resources=replace(SMALL, memory_bytes=64 << 20))
    mark = await running(rig.backend, spec)
    await result_of(rig.backend, mark, sh("python3 -c \"x = b'x' * (200 << 20)\""))

    os.kill(await first_pid(rig, mark), signal.SIGKILL)
    await until_stopped(rig, mark)
    seen = await rig.backend.inspect(mark.sandbox)
    await rig.backend.stop(mark, 0)
    kept = await rig.backend.inspect(mark.sandbox)

    assert seen is not None
    assert kept is not None
    assert "out of memory" in seen.exit_detail
    assert kept.exit_detail == seen.exit_detail


async def test_a_burst_of_sandboxes_comes_up_and_goes(rig: OciRig) -> None:
    async def one() -> int:
        mark = await running(rig.backend, rig.spec())
        status, _, _ = await result_of(rig.backend, mark, sh("exit 3"))
        await rig.backend.destroy(mark)
        return status

    # A group, so that none goes on making sandboxes behind the back of the clean-up when another has failed.
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [group.create_task(one()) for _ in range(20)]

    assert [task.result() for task in tasks] == [3] * 20
    assert list(await rig.backend.list()) == []


async def test_a_missing_runtime_is_named_with_its_package(rig: OciRig) -> None:
    other = rig.another(runtime="runsc")

    probe = await other.probe()
    with pytest.raises(Refused, match="runsc not found"):
        await other.create(rig.spec())

    assert not probe.usable
    assert [(each.name, each.remedy) for each in probe.findings if each.fatal and not each.ok] == [
        ("runtime", "apt-get install runsc")
    ]


def test_without_root_the_probe_names_what_is_missing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    script = """
import asyncio, sys
from pathlib import Path
from agentlab.testing.oci_rig import OciRig
rig = OciRig(folder=Path(sys.argv[1]) / "rig", installation="test2345", layers=[])
probe = asyncio.run(rig.backend.probe())
for finding in probe.findings:
    if finding.fatal and not finding.ok:
        print(finding.name, "|", finding.detail, "|", finding.remedy)
"""
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        sys.executable,
        "-c",
        script,
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "Permission denied" in done.stderr:
        pytest.skip("the work tree cannot be read by another user")

    assert re.search(r"^privilege \| .*uid 65534.* \| .*root", done.stdout), done.stderr
