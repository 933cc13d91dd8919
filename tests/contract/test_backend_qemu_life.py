"""The life of a real virtual machine through crashes, restarts and its guest's own ways to end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agentlab.backends.first_process import note
from agentlab.backends.interface import Command, Gone, NotOurs, Refused, Unavailable
from agentlab.backends.qemu.process import Confinement, begin
from agentlab.backends.qemu.tap import index_of, open_tap
from agentlab.base.files import make_directory, remove_tree
from agentlab.model.network import NetworkMode, Port, Tap
from agentlab.model.sandbox import Mark, Power
from agentlab.testing.backend_contract import power_of, result_of, running
from agentlab.testing.qemu_rig import SMALL, QemuRig, qemu_rig

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CONNECT = (
    "import socket, time\n"
    "while True:\n"
    "    try:\n"
    "        s = socket.socket(socket.AF_UNIX); s.connect('/run/agentlab/guest.sock'); s.sendall(b'here'); s.recv(4)\n"
    "    except OSError:\n"
    "        pass\n"
    "    time.sleep(0.1)\n"
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[QemuRig]:
    async with qemu_rig(tmp_path) as rig:
        yield rig


def sh(script: str, **changes: object) -> Command:
    return replace(Command(argv=("sh", "-c", script)), **changes)  # type: ignore[arg-type]


def room_of(rig: QemuRig, mark: Mark) -> Path:
    return rig.folder / "run" / "sandboxes" / mark.sandbox


def processes_of(rig: QemuRig) -> list[int]:
    """QEMU processes that bear the installation's mark."""
    wanted = f"guest=agentlab:{rig.installation}:".encode()
    return [int(each.parent.name) for each in Path("/proc").glob("[0-9]*/cmdline") if wanted in _bytes(each)]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_stopped(rig: QemuRig, mark: Mark) -> None:
    async def stopped() -> bool:
        return await power_of(rig.backend, mark.sandbox) is Power.STOPPED

    await until(stopped)


async def until_gone(rig: QemuRig) -> None:
    async def gone() -> bool:
        return processes_of(rig) == []

    await until(gone)


def port(rig: QemuRig) -> Port:
    return Port(
        sandbox="sb-test",
        link=f"alq{rig.installation}",
        mac="02:a1:00:00:00:2a",
        address=IPv4Address("198.18.7.42"),
        gateway=IPv4Address("198.18.7.1"),
        prefix_length=24,
        mode=NetworkMode.NAT,
    )


async def test_another_daemon_takes_over_what_runs_and_its_link_without_being_asked(rig: QemuRig) -> None:
    mark = await running(rig.backend, rig.spec())
    await rig.backend.launch(mark, Command(argv=("python3", "-c", CONNECT)), b"")
    await rig.backend.close()  # as far as the VM can tell, the daemon is dead
    rig.relayed.clear()

    successor = rig.another()
    seen = await successor.list()

    async def linked() -> bool:
        return rig.relayed != []

    await until(linked)
    _, out, _ = await result_of(successor, mark, sh("pgrep -c python3"))
    await successor.destroy(mark)
    assert [(each.mark, each.power) for each in seen] == [(mark, Power.RUNNING)]
    assert int(out) >= 2  # the guest program and what was launched
    assert list(await successor.list()) == []


async def test_what_an_earlier_daemon_armed_can_be_started_by_the_next(rig: QemuRig) -> None:
    spec = rig.spec()
    await rig.backend.create(spec)
    await rig.backend.arm(spec)
    await rig.backend.close()

    successor = rig.another()
    seen = await successor.inspect(spec.mark.sandbox)
    await successor.start(spec.mark)

    assert seen is not None
    assert seen.power is Power.ARMED
    assert (await result_of(successor, spec.mark, Command(argv=("hostname",))))[1] == f"{spec.hostname}\n".encode()


async def test_a_vm_whose_process_dies_is_stopped_and_says_so(rig: QemuRig) -> None:
    mark = await running(rig.backend, rig.spec())

    os.kill(processes_of(rig)[0], signal.SIGKILL)
    await until_stopped(rig, mark)

    seen = await rig.backend.inspect(mark.sandbox)
    assert seen is not None
    assert seen.exit_detail == "the VM's process ended"
    with pytest.raises(Gone):
        await result_of(rig.backend, mark, Command(argv=("true",)))


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        ("poweroff -f", "the guest shut down"),
        ("reboot -f", "the guest restarted, which ends a sandbox"),
        ("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger", "the guest's kernel panicked"),
    ],
)
async def test_a_guest_that_ends_by_itself_is_stopped_with_the_reason(rig: QemuRig, script: str, detail: str) -> None:
    mark = await running(rig.backend, rig.spec())

    await rig.backend.launch(mark, sh(script), b"")
    await until_stopped(rig, mark)
    await until_gone(rig)

    seen = await rig.backend.inspect(mark.sandbox)
    assert seen is not None
    assert seen.exit_detail == detail


async def test_the_console_of_a_guest_that_panicked_can_still_be_read(rig: QemuRig) -> None:
    mark = await running(rig.backend, rig.spec())

    await rig.backend.launch(mark, sh("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"), b"")
    await until_stopped(rig, mark)
    await until_gone(rig)

    assert "Kernel panic" in await rig.backend.console(mark.sandbox)


async def test_a_launched_programs_output_is_on_the_console(rig: QemuRig) -> None:
    mark = await running(rig.backend, rig.spec())

    await rig.backend.launch(mark, sh("echo told the console"), b"")

    async def told() -> bool:
        return "told the console" in await rig.backend.console(mark.sandbox)

    await until(told)


async def test_destroying_leaves_nothing_behind(rig: QemuRig) -> None:
    spec = rig.spec(network=NetworkMode.NAT, port=port(rig))
    mark = await running(rig.backend, spec)

    await rig.backend.destroy(mark)

    assert processes_of(rig) == []
    assert index_of(port(rig).link) is None
    assert list((rig.folder / "state" / "sandboxes").iterdir()) == []
    assert list((rig.folder / "run" / "sandboxes").iterdir()) == []
    hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    assert [each for each in hierarchies if (each / f"agentlab-{mark.installation}").exists()] == []


async def test_a_vms_process_has_no_rights_no_network_and_limits(rig: QemuRig) -> None:
    spec = rig.spec()
    await running(rig.backend, spec)
    (pid,) = processes_of(rig)

    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    interfaces = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    groups = Path(f"/proc/{pid}/cgroup").read_text()

    assert status["Uid"].split() == [str(0x7000_0000 + 65536 * spec.slot)] * 4
    assert status["Groups"].strip() == ""
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert f"/agentlab-{rig.installation}/{spec.mark.sandbox}" in groups


async def test_a_vms_process_cannot_change_what_it_shares_with_others(rig: QemuRig) -> None:
    spec = rig.spec()
    await running(rig.backend, spec)
    (pid,) = processes_of(rig)

    opened = {file: os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    memory = next(file for file, name in opened.items() if "agentlab-memory" in name)
    images = [file for file, name in opened.items() if "below" in name]
    with memory.open("rb") as held:
        seals = fcntl.fcntl(held, fcntl.F_GET_SEALS)

    assert seals & fcntl.F_SEAL_WRITE
    assert [oct(file.stat().st_mode & 0o777) for file in images] == ["0o444"] * len(images)
    assert {file.stat().st_uid for file in images} == {0}


async def test_the_guest_has_the_ports_addresses_on_the_tap_of_that_name(rig: QemuRig) -> None:
    given = port(rig)
    spec = rig.spec(network=NetworkMode.NAT, port=given, nameserver="198.18.7.1")
    await rig.backend.create(spec)

    armed = await rig.backend.arm(spec)
    await rig.backend.start(spec.mark)

    script = "cat /sys/class/net/e*/address; ip -4 -br addr show up | grep -v ^lo; ip route; cat /etc/resolv.conf"
    _, out, _ = await result_of(rig.backend, spec.mark, sh(script))
    assert armed.end == Tap(index_of(given.link) or 0)
    assert given.mac in out.decode()
    assert "198.18.7.42/24" in out.decode()
    assert "default via 198.18.7.1" in out.decode()
    assert "nameserver 198.18.7.1" in out.decode()


@pytest.fixture
def taken(rig: QemuRig) -> Iterator[str]:
    name = port(rig).link
    held = open_tap(name)
    yield name
    os.close(held)


async def test_a_tap_that_another_holds_is_refused_and_nothing_stays(rig: QemuRig, taken: str) -> None:
    spec = rig.spec(network=NetworkMode.NAT, port=port(rig))
    await rig.backend.create(spec)

    with pytest.raises(Unavailable, match=f"the tap {taken} is in use"):
        await rig.backend.arm(spec)

    assert processes_of(rig) == []
    assert not room_of(rig, spec.mark).exists()
    assert await power_of(rig.backend, spec.mark.sandbox) is Power.STOPPED


async def test_two_clones_of_one_memory_share_neither_random_bytes_nor_names(rig: QemuRig) -> None:
    script = (
        "head -c 32 /dev/urandom | od -An -tx1 -w32; cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; "
        "python3 -c 'import uuid; print(uuid.uuid4())'"
    )
    first, second = await running(rig.backend, rig.spec()), await running(rig.backend, rig.spec())

    (_, one, _), (_, other, _) = [await result_of(rig.backend, mark, sh(script)) for mark in (first, second)]

    assert len(one.split(b"\n")) == len(other.split(b"\n")) == 6
    assert set(one.split(b"\n")) & set(other.split(b"\n")) == {b""}


async def test_the_clock_of_a_clone_is_right_also_after_a_pause(rig: QemuRig) -> None:
    mark = await running(rig.backend, rig.spec())
    before, began = float((await result_of(rig.backend, mark, sh("date +%s.%N")))[1]), time.time()

    await rig.backend.pause(mark)
    await asyncio.sleep(2)
    await rig.backend.resume(mark)
    after, ended = float((await result_of(rig.backend, mark, sh("date +%s.%N")))[1]), time.time()

    assert abs(before - began) < 1
    assert abs(after - ended) < 1


async def test_a_guest_that_fills_its_disk_meets_its_limit_and_the_host_does_not(rig: QemuRig) -> None:
    mark = await running(rig.backend, rig.spec())

    script = "dd if=/dev/urandom of=/root/big bs=1M count=600 2>&1; ls -s --block-size=M /root/big"
    _, out, _ = await result_of(rig.backend, mark, sh(script))

    assert b"No space left on device" in out
    disk = rig.folder / "state" / "sandboxes" / mark.sandbox / "disk.qcow2"
    assert disk.stat().st_blocks * 512 < 500 << 20


async def test_too_little_memory_for_a_machine_is_refused(rig: QemuRig) -> None:
    with pytest.raises(Refused, match="too little"):
        await rig.backend.create(rig.spec(resources=replace(SMALL, memory_bytes=64 << 20)))


async def test_no_space_for_memory_files_is_said_with_a_remedy(rig: QemuRig) -> None:
    spec = rig.spec(resources=replace(SMALL, memory_bytes=1 << 50))

    with pytest.raises(Unavailable, match="no space for memory files") as caught:
        await rig.backend.create(spec)

    assert "restore" in caught.value.remedy
    assert await rig.backend.inspect(spec.mark.sandbox) is None


async def test_a_guest_that_never_answers_is_told_with_its_consoles_tail(rig: QemuRig) -> None:
    # No such root: the small init system waits a little, says so and gives up.
    rig.image = replace(rig.image, command_line="root=/dev/none console=ttyS0 panic=-1 systemd.gpt_auto=0")
    backend = rig.another(restore=False, boot_s_max=8.0)
    spec = rig.spec()
    await backend.create(spec)
    await backend.arm(spec)

    with pytest.raises((Unavailable, Gone)) as caught:
        await backend.start(spec.mark)

    assert "Last seen on its console:" in caught.value.cause
    assert "Its console's tail:" in caught.value.cause


async def test_a_machine_that_was_being_prepared_when_the_daemon_died_is_ended_by_the_next(rig: QemuRig) -> None:
    room = rig.folder / "run" / "prepare" / "abc"
    room.mkdir(parents=True)
    stand_in = ["sh", "-c", "sleep 300; :", "x", f"guest=agentlab:{rig.installation}:prepare:abc"]
    begun = begin(stand_in, room, Confinement(uid=0x7000_0000), [])

    await rig.backend.probe()

    assert begun.child.wait(10) == -signal.SIGKILL
    assert not room.exists()


@pytest.fixture
def bystander() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "300"])
    yield process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


