"""What the resident guest program does to a machine of its own, seen in one that was booted for it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from agentlab.backends.interface import BackendError, Command
from agentlab.backends.link.channels import GuestStream
from agentlab.backends.link.control import Control, Identity
from agentlab.base.tasks import TaskScope
from agentlab.testing.bare_vm import ask, bare_vm
from agentlab.testing.images import shared_image

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="building templates needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(600),
]

THEN_NS = 2_000_000_000 * 10**9
BOOT_ID = "11111111-2222-3333-4444-555555555555"
WORK_BYTES = 64 << 20
RELAY_BYTES = 32 << 20
SET_UNCLEAN = "debugfs -w -R 'set_super_value state 0' /dev/vdb"
BELONGING = """
import sys
sys.path.insert(0, "/opt/agentlab/guest.pyz")
from agentlab_guest.processes import Offspring
for pid in Offspring("j", own="cgroup").find():
    print(open(f"/proc/{pid}/cmdline").read().replace("\\0", " ").strip())
"""
SEND = f"""
import hashlib, socket
link = socket.socket(socket.AF_UNIX)
link.connect("/opt/agentlab/guest.sock")
data = bytes(range(256)) * ({RELAY_BYTES} // 256)
link.sendall(data)
link.shutdown(socket.SHUT_WR)
print(link.recv(100).decode(), end="")
"""


@pytest.fixture(scope="module")
def seen() -> Mapping[str, str]:
    """Everything that is asked of one machine, in order."""
    with tempfile.TemporaryDirectory(prefix="vm", dir="/tmp") as folder:
        return asyncio.run(observe(Path(folder)))


async def observe(folder: Path) -> dict[str, str]:
    (folder / "work").write_bytes(b"")
    os.truncate(folder / "work", WORK_BYTES)
    (folder / "noise").write_bytes(os.urandom(1 << 20))
    drives = [f"if=none,id={name},format=raw,file={folder}/{name}" for name in ("work", "noise")]
    # Behind the disk with the root file system.
    devices = [
        f"virtio-blk-pci,drive={name},serial={name}-disk,addr={at}" for name, at in (("work", 10), ("noise", 11))
    ]
    found: dict[str, str] = {}
    async with bare_vm(shared_image(), folder, drives=drives, devices=devices) as control:
        await ask(control, "systemctl is-system-running --wait")
        await identified(control, found)
        await workspaces(control, found)
        await froze(control, found)
        await memory(control, found)
        await launched(control, found)
        await control.close()
        await again(folder, found)
    found["console"] = (folder / "console").read_text(errors="replace")
    return found


async def identified(control: Control, found: dict[str, str]) -> None:
    before = await ask(control, "df --output=size -B1 / | tail -1")
    identity = Identity(
        name="sb-1",
        entropy=os.urandom(64),
        clock_ns=THEN_NS,
        machine_id="0123456789abcdef" * 2,
        boot_id=BOOT_ID,
        hostname="box",
        secrets_bytes=16 << 20,
        grow=True,
    )
    found["took"] = " ".join(await control.identify(identity))
    found["clock"] = await ask(control, "date +%s")
    found["ids"] = await ask(
        control, "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; cat /etc/hostname"
    )
    found["hosts"] = await ask(control, "getent hosts box")
    found["secrets"] = await ask(control, "df --output=fstype,size -B1 /run/agentlab | tail -1; ls -ld /run/agentlab")
    found["grown"] = str(int(await ask(control, "df --output=size -B1 / | tail -1")) > int(before))
    await control.set_clock(time.time_ns())
    found["late"] = str(abs(int(await ask(control, "date +%s")) - time.time()) < 2)


async def workspaces(control: Control, found: dict[str, str]) -> None:
    found["first"] = await control.mount("work-disk", "mine")
    found["label"] = await ask(control, "echo kept > /work/file; e2label /dev/vdb; mount | grep /work")
    async with control.running(Command(argv=("sleep", "300"), cwd="/work")):
        found["busy"] = await refusal(control.unmount())
    await control.unmount()
    await control.unmount()
    found["second"] = await control.mount("work-disk", "other")
    found["file"] = await ask(control, "cat /work/file")
    await control.unmount()
    await ask(control, SET_UNCLEAN)
    found["third"] = await control.mount("work-disk", "")
    found["noise"] = await refusal(control.mount("noise-disk", "", path="/noise"))
    found["absent"] = await refusal(control.mount("no-disk", "", wait_s=0.2))
    found["fourth"] = await control.mount("work-disk", "")
    found["taken"] = await refusal(control.mount("noise-disk", ""))


async def froze(control: Control, found: dict[str, str]) -> None:
    await control.freeze(20.0, "/work")
    async with control.running(Command(argv=("touch", "/work/held"))) as execution:
        await asyncio.sleep(0.5)
        found["held"] = await ask(control, "ls /work")
        await control.thaw("/work")
        found["touched"] = str(await execution.wait())
    await control.freeze(0.3, "/work")
    await asyncio.sleep(1)
    found["overdue"] = await ask(control, "touch /work/alone; ls /work | wc -l")
    found["too late"] = await refusal(control.thaw("/work"))
    await control.freeze(20.0)
    found["root frozen"] = await ask(control, "cat /etc/hostname")
    await control.thaw()


async def memory(control: Control, found: dict[str, str]) -> None:
    async with control.running(
        Command(argv=("python3", "-c", "x = [b'x' * (1 << 20) for _ in iter(int, 1)]"))
    ) as execution:
        found["hog"] = str(await execution.wait())
    found["remark"] = await control.tail()


async def launched(control: Control, found: dict[str, str]) -> None:
    await control.launch(Command(argv=("/bin/sh", "-c", "cat; echo; (sleep 111 &); sleep 222")), b"a grant")
    await control.launch(Command(argv=("/bin/sh", "-c", "echo last words; exit 3"), user="agent"), b"")
    async with control.running(Command(argv=("sleep", "333"))):
        found["belonging"] = await ask(control, f"exec python3 -c '{BELONGING}'")
    found["group"] = await ask(control, "cat /sys/fs/cgroup/agentlab/*/cgroup.procs | wc -l")
    found["tail"] = await control.tail()


async def again(folder: Path, found: dict[str, str]) -> None:
    async def count(stream: GuestStream) -> None:
        size = 0
        while data := await stream.read():
            size += len(data)
        stream.write([str(size).encode()])

    async with TaskScope("again") as scope:
        token = os.urandom(32)
        control = await Control.connect(folder / "control", token=token, scope=scope, relay=count, timeout_s=30)
        found["name"] = control.hello.name
        found["relayed"] = await ask(control, f"exec python3 -c '{SEND}'")
        found["sleeps"] = await ask(control, "pgrep -c sleep")
        await control.prepare()
        await control.close()
        control = await Control.connect(
            folder / "control", token=os.urandom(32), scope=scope, relay=count, timeout_s=30
        )
        found["prepared"] = f"{control.hello.prepared} {control.hello.name!r}"
        await control.shutdown()
        async with asyncio.timeout(60):
            await control.wait_closed()


async def refusal(work: object) -> str:
    try:
        await work  # type: ignore[misc]
    except BackendError as error:
        return error.cause
    return "nothing was refused"


def test_every_step_of_becoming_somebody_is_timed_and_entropy_comes_first(seen: Mapping[str, str]) -> None:
    assert seen["took"] == "entropy clock machine_id boot_id hostname ssh secrets network grow"


def test_the_clock_is_set_and_set_again(seen: Mapping[str, str]) -> None:
    assert 0 <= int(seen["clock"]) - THEN_NS // 10**9 < 20
    assert seen["late"] == "True"


def test_the_machine_has_its_ids_and_its_name(seen: Mapping[str, str]) -> None:
    assert seen["ids"].split() == ["0123456789abcdef" * 2, BOOT_ID, "box", "box"]
    assert "127.0.1.1" in seen["hosts"]


def test_secrets_have_memory_of_limited_size(seen: Mapping[str, str]) -> None:
    assert seen["secrets"].splitlines()[0].split() == ["tmpfs", str(16 << 20)]
    assert seen["secrets"].splitlines()[1].startswith("drwxr-xr-x")


def test_the_root_file_system_fills_its_disk(seen: Mapping[str, str]) -> None:
    assert seen["grown"] == "True"


def test_a_blank_disk_gets_a_file_system_once(seen: Mapping[str, str]) -> None:
    assert (seen["first"], seen["second"], seen["file"]) == ("blank", "clean", "kept")
    label, mounted = seen["label"].splitlines()
    assert label == "mine"
    assert mounted.startswith("/dev/vdb on /work type ext4 (")
    assert "nosuid,nodev,noatime" in mounted


def test_a_disk_in_use_is_not_unmounted_and_its_users_are_named(seen: Mapping[str, str]) -> None:
    assert seen["busy"].startswith("/work is in use by sleep (")


def test_a_disk_that_was_not_unmounted_is_checked_first(seen: Mapping[str, str]) -> None:
    assert seen["third"] == "unclean"


def test_a_disk_with_something_else_is_not_formatted(seen: Mapping[str, str]) -> None:
    assert seen["noise"] == "the disk holds something that is not ext4"


def test_mounting_twice_is_quiet_and_mounting_another_disk_there_is_refused(seen: Mapping[str, str]) -> None:
    assert seen["fourth"] == "mounted"
    assert seen["taken"] == "another file system is mounted at /work"


def test_an_absent_disk_is_named(seen: Mapping[str, str]) -> None:
    assert seen["absent"] == "no disk with the serial number no-disk appeared within 0.2 s"


def test_a_frozen_file_system_holds_changes_until_it_thaws(seen: Mapping[str, str]) -> None:
    assert "held" not in seen["held"]
    assert seen["touched"] == "0"
    assert seen["root frozen"] == "box"


def test_a_freeze_that_is_forgotten_ends_by_itself_and_the_copy_is_not_trusted(seen: Mapping[str, str]) -> None:
    assert seen["overdue"].isdigit()
    assert "thawed by itself" in seen["too late"]


def test_a_command_that_takes_all_memory_is_ended_and_the_kernels_remark_is_told(seen: Mapping[str, str]) -> None:
    assert seen["hog"] == "137"
    assert "Out of memory: Killed process" in seen["remark"]


def test_a_rescue_finds_all_that_runs_for_agentlab_and_nothing_else(seen: Mapping[str, str]) -> None:
    found = seen["belonging"]

    assert all(f"sleep {number}" in found for number in (111, 222, 333))
    assert "systemd" not in found
    assert "--resident" not in found
    assert int(seen["group"]) >= 3


def test_launched_programs_write_where_the_daemon_can_read(seen: Mapping[str, str]) -> None:
    assert "a grant" in seen["tail"]
    assert "ended with status 3: " in seen["console"]
    assert "last words" in seen["console"]


def test_the_next_daemon_finds_the_machine_as_it_was(seen: Mapping[str, str]) -> None:
    assert seen["name"] == "sb-1"
    assert seen["sleeps"] == "2"


def test_a_relay_carries_all_of_it(seen: Mapping[str, str]) -> None:
    assert seen["relayed"] == str(RELAY_BYTES)


def test_a_prepared_machine_is_nobody(seen: Mapping[str, str]) -> None:
    assert seen["prepared"] == "True ''"


def test_a_shutdown_is_orderly(seen: Mapping[str, str]) -> None:
    assert "Power down" in seen["console"]
