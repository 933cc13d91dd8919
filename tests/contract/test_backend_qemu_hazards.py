"""What virtual machines that wake up from one memory must not share; each hazard on real ones."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agentlab.backends.interface import Command
from agentlab.base.entropy import SystemEntropy
from agentlab.model.network import NetworkMode, Port
from agentlab.model.sandbox import Mark, SandboxSpec, SnapshotOf
from agentlab.testing.backend_contract import result_of, running
from agentlab.testing.qemu_rig import QemuRig, qemu_rig
from agentlab.testing.snapshot_contract import again, read

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LONG_AGO = 1_000_000_000
KEY = "/etc/ssh/ssh_host_ed25519_key"
# The image has no ssh server.  What looks like one shows what becomes of its keys.
LIKE_SSH = f"""
mkdir -p /etc/ssh && echo old > {KEY} && : > /usr/sbin/sshd &&
printf '#!/bin/sh\\nfor last; do :; done; head -c 32 /dev/urandom | od -An -tx1 > "$last"\\n' > /usr/bin/ssh-keygen &&
chmod +x /usr/bin/ssh-keygen
"""
ADDRESS = "import socket; s = socket.socket(2, 2); s.connect(('198.18.7.1', 9)); print(s.getsockname()[0])"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[QemuRig]:
    async with qemu_rig(tmp_path) as rig:
        yield rig


@pytest.fixture(params=["clones", "forks", "cold forks"])
async def siblings(request: pytest.FixtureRequest, rig: QemuRig) -> tuple[Mark, Mark]:
    """Two that began as the same: as clones of prepared memory, or as forks with or without memory."""
    specs = (with_network(rig, 1), with_network(rig, 2))
    if request.param != "clones":
        origin = await running(rig.backend, with_network(rig, 3))
        assert rig.backend.snapshots is not None
        await rig.backend.snapshots.take(origin, "s", memory=request.param == "forks")
        source = SnapshotOf(mark=origin, name="s")
        specs = (replace(specs[0], source=source), replace(specs[1], source=source))
    return await running(rig.backend, specs[0]), await running(rig.backend, specs[1])


def with_network(rig: QemuRig, number: int) -> SandboxSpec:
    spec = rig.spec()
    port = Port(
        sandbox=spec.mark.sandbox,
        link=f"alh{SystemEntropy().word(8)}",
        mac=f"02:16:3e:00:07:{number:02x}",
        address=IPv4Address(f"198.18.7.{10 + number}"),
        gateway=IPv4Address("198.18.7.1"),
        prefix_length=24,
        mode=NetworkMode.NAT,
    )
    return replace(spec, network=NetworkMode.NAT, port=port, nameserver="198.18.7.1")


async def said(rig: QemuRig, mark: Mark, *argv: str) -> str:
    status, out, complaint = await result_of(rig.backend, mark, Command(argv=argv))
    assert status == 0, complaint
    return out.decode().strip()


async def both(rig: QemuRig, siblings: tuple[Mark, Mark], *argv: str) -> list[str]:
    return [await said(rig, each, *argv) for each in siblings]


async def forked(rig: QemuRig, origin: Mark) -> Mark:
    assert rig.backend.snapshots is not None
    await rig.backend.snapshots.take(origin, "s", memory=True)
    return await running(rig.backend, replace(rig.spec(), source=SnapshotOf(mark=origin, name="s")))


async def test_siblings_share_no_random_bytes(rig: QemuRig, siblings: tuple[Mark, Mark]) -> None:
    drawn = await both(rig, siblings, "python3", "-c", "import os; print(os.urandom(32).hex(), os.getrandom(32).hex())")

    assert len({word for text in drawn for word in text.split()}) == 4


async def test_siblings_share_no_machine_id_and_no_boot_id(rig: QemuRig, siblings: tuple[Mark, Mark]) -> None:
    machines = await both(rig, siblings, "cat", "/etc/machine-id")
    boots = await both(rig, siblings, "cat", "/proc/sys/kernel/random/boot_id")

    assert [len(each) for each in machines] == [32, 32]
    assert len({*machines, *boots}) == 4


async def test_siblings_share_no_name(rig: QemuRig, siblings: tuple[Mark, Mark]) -> None:
    names = await both(rig, siblings, "sh", "-c", "echo $(hostname) $(cat /etc/hostname)")

    expected = [f"box-{each.sandbox.removeprefix('sb-')}" for each in siblings]
    assert names == [f"{each} {each}" for each in expected]


async def test_siblings_have_their_own_mac_and_address(rig: QemuRig, siblings: tuple[Mark, Mark]) -> None:
    macs = await both(rig, siblings, "sh", "-c", "cat /sys/class/net/e*/address")
    addresses = await both(rig, siblings, "python3", "-c", ADDRESS)

    assert macs == ["02:16:3e:00:07:01", "02:16:3e:00:07:02"]
    assert addresses == ["198.18.7.11", "198.18.7.12"]


async def test_siblings_have_the_right_time(rig: QemuRig, siblings: tuple[Mark, Mark]) -> None:
    before = time.time()

    first, second = await both(rig, siblings, "date", "+%s.%N")

    assert before - 1 < float(first) <= float(second) + 1 < time.time() + 2


async def test_a_fork_of_one_whose_clock_is_wrong_has_the_right_time(rig: QemuRig) -> None:
    origin = await running(rig.backend, rig.spec())
    await said(rig, origin, "date", "-s", f"@{LONG_AGO}")

    fork = await forked(rig, origin)
    now = float(await said(rig, fork, "date", "+%s.%N"))

    assert abs(now - time.time()) < 1


async def test_a_fork_makes_host_keys_of_its_own(rig: QemuRig) -> None:
    origin = await running(rig.backend, rig.spec())
    await said(rig, origin, "sh", "-c", LIKE_SSH)

    forks = (await forked(rig, origin), await forked(rig, origin))
    keys = await both(rig, forks, "sh", "-c", f"until [ -s {KEY} ]; do sleep 0.05; done; cat {KEY}")

    assert await said(rig, origin, "cat", KEY) == "old"
    assert len({"old", *keys}) == 3


async def test_what_runs_goes_on_in_a_fork_and_not_what_was_asked_of_the_origin(rig: QemuRig) -> None:
    origin = await running(rig.backend, rig.spec())
    counting = "while :; do echo >> /dev/shm/turns; sleep 0.1; done"
    await rig.backend.launch(origin, Command(argv=("sh", "-c", counting)), b"")
    async with rig.backend.execute(origin, Command(argv=("sleep", "1000"))):
        fork = await forked(rig, origin)

    size = int(await said(rig, fork, "stat", "-c", "%s", "/dev/shm/turns"))
    waited = f"until [ $(stat -c %s /dev/shm/turns) -gt {size} ]; do sleep 0.05; done"
    await said(rig, fork, "sh", "-c", waited)

    # Programs come and go while this is read: what has gone is not what is looked for.
    programs = await said(rig, fork, "sh", "-c", "cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' '")
    assert counting in programs
    assert "sleep 1000" not in programs


async def test_one_that_comes_back_is_who_it_was_with_fresh_randomness_and_the_right_time(rig: QemuRig) -> None:
    spec = with_network(rig, 4)
    mark = await running(rig.backend, spec)
    await said(rig, mark, "sh", "-c", LIKE_SSH)
    await said(rig, mark, "date", "-s", f"@{LONG_AGO}")
    assert rig.backend.snapshots is not None
    known = await who(rig, mark)
    await rig.backend.snapshots.take(mark, "s", memory=True)

    drawn = set()
    await again(rig.backend, spec, "s")
    drawn.add(await said(rig, mark, "sh", "-c", "head -c 32 /dev/urandom | od -An -tx1"))
    await again(rig.backend, spec, "s")
    drawn.add(await said(rig, mark, "sh", "-c", "head -c 32 /dev/urandom | od -An -tx1"))

    assert len(drawn) == 2
    assert await who(rig, mark) == known
    assert await read(rig.backend, mark, KEY) == "old"
    assert abs(float(await said(rig, mark, "date", "+%s.%N")) - time.time()) < 1


async def who(rig: QemuRig, mark: Mark) -> list[str]:
    """All by which others know a machine."""
    files = "/etc/machine-id /proc/sys/kernel/hostname /proc/sys/kernel/random/boot_id /sys/class/net/e*/address"
    return [await said(rig, mark, "sh", "-c", f"cat {files}"), await said(rig, mark, "python3", "-c", ADDRESS)]
