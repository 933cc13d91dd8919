"""The control link from end to end: the daemon's side, either transport, and the real resident guest program."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentlab.backends.interface import Command, Refused, Unavailable
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control, Identity
from agentlab.base.tasks import TaskScope
from agentlab.testing.guest_home import nobody
from agentlab.testing.resident_process import PortedProcess, ResidentProcess, dialled_process, resident_process
from agentlab_guest import mux, orders

pytestmark = pytest.mark.anyio

MIB = 1 << 20
SEND = """
import hashlib, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
data = bytes(range(256)) * 4096 * int(sys.argv[2])
link.sendall(data)
link.shutdown(socket.SHUT_WR)
answer = b""
while piece := link.recv(1 << 20):
    answer += piece
print(hashlib.sha256(data).hexdigest(), len(answer))
"""


@pytest.fixture(params=[resident_process, dialled_process], ids=["port", "dialled"])
async def resident(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ResidentProcess]:
    async with request.param(tmp_path) as resident:
        yield resident


@pytest.fixture
async def ported(tmp_path: Path) -> AsyncIterator[PortedProcess]:
    async with resident_process(tmp_path) as resident:
        yield resident


@pytest.fixture
async def control(resident: ResidentProcess) -> Control:
    return await resident.connect()


async def result_of(control: Control, command: Command, stdin: bytes | None = b"") -> tuple[int, bytes, bytes]:
    """Status, standard output and standard error."""
    streams = {"stdout": bytearray(), "stderr": bytearray()}
    async with asyncio.timeout(30), control.running(command) as execution:
        if stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it may have ended without reading
                await execution.write(stdin)
            await execution.close_input()
        async for name, data in execution.output():
            streams[name] += data
        return await execution.wait(), bytes(streams["stdout"]), bytes(streams["stderr"])


def shell(script: str, **more: object) -> Command:
    return Command(argv=("/bin/sh", "-c", script), **more)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def until_gone(pid: int) -> None:
    await until(lambda: not alive(pid))


async def a_number(path: Path) -> int:
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


async def test_the_guest_says_what_it_is(control: Control) -> None:
    assert (control.hello.name, control.hello.prepared, control.hello.machine) == ("", False, False)
    assert control.hello.protocol == mux.PROTOCOL_MAX


async def test_a_command_gives_output_errors_and_status(control: Control) -> None:
    assert await result_of(control, shell("cat; echo err >&2; exit 7"), b"in") == (7, b"in", b"err\n")


async def test_a_missing_program_and_a_missing_folder_are_results(control: Control) -> None:
    missing = await result_of(control, Command(argv=("no-such-program",)))
    folder = await result_of(control, shell("true", cwd="/no/such/folder"))

    assert (missing[0], b"no-such-program" in missing[2]) == (127, True)
    assert (folder[0], b"/no/such/folder" in folder[2]) == (126, True)


async def test_a_command_ended_by_a_signal_says_which(control: Control) -> None:
    assert (await result_of(control, shell("kill -15 $$")))[0] == 143


async def test_an_unknown_user_is_refused(control: Control) -> None:
    with pytest.raises(Refused, match="no user 'stranger'"):
        await control.execute(Command(argv=("true",), user="stranger"))


@pytest.mark.parametrize("argv", [(), ("",), ("a\0b",)])
async def test_what_is_no_command_is_refused(control: Control, argv: tuple[str, ...]) -> None:
    with pytest.raises(Refused):
        await control.execute(Command(argv=argv))


async def test_a_command_line_beyond_its_limit_is_refused(control: Control) -> None:
    with pytest.raises(Refused, match="too long"):
        await control.execute(Command(argv=("true", "x" * (2 * MIB))))


async def test_a_long_command_line_arrives(control: Control) -> None:
    argv = ("/bin/sh", "-c", 'echo "$#"', "sh", *["x" * 1000] * 300)

    assert (await result_of(control, Command(argv=argv)))[1] == b"300\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_command_of_another_user_has_its_ids_and_no_capabilities(control: Control, tmp_path: Path) -> None:
    script = "id -u; id -g; grep -E '^(Uid|CapPrm|CapEff|NoNewPrivs)' /proc/self/status; pwd; printenv WHO USER"
    command = shell(script, user="nobody", cwd="/tmp", env={"WHO": "me"})

    status, out, _ = await result_of(control, command)

    assert status == 0
    assert out.decode().split() == [
        *("65534", "65534", "Uid:", *["65534"] * 4, "CapPrm:", "0" * 16, "CapEff:", "0" * 16),
        *("NoNewPrivs:", "1", "/tmp", "me", "nobody"),
    ]
    assert (await result_of(control, shell("id -u")))[1] == b"0\n"


async def test_a_terminal_has_one_stream_a_size_and_an_end_of_input(control: Control) -> None:
    command = shell("stty size; read -r line; stty size; echo got $line >&2; cat", tty=True, rows=33, columns=99)
    found = bytearray()

    async with asyncio.timeout(30), control.running(command) as execution:
        await execution.resize(44, 111)
        await execution.write(b"it\n")
        await execution.close_input()
        async for _, data in execution.output():
            found += data
        status = await execution.wait()

    assert status == 0
    assert b"44 111" in found
    assert b"got it" in found


async def test_a_signal_reaches_the_program_and_what_it_waits_for(control: Control) -> None:
    async with asyncio.timeout(30), control.running(shell("sleep 300; echo after")) as execution:
        await asyncio.sleep(0.1)
        await execution.signal(15)

        assert await execution.wait() == 143


async def test_leaving_its_context_kills_a_command_and_its_children(control: Control, tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/child; wait"
    async with control.running(shell(script)) as execution:
        child = await a_number(tmp_path / "child")

    assert await execution.wait() == 137
    await until_gone(child)


async def test_input_after_the_end_is_a_broken_pipe(control: Control) -> None:
    async with asyncio.timeout(30), control.running(Command(argv=("true",))) as execution:
        await execution.wait()

        with pytest.raises(BrokenPipeError):
            await execution.write(b"too late")


async def test_input_that_the_program_does_not_want_is_a_broken_pipe(control: Control) -> None:
    async with asyncio.timeout(30), control.running(shell("exec <&-; sleep 300")) as execution:
        with pytest.raises(BrokenPipeError):
            await asyncio.gather(*[execution.write(bytes(MIB)) for _ in range(20)])


async def test_much_output_and_input_arrive_unharmed(control: Control) -> None:
    data = os.urandom(24 * MIB)
    digest = hashlib.sha256()

    async def drink() -> None:
        async for _, piece in execution.output():
            digest.update(piece)

    async with asyncio.timeout(60), control.running(Command(argv=("cat",))) as execution, asyncio.TaskGroup() as group:
        group.create_task(drink())
        for at in range(0, len(data), MIB):
            await execution.write(data[at : at + MIB])
        await execution.close_input()

    assert digest.digest() == hashlib.sha256(data).digest()


async def test_a_program_waits_for_a_slow_reader(control: Control, tmp_path: Path) -> None:
    script = f"head -c {64 * MIB} /dev/zero; echo 1 > {tmp_path}/done"

    async with asyncio.timeout(60), control.running(shell(script)) as execution:
        await asyncio.sleep(0.7)
        early = (tmp_path / "done").exists()
        size = sum([len(data) async for _, data in execution.output()])

    assert (early, size) == (False, 64 * MIB)


async def test_a_command_does_not_wait_for_another_that_is_not_read(control: Control) -> None:
    async with control.running(shell("yes")):
        await asyncio.sleep(0.3)

        assert (await result_of(control, shell("echo quick")))[1] == b"quick\n"


async def test_too_many_commands_at_once_are_refused(control: Control) -> None:
    running = [await control.execute(Command(argv=("sleep", "300"))) for _ in range(128)]

    with pytest.raises(Refused, match="PROGRAMS_MAX"):
        await control.execute(Command(argv=("true",)))

    await asyncio.gather(*[each.end() for each in running])
    assert (await result_of(control, shell("echo again")))[1] == b"again\n"


async def test_a_launched_program_has_its_input_and_outlives_the_connection(
    resident: ResidentProcess, control: Control, tmp_path: Path
) -> None:
    script = f"cat; echo; echo $$ > {tmp_path}/pid; exec sleep 300"
    await control.launch(shell(script), b"a grant")
    pid = await a_number(tmp_path / "pid")
    await control.close()

    again = await resident.connect()

    assert alive(pid)
    assert await again.tail() == "a grant\n"
    os.kill(pid, 9)


async def test_too_much_input_for_a_launch_is_refused(control: Control) -> None:
    with pytest.raises(Refused, match="LAUNCH_INPUT_BYTES_MAX"):
        await control.launch(shell("cat"), bytes(2 * MIB))


async def test_a_launch_that_cannot_be_is_an_error(control: Control) -> None:
    with pytest.raises(Unavailable, match="could not be started"):
        await control.launch(Command(argv=("no-such-program",)), b"")


async def test_a_relay_carries_everything_both_ways(resident: ResidentProcess) -> None:
    received = hashlib.sha256()

    async def swallow(stream: GuestStream) -> None:
        while data := await stream.read():
            received.update(data)
        stream.write([bytes(5 * MIB), b"end"])
        await stream.drain()

    await resident.connect(swallow)
    done = await program(SEND, str(resident.link), "48")

    assert done.split() == [received.hexdigest(), str(5 * MIB + 3)]


async def test_the_ninth_relay_waits_until_one_has_ended(resident: ResidentProcess) -> None:
    served: list[GuestStream] = []
    over = asyncio.Event()

    async def hold(stream: GuestStream) -> None:
        served.append(stream)
        await over.wait()

    await resident.connect(hold)
    links = [connected(resident.link) for _ in range(9)]
    await until(lambda: len(served) == 8)
    await asyncio.sleep(0.1)
    assert len(served) == 8

    over.set()

    await until(lambda: len(served) == 9)
    assert len(links) == 9


async def test_a_relay_ends_with_the_daemon_and_a_new_one_is_served_by_the_next(resident: ResidentProcess) -> None:
    async def greet(stream: GuestStream) -> None:
        stream.write([b"hello"])
        await stream.read()

    first = await resident.connect(greet)
    link = connected(resident.link)
    assert await asyncio.to_thread(link.recv, 10) == b"hello"
    await first.close()
    assert await asyncio.to_thread(link.recv, 10) == b""
    waiting = connected(resident.link)

    await resident.connect(greet)

    assert await asyncio.to_thread(waiting.recv, 10) == b"hello"


async def test_when_the_daemon_goes_its_commands_end(
    resident: ResidentProcess, control: Control, tmp_path: Path
) -> None:
    execution = await control.execute(shell(f"echo $$ > {tmp_path}/pid; exec sleep 300"))
    pid = await a_number(tmp_path / "pid")

    await control.close()

    await until_gone(pid)
    with pytest.raises(Unavailable, match="closed by the daemon"):
        await execution.wait()


async def test_a_daemon_that_died_inside_a_frame_does_not_spoil_the_next(ported: PortedProcess) -> None:
    # As with a port, the guest does not see the end of the first: all bytes come over one connection.
    first, second = mux.HostEnd(os.urandom(32)), mux.HostEnd(os.urandom(32))
    _, opening = first.open(orders.encode(orders.Thaw(path="/x")))
    with connected(ported.port) as wire:
        wire.sendall(first.preamble() + opening + mux.HEADER.pack(mux.DATA, 2, 60_000) + b"half")
        wire.sendall(second.preamble())
        wire.sendall(second.flood())

        async with asyncio.timeout(10):
            while not second.protocol:
                second.receive(await asyncio.to_thread(wire.recv, 65536))


async def test_commands_on_a_dead_link_say_why(resident: ResidentProcess, control: Control) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        execution = await control.execute(Command(argv=("sleep", "300")))
        waiting = group.create_task(broken(execution.wait()))
        os.kill(resident.pid, 9)

    assert "control link" in waiting.result()
    await control.wait_closed()
    with pytest.raises(Unavailable, match="broke"):
        await control.execute(Command(argv=("true",)))
    with pytest.raises(Unavailable):
        await control.tail()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_name_that_was_given_is_known_to_the_next_daemon(resident: ResidentProcess, control: Control) -> None:
    took = await control.identify(Identity(name="sb-1", entropy=os.urandom(64), hostname="not-this-machine"))
    await control.close()

    assert set(took) == {"entropy"}  # of a machine that is not its own it touches nothing
    assert (await resident.connect()).hello.name == "sb-1"


async def test_no_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        await lonely(tmp_path / "nothing")


async def test_a_guest_that_does_not_answer_says_what_is_known(tmp_path: Path) -> None:
    expected = pytest.raises(Unavailable, match=r"did not answer within 0\.3 s \(0 bytes came")
    with listening(tmp_path / "port"), expected:
        await lonely(tmp_path / "port", 0.3)


@pytest.mark.parametrize(
    "noise", [b"\x00" * 100, b"\xff" * 100_000, mux.HEADER.pack(mux.DATA, 2, 5) + b"abcde"], ids=len
)
async def test_a_guest_that_sends_nonsense_is_cut_off(tmp_path: Path, noise: bytes) -> None:
    with listening(tmp_path / "port") as listener:
        connecting = asyncio.create_task(lonely(tmp_path / "port", 5))
        wire, _ = await asyncio.to_thread(listener.accept)
        preamble = await asyncio.to_thread(wire.recv, 1000)
        answer = mux.GuestEnd().receive(preamble)[0][2]
        await asyncio.to_thread(wire.sendall, answer + noise)

        with pytest.raises(Unavailable, match="broke the control link's protocol"):
            await connecting
        wire.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.01)


async def lonely(path: Path, timeout_s: float = 1.0) -> Control:
    async with TaskScope("test") as scope:
        return await Control.connect(path, token=os.urandom(32), scope=scope, relay=nobody, timeout_s=timeout_s)


async def broken(work: object) -> str:
    try:
        await work  # type: ignore[misc]
    except Unavailable as error:
        return error.cause
    return ""


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(str(path))
    return made


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.bind(str(path))
    made.listen(1)
    return made


async def program(code: str, *arguments: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout
