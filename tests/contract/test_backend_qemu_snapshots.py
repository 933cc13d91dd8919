"""Snapshots, forks and workspaces of real virtual machines: crashes, many layers, other machines, hostile files."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from agentlab.backends.interface import Command, Gone, Refused, Unavailable
from agentlab.backends.qemu import layers
from agentlab.backends.qemu.observation import HELD
from agentlab.backends.qemu.snapshots import VmSnapshots
from agentlab.backends.qemu.vm import Vm
from agentlab.backends.qemu.workspaces import VmWorkspaces
from agentlab.model.sandbox import Mark, Power, SnapshotOf
from agentlab.model.snapshot import WorkspaceDisk
from agentlab.testing.backend_contract import power_of, result_of, running
from agentlab.testing.qemu_rig import SMALL, QemuRig, qemu_rig
from agentlab.testing.snapshot_contract import DISK, MEMORY, again, names, read, write

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
MakeDisk = Callable[[], WorkspaceDisk]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[QemuRig]:
    async with qemu_rig(tmp_path) as rig:
        yield rig


@pytest.fixture
async def snapshots(rig: QemuRig) -> VmSnapshots:
    await rig.backend.probe()
    assert rig.backend.snapshots is not None
    return rig.backend.snapshots


@pytest.fixture
async def workspaces(rig: QemuRig) -> VmWorkspaces:
    await rig.backend.probe()
    assert rig.backend.workspaces is not None
    return rig.backend.workspaces


@pytest.fixture
def make_disk(tmp_path: Path) -> MakeDisk:
    numbers = count()

    def made() -> WorkspaceDisk:
        number = next(numbers)
        file = tmp_path / f"workspace{number}"
        file.touch()
        os.truncate(file, 64 << 20)
        return WorkspaceDisk(serial=f"w{number}", disk=str(file), mount=f"/work{number}")

    return made


def home_of(rig: QemuRig, mark: Mark) -> Path:
    return rig.folder / "state" / "sandboxes" / mark.sandbox


def vm_of(rig: QemuRig, mark: Mark) -> Vm:
    vm = rig.backend._fleet.find(mark)
    assert vm is not None
    return vm


async def said(rig: QemuRig, mark: Mark, script: str) -> str:
    status, out, complaint = await result_of(rig.backend, mark, Command(argv=("sh", "-c", script)))
    assert status == 0, complaint
    return out.decode().strip()


async def begin(rig: QemuRig, mark: Mark, script: str) -> None:
    """Let a script run on, which is ended by `kill $(cat /run/begun)`."""
    await rig.backend.launch(mark, Command(argv=("sh", "-c", f"echo $$ > /run/begun; {script}")), b"")
    await said(rig, mark, "until [ -s /run/begun ]; do sleep 0.05; done")


def files_below(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file()]


async def write_and_take(rig: QemuRig, mark: Mark, snapshots: VmSnapshots, number: int) -> None:
    await write(rig.backend, mark, DISK, str(number))
    await snapshots.take(mark, f"s{number}", memory=False)


async def write_and_take_many(rig: QemuRig, mark: Mark, snapshots: VmSnapshots, until: int) -> None:
    for number in range(until):
        await write_and_take(rig, mark, snapshots, number)


async def test_however_many_snapshots_are_taken_the_disk_stands_on_few_layers(
    rig: QemuRig, snapshots: VmSnapshots
) -> None:
    spec = rig.spec()
    mark = await running(rig.backend, spec)
    await write(rig.backend, mark, "/root/before", "here")

    await write_and_take_many(rig, mark, snapshots, layers.LAYERS_MAX + 2)
    stands_on = len(layers.below(home_of(rig, mark)))
    newest = await read(rig.backend, mark, DISK)
    await again(rig.backend, spec, "s3")
    old = await read(rig.backend, mark, DISK)
    await again(rig.backend, spec, f"s{layers.LAYERS_MAX + 1}")

    assert stands_on < layers.LAYERS_MAX
    assert (newest, old) == (str(layers.LAYERS_MAX + 1), "3")
    assert await read(rig.backend, mark, DISK) == str(layers.LAYERS_MAX + 1)
    assert await read(rig.backend, mark, "/root/before") == "here"


async def test_a_machine_that_a_daemon_held_when_it_died_goes_on(rig: QemuRig, snapshots: VmSnapshots) -> None:
    mark = await running(rig.backend, rig.spec())
    (vm_of(rig, mark).room / HELD).touch()
    await (await vm_of(rig, mark).monitor()).halt()
    meanwhile = await power_of(rig.backend, mark.sandbox)
    await rig.backend.close()

    successor = rig.backend = rig.another()
    await successor.probe()

    assert meanwhile is Power.RUNNING
    assert await read(successor, mark, "/proc/sys/kernel/ostype") == "Linux"


async def test_a_restore_that_a_crash_cut_short_is_finished_by_whatever_comes_next(
    rig: QemuRig, snapshots: VmSnapshots
) -> None:
    spec = rig.spec()
    mark = await running(rig.backend, spec)
    await write_and_take(rig, mark, snapshots, 1)
    await write(rig.backend, mark, DISK, "later")
    await rig.backend.stop(mark, 1)
    await rig.backend.close()
    home = home_of(rig, mark)
    (home / "restoring.json").write_text('{"snapshot": "s1"}')
    (home / layers.DISK).unlink()
    layers.below(home)[-1].unlink()

    successor = rig.backend = rig.another()
    await running(successor, spec)

    assert await read(successor, mark, DISK) == "1"
    assert not (home / "restoring.json").exists()


async def test_a_snapshot_that_a_crash_cut_short_is_not_there_and_leaves_nothing(
    rig: QemuRig, snapshots: VmSnapshots
) -> None:
    mark = await running(rig.backend, rig.spec())
    half = home_of(rig, mark) / "snapshots" / ".half.new"
    half.mkdir(parents=True)
    (half / "memory").write_bytes(b"something")
    await rig.backend.close()

    successor = rig.backend = rig.another()
    await successor.probe()

    assert successor.snapshots is not None
    assert await names(successor.snapshots, mark) == []
    assert not half.exists()


async def test_a_layer_of_which_the_machine_was_not_told_loses_nothing(rig: QemuRig, snapshots: VmSnapshots) -> None:
    spec = rig.spec()
    mark = await running(rig.backend, spec)
    disk = home_of(rig, mark) / layers.DISK
    await layers.lay_next(home_of(rig, mark), rig.image.disk_bytes + SMALL.disk_bytes, disk.stat().st_uid)
    layers.push(home_of(rig, mark))
    await write_and_take(rig, mark, snapshots, 1)
    await write(rig.backend, mark, DISK, "later")

    await rig.backend.stop(mark, 1)
    await running(rig.backend, spec)
    later = await read(rig.backend, mark, DISK)
    await again(rig.backend, spec, "s1")

    assert (later, await read(rig.backend, mark, DISK)) == ("later", "1")


async def test_nothing_is_left_of_sandbox_snapshots_and_forks(rig: QemuRig, snapshots: VmSnapshots) -> None:
    origin = await running(rig.backend, rig.spec())
    await snapshots.take(origin, "s", memory=True)
    fork = await running(rig.backend, replace(rig.spec(), source=SnapshotOf(mark=origin, name="s")))
    await rig.backend.destroy(origin)
    await write(rig.backend, fork, DISK, "still here")
    await rig.backend.destroy(fork)

    assert files_below(rig.folder / "state" / "sandboxes") == []
    assert files_below(rig.folder / "run") == []


async def test_memory_that_came_back_is_kept_only_by_its_snapshot(rig: QemuRig, snapshots: VmSnapshots) -> None:
    origin = await running(rig.backend, rig.spec())
    await snapshots.take(origin, "s", memory=True)
    memory = home_of(rig, origin) / "snapshots" / "s" / "memory"

    fork = rig.spec(source=SnapshotOf(mark=origin, name="s"))
    await rig.backend.create(fork)
    waiting = memory.stat().st_nlink
    await running(rig.backend, fork)

    assert (waiting, memory.stat().st_nlink) == (2, 1)


async def test_layers_cannot_be_written_by_any_machine_once_something_stands_on_them(
    rig: QemuRig, snapshots: VmSnapshots
) -> None:
    mark = await running(rig.backend, rig.spec())

    await write_and_take(rig, mark, snapshots, 1)

    stands_on = [each.stat() for each in layers.below(home_of(rig, mark))]
    assert [(each.st_uid, each.st_mode & 0o222) for each in stands_on] == [(0, 0)] * len(stands_on)


async def test_the_memory_of_another_machine_is_refused_and_nothing_is_made(
    rig: QemuRig, snapshots: VmSnapshots
) -> None:
    origin = await running(rig.backend, rig.spec())
    await snapshots.take(origin, "s", memory=True)
    source = SnapshotOf(mark=origin, name="s")
    larger = rig.spec(source=source, resources=replace(SMALL, memory_bytes=640 << 20))

    with pytest.raises(Refused, match="memory_bytes"):
        await rig.backend.create(larger)

    assert [each.mark for each in await rig.backend.list()] == [origin]


async def test_memory_that_another_qemu_saved_is_refused(rig: QemuRig, snapshots: VmSnapshots) -> None:
    origin = await running(rig.backend, rig.spec())
    await snapshots.take(origin, "s", memory=True)
    record = home_of(rig, origin) / "snapshots" / "s" / "record.json"
    content = json.loads(record.read_bytes())
    content["saved_by"]["qemu"] = "6.0.0"
    record.write_text(json.dumps(content))

    with pytest.raises(Refused, match=r"qemu 6\.0\.0"):
        await rig.backend.create(rig.spec(source=SnapshotOf(mark=origin, name="s")))


async def test_a_failed_snapshot_leaves_the_machine_running_and_nothing_behind(
    rig: QemuRig, snapshots: VmSnapshots
) -> None:
    mark = await running(rig.backend, rig.spec())
    (home_of(rig, mark) / "last-use.json").write_text("{}")

    with pytest.raises(Unavailable):
        await snapshots.take(mark, "s", memory=True)

    assert await read(rig.backend, mark, "/proc/sys/kernel/ostype") == "Linux"
    assert await names(snapshots, mark) == []


async def test_a_snapshot_of_a_guest_that_does_not_hold_still_fails(rig: QemuRig, snapshots: VmSnapshots) -> None:
    mark = await running(rig.backend, rig.spec())
    await said(rig, mark, "fsfreeze -f / ; (sleep 3; fsfreeze -u /) >/dev/null 2>&1 &")

    with pytest.raises(Unavailable):
        await snapshots.take(mark, "s", memory=False)

    assert await names(snapshots, mark) == []


@pytest.mark.parametrize("name", ["../s", ".s", "", "a/b", "UP"])
async def test_a_name_that_is_none_is_refused(rig: QemuRig, snapshots: VmSnapshots, name: str) -> None:
    spec = rig.spec()
    await rig.backend.create(spec)

    with pytest.raises(Refused):
        await snapshots.take(spec.mark, name, memory=False)
    with pytest.raises(Gone):
        await snapshots.restore(spec.mark, name)
    await snapshots.remove(spec.mark, name)


async def test_with_a_workspace_there_is_a_snapshot_of_the_disk_and_none_of_memory(
    rig: QemuRig, snapshots: VmSnapshots, workspaces: VmWorkspaces, make_disk: MakeDisk
) -> None:
    mark, disk = await running(rig.backend, rig.spec()), make_disk()
    await workspaces.attach(mark, disk)

    with pytest.raises(Refused, match="workspace"):
        await snapshots.take(mark, "memory", memory=True)
    await snapshots.take(mark, "disk", memory=False)
    await write(rig.backend, mark, f"{disk.mount}/after", "thawed")

    assert await names(snapshots, mark) == ["disk"]


async def test_a_workspace_in_use_is_not_torn_out(rig: QemuRig, workspaces: VmWorkspaces, make_disk: MakeDisk) -> None:
    mark, disk = await running(rig.backend, rig.spec()), make_disk()
    await workspaces.attach(mark, disk)
    await begin(rig, mark, f"cd {disk.mount}; echo > here; exec sleep 1000")
    await said(rig, mark, f"until [ -e {disk.mount}/here ]; do sleep 0.05; done")

    with pytest.raises(Unavailable, match="sleep"):
        await workspaces.detach(mark, disk.serial)
    await said(rig, mark, "kill $(cat /run/begun); while [ -d /proc/$(cat /run/begun)/cwd/ ]; do sleep 0.05; done")
    await workspaces.detach(mark, disk.serial)

    assert await workspaces.list(mark) == []


async def test_the_next_daemon_knows_what_is_plugged_in_and_nobody_else_gets_it_meanwhile(
    rig: QemuRig, workspaces: VmWorkspaces, make_disk: MakeDisk
) -> None:
    first, second, disk = await running(rig.backend, rig.spec()), await running(rig.backend, rig.spec()), make_disk()
    await workspaces.attach(first, disk)
    await write(rig.backend, first, f"{disk.mount}/file", "kept")
    await rig.backend.close()

    successor = rig.backend = rig.another()
    await successor.probe()
    assert successor.workspaces is not None
    with pytest.raises(Refused):
        await successor.workspaces.attach(second, disk)
    await successor.workspaces.attach(first, disk)
    plugged = list(await successor.workspaces.list(first))
    await successor.workspaces.detach(first, disk.serial)
    await successor.workspaces.attach(second, disk)

    assert plugged == [disk]
    assert await read(successor, second, f"{disk.mount}/file") == "kept"


async def test_what_was_written_to_a_workspace_survives_the_sandboxs_destruction(
    rig: QemuRig, workspaces: VmWorkspaces, make_disk: MakeDisk
) -> None:
    first, second, disk = await running(rig.backend, rig.spec()), await running(rig.backend, rig.spec()), make_disk()
    await workspaces.attach(first, disk)
    await write(rig.backend, first, f"{disk.mount}/file", "kept")

    await rig.backend.destroy(first)
    await workspaces.attach(second, disk)

    assert await read(rig.backend, second, f"{disk.mount}/file") == "kept"


async def test_a_machine_takes_as_many_disks_as_it_has_ports_each_at_its_place(
    rig: QemuRig, workspaces: VmWorkspaces, make_disk: MakeDisk
) -> None:
    mark, disks = await running(rig.backend, rig.spec()), [make_disk() for _ in range(4)]
    await workspaces.attach(mark, disks[0])
    await workspaces.attach(mark, disks[1])
    await workspaces.attach(mark, disks[2])
    await workspaces.attach(mark, disks[3])

    with pytest.raises(Refused, match="HOT_PLUG_PORTS"):
        await workspaces.attach(mark, make_disk())
    await workspaces.detach(mark, "w1")
    await workspaces.attach(mark, replace(disks[1], mount="/elsewhere"))

    assert [each.mount for each in await workspaces.list(mark)] == ["/work0", "/work2", "/work3", "/elsewhere"]


async def test_a_disk_with_something_else_on_it_is_left_alone_and_taken_out_again(
    rig: QemuRig, workspaces: VmWorkspaces, make_disk: MakeDisk
) -> None:
    mark, disk = await running(rig.backend, rig.spec()), make_disk()
    Path(disk.disk).write_bytes(b"precious" + bytes(8 << 20))

    with pytest.raises(Refused, match="not ext4"):
        await workspaces.attach(mark, disk)
    await workspaces.attach(mark, replace(make_disk(), serial=disk.serial))

    assert Path(disk.disk).read_bytes()[:8] == b"precious"


async def test_only_a_regular_file_under_its_own_name_is_a_workspace(
    rig: QemuRig, workspaces: VmWorkspaces, make_disk: MakeDisk, tmp_path: Path
) -> None:
    mark, disk = await running(rig.backend, rig.spec()), make_disk()
    (tmp_path / "link").symlink_to(disk.disk)
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(Refused, match="cannot be opened"):
        await workspaces.attach(mark, replace(disk, disk=str(tmp_path / "link")))
    with pytest.raises(Refused, match="not a regular file"):
        await workspaces.attach(mark, replace(disk, disk=str(tmp_path / "fifo")))
    with pytest.raises(Refused, match="serial"):
        await workspaces.attach(mark, replace(disk, serial="a,b=c"))
    with pytest.raises(Refused, match="mounted"):
        await workspaces.attach(mark, replace(disk, mount="/"))
    await workspaces.attach(mark, disk)

    assert await workspaces.list(mark) == [disk]


async def test_memory_and_disk_of_a_snapshot_are_of_one_instant(rig: QemuRig, snapshots: VmSnapshots) -> None:
    origin = await running(rig.backend, rig.spec())
    await begin(rig, origin, f"n=0; while :; do n=$((n+1)); echo $n > {MEMORY}; echo $n > {DISK}; sync {DISK}; done")
    await said(rig, origin, f"until [ -s {DISK} ]; do sleep 0.05; done")
    await snapshots.take(origin, "s", memory=True)
    await said(rig, origin, "sleep 0.5")

    fork = await running(rig.backend, rig.spec(source=SnapshotOf(mark=origin, name="s")))
    await said(rig, fork, "kill $(cat /run/begun); while [ -d /proc/$(cat /run/begun) ]; do sleep 0.05; done; sync")
    await said(rig, fork, "echo 3 > /proc/sys/vm/drop_caches")

    assert int(await read(rig.backend, fork, MEMORY) or 0) - int(await read(rig.backend, fork, DISK) or 0) in (0, 1)


async def test_a_guest_thaws_when_the_daemon_that_froze_it_has_died(
    rig: QemuRig, workspaces: VmWorkspaces, make_disk: MakeDisk
) -> None:
    mark, disk = await running(rig.backend, rig.spec()), make_disk()
    await (await vm_of(rig, mark).control()).freeze(20)
    await rig.backend.close()

    successor = rig.backend = rig.another()
    await successor.probe()
    assert successor.workspaces is not None
    async with asyncio.timeout(15):
        await successor.workspaces.attach(mark, disk)  # makes a directory on what was frozen
    await write(successor, mark, DISK, "thawed")

    assert await read(successor, mark, DISK) == "thawed"
