"""What only a virtual machine shows: its own kernel, forks and snapshots over the API, a QEMU that dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.support import Lab, until

from agentlab.errors import BackendUnusable
from agentlab.testing.daemon_process import DaemonProcess

pytestmark = [pytest.mark.root, pytest.mark.slow]

NAMES = "cat /etc/machine-id; hostname; cat /sys/class/net/eth0/address; hostname -I"
IDENTITY = f"{NAMES}; od -An -tx1 -N16 /dev/urandom | tr -d ' '"


@pytest.fixture(scope="module")
def vms() -> Iterator[Lab]:
    """A daemon whose sandboxes are virtual machines."""
    folder = Path(tempfile.mkdtemp(prefix="al-", dir="/tmp"))
    with DaemonProcess(folder, settings={"default_backend": "qemu"}) as daemon, daemon.client() as client:
        yield Lab(daemon=daemon, client=client, folder=folder, backend="qemu")
    shutil.rmtree(folder, ignore_errors=True)


def qemu_of(sandbox: str) -> int:
    """The process of a sandbox's machine."""
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                words = (each / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"qemu-system-x86_64") and any(sandbox.encode() in word for word in words):
                return int(each.name)
    raise AssertionError(f"no process of {sandbox}")


def test_a_virtual_machine_has_a_kernel_of_its_own_and_its_process_has_no_rights(vms: Lab) -> None:
    sandbox = vms.sandbox(memory_bytes=512 << 20)

    _, kernel = vms.execute(sandbox, "uname", "-r")
    status = Path(f"/proc/{qemu_of(sandbox)}/status").read_text()

    assert kernel.strip() != os.uname().release
    assert re.search(r"^CapEff:\s+0+$", status, re.M)
    assert re.search(r"^Seccomp:\s+2$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert "0" not in re.findall(r"^[UG]id:\s+(\d+)", status, re.M)
    vms.client.call("sandboxes.destroy", sandbox=sandbox)


def test_the_accelerator_is_told(vms: Lab) -> None:
    facts = {each["name"]: each for each in vms.client.call("daemon.status")["facts"]["backends"]}
    findings = {each["name"]: each for each in vms.client.call("daemon.doctor")["items"]}

    assert facts["qemu"]["facts"]["accelerator"] in ("kvm", "tcg")
    assert any(name.startswith("qemu: ") and "accelerat" in name for name in findings), sorted(findings)
    assert f"accelerator={facts['qemu']['facts']['accelerator']}" in vms.daemon.log()


def test_forks_of_a_running_machine_go_on_from_its_memory_as_others(vms: Lab) -> None:
    origin = vms.sandbox(memory_bytes=512 << 20)
    vms.execute(origin, "sh", "-c", "echo kept > /run/in-memory; echo disk > /root/on-disk")

    forks = [each["id"] for each in vms.client.call("sandboxes.fork", sandbox=origin, count=2)["items"]]
    ready = [vms.settled(each, "ready") for each in forks]
    seen = [vms.execute(each, "cat", "/run/in-memory", "/root/on-disk") for each in (origin, *ready)]
    selves = [vms.execute(each, "sh", "-c", IDENTITY)[1].split() for each in (origin, *ready)]

    assert seen == [(0, "kept\ndisk\n")] * 3
    assert [len(set(values)) for values in zip(*selves, strict=True)] == [3] * 5, selves
    for each in (origin, *forks):
        vms.client.call("sandboxes.destroy", sandbox=each)


def test_a_machine_is_brought_back_to_its_snapshot_with_its_memory(vms: Lab) -> None:
    sandbox = vms.sandbox(memory_bytes=512 << 20)
    vms.execute(sandbox, "sh", "-c", "echo before > /run/state; echo before > /root/state")
    vms.client.call("sandboxes.snapshot", sandbox=sandbox, name="good", memory=True)
    until(
        lambda: (
            [each["state"] for each in vms.client.call("sandboxes.snapshots", sandbox=sandbox)["items"]] == ["ready"]
        ),
        "the snapshot",
        60,
    )
    vms.execute(sandbox, "sh", "-c", "echo after > /run/state; echo after > /root/state")

    vms.client.call("sandboxes.restore", sandbox=sandbox, snapshot="good")
    until(lambda: vms.client.call("sandboxes.get", sandbox=sandbox)["restore_to"] is None, "the restore", 60)
    vms.settled(sandbox, "ready")

    assert vms.execute(sandbox, "cat", "/run/state", "/root/state") == (0, "before\nbefore\n")
    vms.client.call("sandboxes.destroy", sandbox=sandbox)


def test_a_job_whose_qemu_is_killed_ends_truthfully_and_keeps_what_it_can(vms: Lab) -> None:
    job = vms.job("echo saved > README; sync; touch /run/synced; sleep 300\n", vms.repository("killed"))
    sandbox = vms.running(job)["sandbox"]
    until(lambda: vms.execute(sandbox, "test", "-e", "/run/synced")[0] == 0, "the agent's first write")

    os.kill(qemu_of(sandbox), signal.SIGKILL)
    row = vms.ended(job)

    assert row["state"] == "lost", row
    assert "+saved" in vms.patch(job)
    until(lambda: vms.living() == [], "its sandbox to go", 60)


def test_containers_say_that_they_cannot_be_forked(vms: Lab) -> None:
    sandbox = vms.sandbox(backend="oci")

    with pytest.raises(BackendUnusable, match="oci"):
        vms.client.call("sandboxes.fork", sandbox=sandbox, count=1)

    vms.client.call("sandboxes.destroy", sandbox=sandbox)
