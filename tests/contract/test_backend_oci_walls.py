"""The walls of a real container: each trap that is known, tried from inside."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.backends.cgroup import detect
from agentlab.backends.interface import Command
from agentlab.base.files import mounts_below
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, Power
from agentlab.testing.backend_contract import power_of, result_of, running
from agentlab.testing.oci_rig import SMALL, OciRig, oci_rig

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OciRig]:
    async with oci_rig(tmp_path) as rig:
        yield rig


async def shell(rig: OciRig, mark: Mark, script: str, **changes: object) -> tuple[int, str]:
    """Status and merged output of a script in a sandbox."""
    command = replace(Command(argv=("sh", "-c", f"exec 2>&1; {script}")), **changes)  # type: ignore[arg-type]
    status, out, err = await result_of(rig.backend, mark, command)
    return status, (out + err).decode()


async def errno_of(rig: OciRig, mark: Mark, call: str) -> str:
    """What the kernel answers to a raw system call (x86-64 numbers), as perl names it."""
    script = f"my $r = syscall({call}); print $r < 0 ? $! + 0 : 'allowed'"
    status, out, err = await result_of(rig.backend, mark, Command(argv=("perl", "-e", script)))
    assert status == 0, err
    return out.decode()


async def test_commands_cannot_gain_privileges(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    _, status = await shell(rig, mark, "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status")
    _, as_nobody = await shell(rig, mark, "grep ^CapEff: /proc/self/status", user="nobody")

    assert status.split() == [
        *("CapEff:", "00000000800405fb", "CapBnd:", "00000000800405fb"),
        *("NoNewPrivs:", "1", "Seccomp:", "2"),
    ]
    assert as_nobody.split() == ["CapEff:", "0000000000000000"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86-64")
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        pytest.param("272, 0x10000000", "1", id="unshare"),
        pytest.param("308, -1, 0", "1", id="setns"),
        pytest.param("250, 0, 0, 0", "1", id="keyctl"),
        pytest.param("321, 0, 0, 0", "1", id="bpf"),
        pytest.param("323, 0", "1", id="userfaultfd"),
        pytest.param("298, 0, 0, 0, 0, 0", "1", id="perf-event-open"),
        pytest.param("165, 0, 0, 0, 0, 0", "1", id="mount"),
        pytest.param("425, 1, 0", "38", id="io-uring-setup"),
        pytest.param("435, 0, 0", "38", id="clone3"),
        pytest.param("56, 0x10000011, 0, 0, 0, 0", "1", id="clone-newuser"),
        pytest.param("56, 0x00020011, 0, 0, 0, 0", "1", id="clone-newns"),
        pytest.param("41, 40, 1, 0", "97", id="socket-vsock"),
        pytest.param("41, 38, 5, 0", "97", id="socket-alg"),
        pytest.param("41, 17, 3, 0", "97", id="socket-packet"),
        pytest.param("41, 16, 3, 0", "allowed", id="socket-netlink"),
        pytest.param("41, 2, 1, 0", "allowed", id="socket-inet"),
    ],
)
async def test_dangerous_system_calls_are_refused(rig: OciRig, call: str, answer: str) -> None:
    mark = await running(rig.backend, rig.spec())

    assert await errno_of(rig, mark, call) == answer


async def test_nested_sandboxes_are_possible_only_where_the_profile_says_so(rig: OciRig) -> None:
    strict = await running(rig.backend, rig.spec())
    nested = await running(rig.backend, rig.spec(nested_sandboxes=True))
    script = "unshare --user --map-root-user --mount --pid --fork --mount-proc echo nested"

    refused, _ = await shell(rig, strict, script)

    assert refused != 0
    assert await shell(rig, nested, script) == (0, "nested\n")


async def test_sandboxes_have_uids_of_their_own(rig: OciRig) -> None:
    marks = [await running(rig.backend, rig.spec()) for _ in range(2)]

    maps = [(await shell(rig, mark, "cat /proc/self/uid_map"))[1].split() for mark in marks]
    first = await rig.backend.inspect(marks[0].sandbox)

    assert maps[0] == ["0", str(0x1000_0000), "65536"]
    assert maps[1] == ["0", str(0x1000_0000 + 65536), "65536"]
    assert first is not None
    assert Path(f"/proc/{first.end.pid}").stat().st_uid == 0x1000_0000


async def test_the_template_survives_whatever_a_sandbox_does(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "precious").mkdir(parents=True)
    (layer / "precious" / "file").write_bytes(os.urandom(100_000))
    layer.chmod(0o755)
    before = _fingerprint(layer)

    async with oci_rig(tmp_path / "rig", layers=[layer]) as rig:
        mark = await running(rig.backend, rig.spec())
        status, shown = await shell(
            rig, mark, "cat /precious/file | wc -c; echo more >> /precious/file; rm -rf /usr /precious; echo"
        )
        assert (status, shown.split()) == (0, ["100000"])
        await rig.backend.destroy(mark)

    assert _fingerprint(layer) == before


async def test_nothing_of_a_sandbox_is_mounted_on_the_host(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    mounts = mounts_below(rig.folder)
    overlays = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "upperdir=/mnt/disk" in line]
    await rig.backend.destroy(mark)

    assert (mounts, overlays) == ([], [])


async def test_the_disk_is_limited(rig: OciRig) -> None:
    small = replace(SMALL, disk_bytes=64 << 20)
    mark = await running(rig.backend, rig.spec(resources=small))

    status, said = await shell(rig, mark, "dd if=/dev/zero of=/root/big bs=1M count=200")

    assert status != 0
    assert "No space left on device" in said
    image = rig.folder / "state" / "sandboxes" / mark.sandbox / "disk.img"
    assert image.stat().st_blocks * 512 <= small.disk_bytes


async def test_memory_is_limited_and_the_console_says_who_was_killed(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec(resources=replace(SMALL, memory_bytes=64 << 20)))

    status, _ = await shell(rig, mark, "python3 -c \"x = b'x' * (200 << 20)\"")
    told = await rig.backend.console(mark.sandbox)

    assert status == 137
    assert "memory limit" in told
    assert await power_of(rig.backend, mark.sandbox) is Power.RUNNING


async def test_processes_are_limited(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec(resources=replace(SMALL, pids_max=20)))

    _, said = await shell(rig, mark, "for i in $(seq 40); do sleep 3 & done; echo end")

    assert "annot fork" in said


async def test_processor_time_is_limited(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec(resources=replace(SMALL, cpus=0.5)))
    cgroups = detect(Path("/proc/self/mountinfo").read_text())

    group = cgroups.group("cpu", f"/agentlab-{mark.installation}/{mark.sandbox}")

    assert group is not None
    quota = "cpu.max" if cgroups.version == 2 else "cpu.cfs_quota_us"
    assert (group / quota).read_text().split()[0] == "50000"


async def test_kernel_settings_are_read_only_and_ipv6_is_off(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    _, said = await shell(
        rig, mark, "cat /proc/sys/net/ipv6/conf/*/disable_ipv6; echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    )

    assert said.startswith("1\n1\n1\n")
    assert "Read-only file system" in said


async def test_secrets_lie_in_memory_that_only_root_may_read(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())
    word = "correct-horse-battery-staple"

    status, said = await shell(
        rig, mark, f"echo {word} > /run/agentlab/key && stat -f -c %T /run/agentlab && stat -c %a%u /run/agentlab; sync"
    )
    refused, _ = await shell(rig, mark, "cat /run/agentlab/key", user="nobody")
    full, _ = await shell(rig, mark, "dd if=/dev/zero of=/run/agentlab/fill bs=1M count=4")

    assert (status, said.split()) == (0, ["tmpfs", "7000"])
    assert refused != 0
    assert full != 0
    assert word.encode() not in (rig.folder / "state" / "sandboxes" / mark.sandbox / "disk.img").read_bytes()


async def test_sandboxes_do_not_see_each_others_processes_or_files(rig: OciRig) -> None:
    one, two = await running(rig.backend, rig.spec()), await running(rig.backend, rig.spec())

    async with rig.backend.execute(one, Command(argv=("sleep", "4321"))):
        await shell(rig, one, "echo mine > /root/note")
        _, said = await shell(rig, two, "ps ax; ls /root; cat /proc/1/comm")

    assert "4321" not in said
    assert "note" not in said
    assert said.endswith("agentlab-init\n")


async def test_a_sandbox_has_no_link_but_loopback_until_it_is_given_one(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    _, said = await shell(rig, mark, "ls /sys/class/net; cat /etc/hosts; hostname")

    assert said.split() == ["lo", "127.0.0.1", "localhost", "127.0.1.1", "test-box", "test-box"]


async def test_a_command_inherits_nothing_and_its_environment_is_in_no_argument(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    async with rig.backend.execute(mark, Command(argv=("sleep", "60"), env={"KEY": "s3cr3t-value"})):
        arguments = b"".join(_arguments(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    _, descriptors = await shell(rig, mark, "ls /proc/self/fd")

    assert b"s3cr3t-value" not in arguments
    assert descriptors.split() == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


async def test_every_process_is_taken_before_the_hosts_when_memory_runs_out(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec())

    _, scores = await shell(rig, mark, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")
    await rig.backend.launch(mark, Command(argv=("sh", "-c", "cat /proc/self/oom_score_adj >/root/launched")), b"")
    _, launched = await shell(rig, mark, "sleep 0.5; cat /root/launched")

    assert scores.split() == ["200", "300"]
    assert launched.split() == ["300"]


async def test_paths_of_the_host_and_other_sandboxes_cannot_be_read_from_the_hosts_block_devices(rig: OciRig) -> None:
    mark, other = await running(rig.backend, rig.spec()), await running(rig.backend, rig.spec())

    _, found = await shell(rig, mark, "cat /sys/block/*/loop/backing_file /proc/partitions /proc/diskstats; true")
    _, mounts = await shell(rig, mark, "cat /proc/self/mountinfo /proc/self/cgroup")

    assert "disk.img" not in found
    assert "loop" not in found.replace("/sys/block/*/loop", "")
    for each in (mark, other):
        assert each.sandbox not in mounts + found


async def test_package_work_needs_nothing_more(rig: OciRig) -> None:
    mark = await running(rig.backend, rig.spec(resources=Resources(memory_bytes=512 << 20, disk_bytes=512 << 20)))
    script = """set -e
        useradd --create-home worker; su worker -c 'git init -q /home/worker/x && touch /home/worker/x/y'
        chown nobody:nogroup /home/worker/x/y; stat -c %U /home/worker/x/y
        mv /usr/share/perl5 /usr/share/moved; mkdir -p /tmp/p/DEBIAN /tmp/p/opt/thing
        printf 'Package: thing\\nVersion: 1\\nArchitecture: all\\n' > /tmp/p/DEBIAN/control
        printf 'Maintainer: x <x@x.x>\\nDescription: x\\n' >> /tmp/p/DEBIAN/control
        mv /usr/share/moved /usr/share/perl5; dpkg-deb --build /tmp/p /tmp/p.deb > /dev/null
        dpkg -i /tmp/p.deb > /dev/null; dpkg -s thing | grep Status"""

    status, said = await shell(rig, mark, script)

    assert (status, said) == (0, "nobody\nStatus: install ok installed\n")


def _arguments(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def _fingerprint(folder: Path) -> list[tuple[str, int, int, str]]:
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found.append((str(path), status.st_mode, status.st_uid, digest))
    return found
