"""A real machine as a cluster runs it: it has nothing but its serial number, and calls home."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from agentlab.backends.interface import Unavailable
from agentlab.backends.link.control import Control, Identity
from agentlab.templates.disk import LABEL
from agentlab.templates.firmware import PARTITION_BYTES, boot_sector
from agentlab.testing.bare_vm import ask
from agentlab.testing.cluster_vm import HELLO_S_MAX, MAC, SANDBOX, agent_says, cluster_vm
from agentlab.testing.guest_home import GuestHome
from agentlab.testing.images import shared_image
from agentlab_guest.invitation import parse

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="building templates needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(900),
]

WORK_BYTES = 64 << 20
DISK, TWIN = "work-disk", "twin-disk"
ROOT = "root=$(findmnt -no SOURCE /); disk=/dev/$(lsblk -no PKNAME $root)"
NOTED = "import struct, sys; print(struct.unpack_from('<I', open(sys.argv[1], 'rb').read(512), 458)[0] * 512)"


@pytest.fixture(scope="module")
def seen() -> Mapping[str, str]:
    """Everything that is asked of one machine, in order."""
    with tempfile.TemporaryDirectory(prefix="vm", dir="/tmp") as folder:
        return asyncio.run(observe(Path(folder)))


async def observe(folder: Path) -> dict[str, str]:
    (folder / DISK).write_bytes(b"")
    os.truncate(folder / DISK, WORK_BYTES)
    twin(folder / TWIN)
    home = GuestHome(folder=folder)
    await home.begin()
    image = shared_image(variant="firmware")
    found: dict[str, str] = {"version": image.guest_version}
    try:
        async with cluster_vm(image, folder, home, disks=[DISK, TWIN]):
            began = time.monotonic()
            control = await home.control(SANDBOX, HELLO_S_MAX)
            found["home after"] = f"{time.monotonic() - began:.1f}"
            await asked(control, found)
            found["agent"] = str(await asyncio.to_thread(agent_says, folder, "guest-ping"))
            await again(home, found)
    finally:
        await home.end()
    found["replayed"] = str(home.replayed)
    found["console"] = (folder / "console").read_text(errors="replace")
    print(f"called home after {found['home after']} s")
    return found


async def asked(control: Control, found: dict[str, str]) -> None:
    found["hello"] = f"{control.hello.version} {control.hello.machine}"
    found["settled"] = await ask(control, "systemctl is-system-running --wait; systemctl --failed --no-legend")
    found["root"] = await ask(
        control, f"{ROOT}; lsblk -no TRAN,SIZE $disk; cat /sys/block/${{disk#/dev/}}/device/vpd_pg80"
    )
    found["twin"] = await ask(control, "for each in /dev/sd?1; do e2label $each; done")
    found["card"] = await ask(control, "ip -4 -brief address show dev eth0; cat /sys/class/net/eth0/address")
    found["route"] = await ask(control, "ip route show default; cat /etc/resolv.conf")
    found["kept"] = await ask(control, "stat -c '%a %U' /run/agentlab/link.json; stat -f -c %T /run/agentlab")
    found["serial"] = await ask(control, "cat /sys/class/dmi/id/product_serial")
    found["others"] = await ask(
        control, "setpriv --reuid agent --clear-groups cat /sys/class/dmi/id/product_serial /run/agentlab/link.json"
    )
    before = await ask(control, "df --output=size -B1 / | tail -1")
    identity = Identity(name=SANDBOX, entropy=os.urandom(64), hostname="box", grow=True)
    found["took"] = " ".join(await control.identify(identity))
    found["grown"] = str(int(await ask(control, "df --output=size -B1 / | tail -1")) - int(before))
    found["table"] = await ask(control, f'{ROOT}; python3 -c "{NOTED}" $disk; lsblk -bno SIZE $root')
    found["mounted"] = await control.mount(DISK, "mine")
    found["disk"] = await ask(control, "findmnt --noheadings --output SOURCE /work")


async def again(home: GuestHome, found: dict[str, str]) -> None:
    """The guest program is killed, then the daemon goes."""
    control = await home.control(SANDBOX, 5)
    await ask(control, "systemd-run --quiet sleep 333")
    with contextlib.suppress(Unavailable):  # the answer is lost with who would give it
        await ask(control, "systemctl kill --kill-whom=main --signal=KILL agentlab-guest.service")
    async with asyncio.timeout(30):
        await control.wait_closed()
    control = await home.control(SANDBOX, 60)
    found["restarted"] = await ask(control, "cat /etc/hostname; pgrep -c sleep")
    await home.begin()
    control = await home.control(SANDBOX, 60)
    found["next daemon"] = await ask(control, "cat /etc/hostname")


def twin(disk: Path) -> None:
    """What somebody in a sandbox could make of a workspace: it looks like the disk that a machine boots from."""
    disk.write_bytes(boot_sector(bytes(510) + b"\x55\xaa", (WORK_BYTES - PARTITION_BYTES) // 512))
    os.truncate(disk, WORK_BYTES)
    offset = f"offset={PARTITION_BYTES}"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-E", offset, disk, "60M"], check=True)


def test_it_calls_home_and_answers(seen: Mapping[str, str]) -> None:
    assert seen["hello"] == f"{seen['version']} True"
    assert seen["settled"] == "running"


def test_it_boots_from_the_disk_that_is_no_workspace_whatever_that_is_labelled(seen: Mapping[str, str]) -> None:
    assert seen["twin"].split() == [LABEL, LABEL]
    assert "No such file" in seen["root"]  # it has no serial number


def test_its_network_is_what_the_invitation_says(seen: Mapping[str, str]) -> None:
    assert seen["card"].split() == ["eth0", "UP", "10.0.2.15/24", MAC]
    assert "default via 10.0.2.2" in seen["route"]
    assert "nameserver 10.0.2.3" in seen["route"]


def test_what_it_keeps_is_in_memory_and_for_root_alone(seen: Mapping[str, str]) -> None:
    assert seen["kept"].split() == ["600", "root", "tmpfs"]
    assert seen["others"].count("Permission denied") == 2


def test_becoming_somebody_does_not_cost_it_its_connection(seen: Mapping[str, str]) -> None:
    assert seen["took"].split()[0] == "entropy"


def test_its_root_file_system_and_its_partition_fill_a_disk_that_has_grown(seen: Mapping[str, str]) -> None:
    assert int(seen["grown"]) > 900 << 20
    noted, used = seen["table"].split()
    assert noted == used


def test_a_workspace_is_found_by_its_scsi_serial_number(seen: Mapping[str, str]) -> None:
    assert seen["mounted"] == "blank"
    assert seen["disk"].startswith("/dev/sd")


def test_the_guest_agent_of_qemu_answers_too(seen: Mapping[str, str]) -> None:
    assert seen["agent"] == "{}"


def test_it_comes_back_after_its_program_was_killed_and_after_the_daemon_was(seen: Mapping[str, str]) -> None:
    assert seen["restarted"].split() == ["box", "1"]
    assert seen["next daemon"] == "box"
    assert seen["replayed"] == "[]"


def test_nothing_secret_is_on_its_console(seen: Mapping[str, str]) -> None:
    token = parse(seen["serial"].encode()).token

    assert token not in seen["console"]