async def test_p1_a_process_that_does_not_bear_the_mark_is_not_ended(rig: QemuRig, bystander: int) -> None:
    spec = rig.spec()
    await rig.backend.create(spec)
    room = make_directory(room_of(rig, spec.mark))
    note(room, bystander)  # a note that leads to somebody else's process

    with pytest.raises(NotOurs, match="is not the VM"):
        await rig.backend.destroy(spec.mark)

    remove_tree(room)


async def test_a_stop_lets_the_guest_shut_down_within_its_grace(rig: QemuRig) -> None:
    mark = await running(rig.backend, rig.spec())

    began = time.monotonic()
    await rig.backend.stop(mark, 60)

    assert time.monotonic() - began < 40
    assert await power_of(rig.backend, mark.sandbox) is Power.STOPPED
    assert processes_of(rig) == []


async def test_a_spare_becomes_the_next_sandbox_of_its_kind(tmp_path: Path) -> None:
    async with qemu_rig(tmp_path, spares=1) as rig:
        given = port(rig)
        first = rig.spec(network=NetworkMode.NAT, port=replace(given, link=f"alr{rig.installation}"))
        await running(rig.backend, first)

        async def ready() -> bool:
            return any((rig.folder / "run" / "spares").iterdir()) and len(processes_of(rig)) == 2

        await until(ready)
        await asyncio.sleep(4)
        before = set(processes_of(rig))
        second = rig.spec(network=NetworkMode.NAT, port=given)
        await rig.backend.create(second)
        armed = await rig.backend.arm(second)
        after = set(processes_of(rig))
        await rig.backend.start(second.mark)

        _, out, _ = await result_of(
            rig.backend, second.mark, sh("hostname; cat /sys/class/net/e*/address; ip -4 -br a")
        )
        assert armed.power is Power.ARMED
        assert armed.end == Tap(index_of(given.link) or 0)
        assert before == after
        assert out.decode().split()[:2] == [second.hostname, given.mac]
        assert "169.254." not in out.decode()


async def test_a_closed_backend_leaves_no_spare(tmp_path: Path) -> None:
    async with qemu_rig(tmp_path, spares=1) as rig:
        mark = await running(rig.backend, rig.spec())

        async def ready() -> bool:
            return len(processes_of(rig)) == 2

        await until(ready)
        await rig.backend.close()

        assert len(processes_of(rig)) == 1
        assert list((rig.folder / "run" / "spares").iterdir()) == []
        assert list((rig.folder / "state" / "spares").iterdir()) == []
        await rig.another().destroy(mark)
