"""Guests that lie: the daemon stays up, says so, and nothing gets out of its place."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.support import Lab, git, until

from agentlab_guest import messages as say
from agentlab_guest.protocol import HEADER, GuestSide

pytestmark = [pytest.mark.root]

# Runs as the agent, as root of its sandbox, with everything that the guest program has.
IMPOSTOR = """
import json, socket, sys, hashlib
sys.path.insert(0, "/opt/agentlab/guest.pyz")
from agentlab_guest import messages as say
from agentlab_guest.protocol import GuestSide
session = json.load(open("/run/agentlab/session.json"))
link = socket.socket(socket.AF_UNIX); link.connect("/opt/agentlab/guest.sock")
side = GuestSide()
def send(message):
    for each in side.send(message): link.sendall(each)
def receive(kind):
    while True:
        data = link.recv(1 << 16)
        if not data: return None
        for message in side.receive(data):
            if isinstance(message, kind): return message
send(say.Hello(protocol_min=1, protocol_max=1, version="x", nonce="n", credential=session["credential"]))
welcome = receive(say.Welcome)
names = ["../../escaped", "/etc/cron.d/x", "a/../../b", "a\\x1b[31mb", "C:\\\\x", "."]
for number, name in enumerate(names, 1):
    try: send(say.ArtifactOffer(id=number, name=name, kind="file", bytes=1, digest=hashlib.sha256(b"x").hexdigest()))
    except ValueError as error: print("own side refuses", repr(name)); continue
    answer = receive((say.ArtifactRefused, say.ArtifactWant))
    print("offer", repr(name), type(answer).__name__)
"""


def connect(lab: Lab) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    link.connect(str(lab.folder / "run" / "guest" / "guest.sock"))
    return link


def answer(link: socket.socket) -> bytes:
    received = b""
    try:
        while data := link.recv(65536):
            received += data
    except (TimeoutError, ConnectionResetError):
        pass
    return received


def hello(**more: str) -> bytes:
    message = say.Hello(protocol_min=1, protocol_max=1, version="x", nonce="n", **more)
    return b"".join(bytes(each) for each in GuestSide().send(message))


def test_p5_a_forged_grant_is_refused_and_is_a_security_event(each_lab: Lab) -> None:
    with connect(each_lab) as link:
        link.sendall(hello(grant="f" * 64))

        assert b"grant-unknown" in answer(link)

    assert each_lab.events(types=["grant.refused"])


def test_p5_a_forged_credential_is_refused_and_is_a_security_event(each_lab: Lab) -> None:
    with connect(each_lab) as link:
        link.sendall(hello(credential="f" * 64))

        assert b"credential-unknown" in answer(link)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 1000,
        b"\xff" * 100_000,
        HEADER.pack(1, 1 << 31, 0),
        HEADER.pack(1, 10, 1 << 31) + b"{}",
        HEADER.pack(1, 6, 0) + b"\xff\xfe{}[]",
        HEADER.pack(1, 40_000, 0) + b"[" * 40_000,
        HEADER.pack(200, 2, 0) + b"{}",
        hello(grant="x") * 2,
        b"",
    ],
    ids=[
        "http",
        "zeros",
        "ones",
        "huge-meta",
        "huge-data",
        "not-utf8",
        "deep-json",
        "unknown-kind",
        "two-hellos",
        "nothing",
    ],
)
def test_malformed_and_oversize_messages_end_the_connection_and_nothing_else(each_lab: Lab, garbage: bytes) -> None:
    with connect(each_lab) as link:
        try:
            link.sendall(garbage)
            link.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer(link)

    assert each_lab.client.call("daemon.status")["version"]
    assert Path(f"/proc/{each_lab.daemon.pid}").exists()


def test_p9_many_silent_connections_are_bounded_and_memory_stays_flat(each_lab: Lab) -> None:
    before = rss(each_lab.daemon.pid)
    links = []
    for _ in range(100):
        links.append(connect(each_lab))

    assert each_lab.client.call("daemon.status")["version"]
    assert rss(each_lab.daemon.pid) - before < 16 << 20
    for link in links:
        link.close()


def test_an_agent_with_its_guests_credential_cannot_name_a_file_outside_its_job(each_lab: Lab) -> None:
    write = f"cat > /tmp/impostor.py <<'X'\n{IMPOSTOR}\nX\n"
    task = write + "python3 /tmp/impostor.py > /tmp/said 2>&1 || true; cp /tmp/said said\n"

    job = each_lab.job(task)
    row = each_lab.ended(job)
    said = each_lab.patch(job)

    assert row["state"] in ("succeeded", "lost"), row
    assert "offer '../../escaped' ArtifactRefused" in said
    assert "ArtifactWant" not in said
    assert not (each_lab.folder / "escaped").exists()


def test_terminal_escapes_and_control_bytes_come_back_as_bytes_and_are_never_shown_raw(each_lab: Lab) -> None:
    job = each_lab.job("printf 'a\\033]0;owned\\007b\\033[2Jc\\n'; printf 'x\\033[31m' > 'evil'\n")
    each_lab.ended(job)

    assert "\x1b]0;owned" in each_lab.output(job)
    agentlab = Path(sys.executable).parent / "agentlab"
    command = f"{agentlab} --socket {each_lab.daemon.socket} job logs {job}"
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, check=True).stdout
    assert b"abc" in shown
    assert b"\x1b]" not in shown
    assert b"\x1b[2J" not in shown


def test_git_hooks_filters_and_config_in_the_returned_tree_never_run_on_the_host(each_lab: Lab, tmp_path: Path) -> None:
    repository, canary = each_lab.repository("hostile"), tmp_path / "canary"
    task = f"""
