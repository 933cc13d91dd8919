"""The walls as hostile users see them: from inside a sandbox, and with an account in the socket's group."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.e2e.support import Lab, until

from agentlab.api.peer import CONNECTIONS_PER_USER_MAX

pytestmark = [pytest.mark.root]

STRANGER = 43_210  # a user id that nothing else on the machine has
PYTHON = "/usr/bin/python3"  # one that a stranger may run, unlike that of a virtual environment in root's home

TALK = """
import json, socket, sys, time
def connect():
    link = socket.socket(socket.AF_UNIX); link.settimeout(20); link.connect(sys.argv[1]); return link
def ask(method, path, body=b""):
    link = connect()
    head = f"{method} {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    link.sendall(head.encode() + body)
    answer = b""
    while piece := link.recv(1 << 16): answer += piece
    head, _, content = answer.partition(b"\\r\\n\\r\\n")
    return int(head.split()[1]), content.decode()
"""


@pytest.fixture
def open_lab(each_lab: Lab) -> Lab:
    """The daemon's socket as a group of which STRANGER is a member sees it."""
    for folder in (each_lab.folder, each_lab.daemon.socket.parent):
        folder.chmod(0o755)
    subprocess.run(["chgrp", str(STRANGER), str(each_lab.daemon.socket)], check=True)
    return each_lab


def as_stranger(lab: Lab, script: str) -> str:
    """What a script of another user, talking to the daemon's socket, prints."""
    done = subprocess.run(
        [PYTHON, "-c", TALK + script, str(lab.daemon.socket)],
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return done.stdout


def test_p10_a_user_learns_nothing_of_anothers_sandbox_not_even_that_it_exists(open_lab: Lab) -> None:
    sandbox = open_lab.sandbox(name="private")
    missing = "sb-" + "0" * len(sandbox.removeprefix("sb-"))
    script = """
for each in ({real}, {missing}):
    for method, path in (("GET", "sandboxes/%s"), ("GET", "sandboxes/%s/console"), ("DELETE", "sandboxes/%s"),
                         ("POST", "sandboxes/%s/exec"), ("GET", "events?subject=%s")):
        status, content = ask(method, '/v1/' + path % each)
        content = json.loads(content); content.pop("request_id", None)
        print(json.dumps([status, content]).replace(each, "ID"))
""".replace("{real}", json.dumps(sandbox)).replace("{missing}", json.dumps(missing))

    said = as_stranger(open_lab, script).splitlines()

    assert said[:5] == said[5:]
    assert [json.loads(line)[0] for line in said[:5]] == [404, 404, 404, 404, 200]
    open_lab.client.call("sandboxes.destroy", sandbox=sandbox)


def test_p9_a_user_that_opens_connections_without_end_does_not_lock_others_out(open_lab: Lab) -> None:
    script = f"""
links, refused = [], 0
for _ in range({CONNECTIONS_PER_USER_MAX} + 200):
    links.append(connect())
time.sleep(1)
for link in links:
    link.setblocking(False)
    try: refused += link.recv(1) == b""
    except BlockingIOError: pass
    except ConnectionResetError: refused += 1
print(refused)
"""
    refused = int(as_stranger(open_lab, script))

    assert refused >= 200
    assert open_lab.client.call("daemon.status")["version"]
    until(lambda: "200" in as_stranger(open_lab, "print(ask('GET', '/v1/whoami')[0])"), "the stranger to be let in", 10)


def test_a_sandbox_sees_no_path_of_the_host_and_no_other_sandbox(each_lab: Lab) -> None:
    mine, other = each_lab.sandbox(), each_lab.sandbox(name="neighbour")
    look = (
        "cat /proc/self/cgroup /proc/diskstats /sys/block/*/loop/backing_file /proc/*/environ /proc/*/cmdline; ls /run"
    )

    _, seen = each_lab.execute(mine, "sh", "-c", f"{look}; true")

    assert other not in seen
    assert "neighbour" not in seen
    assert str(Path(each_lab.daemon.directory) / "state") not in seen
    for each in (mine, other):
        each_lab.client.call("sandboxes.destroy", sandbox=each)


def test_a_command_that_writes_without_end_does_not_make_others_wait(each_lab: Lab) -> None:
    sandbox = each_lab.sandbox()

    done = each_lab.client.call(
        "sandboxes.execute", sandbox=sandbox, argv=["cat", "/dev/zero"], timeout_s=2, env={}, stdin_b64=""
    )

    assert done["timed_out"]
    assert done["truncated"]
    each_lab.client.call("sandboxes.destroy", sandbox=sandbox)
