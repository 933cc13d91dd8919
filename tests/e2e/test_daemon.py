"""The daemon's own life: start, refusal, reload, drain, stop; and the two commands for people who do not manage one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.support import Lab, until

from agentlab.errors import DaemonNotRunning, DiskFull
from agentlab.testing.daemon_process import DaemonProcess, shared_templates

pytestmark = [pytest.mark.root]

BIN = Path(sys.executable).parent


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program of ours to its end."""
    return subprocess.run(
        [str(BIN / argv[0]), *argv[1:]], capture_output=True, text=True, env=os.environ | env, timeout=90, check=False
    )


def test_start_names_every_listener_backend_profile_and_template(lab: Lab) -> None:
    # It answers before it has finished naming things; the template comes last.
    end = time.monotonic() + 20
    while "template=base" not in lab.daemon.log() and time.monotonic() < end:
        time.sleep(0.02)
    log = lab.daemon.log()

    for wanted in ("agentlabd.sock", "guest.sock", "backend=oci", "yolo-ephemeral", "template=base", "subnet=10."):
        assert wanted in log


def test_the_socket_is_closed_to_others(lab: Lab) -> None:
    mode = lab.daemon.socket.stat().st_mode

    assert stat.S_IMODE(mode) == 0o660


def test_a_second_daemon_on_the_same_directory_is_refused_and_names_the_first(lab: Lab) -> None:
    second = run("agentlabd", "--dir", str(lab.folder))

    assert second.returncode == 6
    assert str(lab.daemon.pid) in second.stderr
    assert "remedy:" in second.stderr
    assert lab.client.call("daemon.status")["version"]


def test_a_stopped_daemon_leaves_nothing_and_its_socket_is_gone(short_dir: Path) -> None:
    with DaemonProcess(short_dir) as daemon:
        installation = daemon.installation()

        assert daemon.stop() == 0

        assert not daemon.socket.exists()
        assert daemon.leftovers(installation) == []
        with pytest.raises(DaemonNotRunning):
            daemon.client().call("daemon.status", retry=False)


def test_sighup_reads_profiles_again_and_keeps_the_old_ones_when_they_are_wrong(lab: Lab) -> None:
    profiles = lab.folder / "config" / "profiles"
    (profiles / "mine.yaml").write_text("name: mine\ndescription: made later\n")
    lab.daemon.signal(signal.SIGHUP)
    until(lambda: "mine" in [each["name"] for each in lab.client.call("profiles.list")["items"]], "the new profile", 10)

    (profiles / "mine.yaml").write_text("name: mine\nnetwrok: {mode: off}\n")
    lab.daemon.signal(signal.SIGHUP)
    until(lambda: "netwrok" in lab.daemon.log(), "the complaint", 10)

    assert "mine" in [each["name"] for each in lab.client.call("profiles.list")["items"]]


def test_the_service_manager_is_told_ready_and_stopping(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(short_dir / "notify"))
    channel.settimeout(30)
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_dir / "notify"))

    with DaemonProcess(short_dir / "d") as daemon:
        ready = channel.recv(4096)
        daemon.stop()
        stopping = channel.recv(4096)

    assert b"READY=1" in ready
    assert b"STOPPING=1" in stopping


def test_a_wrong_configuration_tells_every_problem_with_its_place(short_dir: Path) -> None:
    file = short_dir / "wrong.yaml"
    file.write_text("limitz:\n  x: 1\nnetwork:\n  subnet: 8.8.8.0/24\nlog: {format: jsn}\n")

    done = run("agentlabd", "--config", str(file), "--dir", str(short_dir / "d"))

    assert done.returncode == 2
    for wanted in ("wrong.yaml:1:1", "limits", "wrong.yaml:4:", "wrong.yaml:5:", "json"):
        assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_runtime_is_told_before_anything_starts(short_dir: Path) -> None:
    only = short_dir / "bin"
    only.mkdir()
    for program in ("nft", "ip", "mkfs.ext4", "sysctl", "unshare", "bridge"):
        if found := shutil.which(program):
            (only / program).symlink_to(found)
    folder = short_dir / "config"
    folder.mkdir()
    (folder / "agentlabd.yaml").write_text("backends: {oci: {runtime: runsc}}\n")

    done = run("agentlabd", "--dir", str(short_dir))

    assert done.returncode == 9
    assert "runsc" in done.stderr
    assert "remedy:" in done.stderr


def test_a_subnet_that_is_in_use_is_refused_and_names_the_route(short_dir: Path) -> None:
    with DaemonProcess(short_dir / "one", settings={"network": {"subnet": "10.231.7.0/24"}}) as daemon:
        config = short_dir / "two" / "config"
        config.mkdir(parents=True)
        (config / "agentlabd.yaml").write_text("network: {subnet: 10.231.7.0/24}\n")

        done = run("agentlabd", "--dir", str(short_dir / "two"))

        assert done.returncode != 0
        assert "10.231.7.0/24" in done.stderr
        assert daemon.client().call("daemon.status")["version"]


def test_up_and_down_start_and_stop_a_daemon_in_the_background(short_dir: Path) -> None:
    (short_dir / "state").mkdir()
    (short_dir / "state" / "templates").symlink_to(shared_templates() / "templates")

    up = run("agentlab", "up", "--dir", str(short_dir))
    status = run("agentlab", "--json", "status", AGENTLAB_DIR=str(short_dir))
    again = run("agentlab", "up", "--dir", str(short_dir))
    down = run("agentlab", "down", "--dir", str(short_dir))
    gone = run("agentlab", "status", AGENTLAB_DIR=str(short_dir))

    assert up.returncode == 0, up.stderr
    assert json.loads(status.stdout)["version"]
    assert again.returncode == 0
    assert down.returncode == 0, down.stderr
    assert gone.returncode == 7
    assert "agentlab up" in gone.stderr


def test_requests_during_the_drain_end_and_the_daemon_stops_in_time(lab: Lab) -> None:
    sandbox = lab.sandbox()
    command = [
        str(BIN / "agentlab"),
        "--socket",
        str(lab.daemon.socket),
        "sandbox",
        "exec",
        sandbox,
        "--",
        "sleep",
        "60",
    ]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)

    began = time.monotonic()
    assert lab.daemon.stop() == 0

    assert time.monotonic() - began < 45
    assert child.wait(10) != 0
    lab.daemon.start()


def test_idle_the_daemon_is_small_and_quiet(lab: Lab) -> None:
    time.sleep(2)
    status = Path(f"/proc/{lab.daemon.pid}/status").read_text()
    resident_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    assert resident_kib < 100 * 1024


def test_on_a_full_disk_new_work_is_refused_but_a_sandbox_can_be_destroyed(short_dir: Path) -> None:
    folder = short_dir / "d"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500m", "none", str(folder)], check=True)
    try:
        with DaemonProcess(folder) as daemon, daemon.client() as client:
            lab = Lab(daemon=daemon, client=client, folder=short_dir)
            sandbox = lab.sandbox(profile="small")
            until(lambda: (folder / "state" / "reserve").exists(), "the reserve", 10)
            with (folder / "fill").open("wb", buffering=0) as file:
                for size in (1 << 20, 4096):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(b"x" * size)

            with pytest.raises(DiskFull):
                lab.job("true\n")
            client.call("sandboxes.destroy", sandbox=sandbox)
            lab.settled(sandbox, "destroyed")
            (folder / "fill").unlink()
            assert lab.ended(lab.job("echo again\n"))["state"] == "succeeded"
    finally:
        subprocess.run(["umount", str(folder)], check=True)
