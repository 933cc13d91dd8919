"""P2 on the real thing: the daemon is killed with SIGKILL at every point of a job's life and started again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.support import Lab, daemon_of, until

from agentlab.testing.crashing_daemon import POINTS

pytestmark = [pytest.mark.root, pytest.mark.slow]

SETTINGS: dict[str, object] = {"durations": {"reconcile_interval_s": 1, "link_lost_s": 15, "stop_grace_s": 1}}
TASK = "echo ran >> README; for i in 1 2 3; do echo line $i; sleep 0.2; done; mkdir out; echo x > out/a\n"


# Emulated machines are slow: of the points that no backend has a part in, the containers' run is enough.
VM_POINTS = (
    "after:create",
    "before:policy",
    "after:arm",
    "after:start",
    "after:launch",
    "after:output",
    "before:destroy",
)
CLUSTER_POINTS = ("before:create", *VM_POINTS, "before:start", "after:destroy")
CASES = [
    *(("oci", point) for point in POINTS),
    *(("qemu", point) for point in VM_POINTS),
    *(("proxmox", point) for point in CLUSTER_POINTS),
]


@pytest.mark.parametrize(("backend", "point"), CASES)
def test_p2_a_daemon_killed_at_any_point_finishes_the_job_once_and_leaves_nothing(
    backend: str, point: str, short_dir: Path
) -> None:
    with daemon_of(short_dir, backend, crash_at=point, **SETTINGS) as daemon:
        installation = daemon.installation()
        with daemon.client() as client:
            lab = Lab(daemon=daemon, client=client, folder=short_dir)
            job = lab.job(TASK, lab.repository(), artifact_globs=["out/*"])
        daemon.wait_crash()

        daemon.start()

        with daemon.client() as client:
            lab = Lab(daemon=daemon, client=client, folder=short_dir)
            row = lab.ended(job, 60)
            assert row["state"] == "succeeded", row
            assert lab.patch(job).count("+ran\n") == 1
            assert lab.output(job) == "line 1\nline 2\nline 3\n"
            names = {each["name"] for each in client.call("jobs.artifacts", job=job)["items"]}
            assert {"result.bundle", "result.patch", "out/a"} <= names
            until(lambda: lab.living() == [], "every sandbox to go", 60)
        assert daemon.stop() == 0
        assert daemon.leftovers(installation) == []


@pytest.mark.parametrize("backend", ["oci", "qemu", "proxmox"])
def test_p2_a_sandbox_survives_a_killed_daemon_and_is_adopted(backend: str, short_dir: Path) -> None:
    with daemon_of(short_dir, backend, **SETTINGS) as daemon:
        with daemon.client() as client:
            lab = Lab(daemon=daemon, client=client, folder=short_dir)
            sandbox = lab.sandbox()
            lab.execute(sandbox, "sh", "-c", "echo here > /root/mark")

        daemon.kill()
        daemon.start()

        with daemon.client() as client:
            lab = Lab(daemon=daemon, client=client, folder=short_dir)
            assert lab.execute(sandbox, "cat", "/root/mark") == (0, "here\n")


@pytest.mark.parametrize("backend", ["oci", "qemu", "proxmox"])
def test_a_job_goes_on_while_the_daemon_is_upgraded(backend: str, short_dir: Path) -> None:
    with daemon_of(short_dir, backend, **SETTINGS) as daemon:
        with daemon.client() as client:
            lab = Lab(daemon=daemon, client=client, folder=short_dir)
            job = lab.job("for i in $(seq 60); do echo $i; sleep 0.1; done\n")
            lab.running(job)

        assert daemon.stop() == 0
        daemon.start()

        with daemon.client() as client:
            lab = Lab(daemon=daemon, client=client, folder=short_dir)
            assert lab.ended(job, 60)["state"] == "succeeded"
            assert lab.output(job).split() == [str(number) for number in range(1, 61)]