git config core.hooksPath .hooks; git config filter.x.smudge 'touch {canary}'
git config core.fsmonitor 'touch {canary}'
mkdir -p .hooks .git/hooks; for hook in pre-commit post-checkout post-merge reference-transaction; do
printf '#!/bin/sh\\ntouch {canary}\\n' > .hooks/$hook; cp .hooks/$hook .git/hooks/$hook; done
chmod +x .hooks/* .git/hooks/*
echo '* filter=x' > .gitattributes; printf '[submodule "s"]\\npath=s\\nurl=ext::touch {canary}\\n' > .gitmodules
ln -s /etc/passwd passwd; ln -s ../../../../etc up
echo work > README
"""
    job = each_lab.job(task, repository)
    row = each_lab.ended(job)
    assert row["state"] == "succeeded", row

    cli = [str(Path(sys.executable).parent / "agentlab"), "--socket", str(each_lab.daemon.socket)]
    done = subprocess.run(
        [*cli, "job", "apply", job, "--to", str(repository)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert not canary.exists()
    branch = git(repository, "for-each-ref", "--format=%(refname:short)", "refs/heads/agentlab")
    assert git(repository, "show", f"{branch}:README") == "work"
    assert git(repository, "status", "--porcelain") == ""


def test_a_sandbox_that_fills_its_disk_still_brings_its_commits_back(limited_lab: Lab) -> None:
    task = "echo before > README; git commit -qam before; dd if=/dev/zero of=/root/fill bs=1M 2>/dev/null || true\n"

    job = limited_lab.job(task, limited_lab.repository("full"), profile="small")
    row = limited_lab.ended(job)

    assert row["state"] == "succeeded", row
    assert "+before" in limited_lab.patch(job)


def test_a_fork_bomb_and_a_memory_hog_end_inside_their_sandbox(limited_lab: Lab) -> None:
    sandbox = limited_lab.sandbox(memory_bytes=256 << 20, pids_max=64)

    limited_lab.execute(
        sandbox, "bash", "-c", "for i in $(seq 200); do sleep 20 & done 2>/dev/null; true", timeout_s=30
    )
    hog = "x = bytearray(); \nwhile True: x += b'x' * 10_000_000"
    status, _ = limited_lab.execute(sandbox, "python3", "-c", hog, timeout_s=30)

    assert status != 0
    until(lambda: limited_lab.client.call("daemon.status"), "the daemon")
    limited_lab.client.call("sandboxes.destroy", sandbox=sandbox)


def rss(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()
