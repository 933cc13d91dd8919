"""A daemon of a user who is not root: what works, what is weaker, and what it says of that."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.support import git, until

from agentlab.testing.netlab import NetLab
from agentlab.testing.netlab_server import dns_reply
from agentlab.testing.rootless_user import RootlessUser

pytestmark = [pytest.mark.root, pytest.mark.anyio]

# Reads lines "address port", says "<address> <port> <what came back>"; all at once, each for two seconds at most.
_PROBE = """
import socket, sys, threading
def ask(address, port):
    try:
        with socket.create_connection((address, int(port)), 2) as s:
            s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            said = s.recv(100)
        print(address, port, "open" if said else "closed", flush=True)
    except OSError as error:
        print(address, port, "no", flush=True)
threads = [threading.Thread(target=ask, args=pair.split(":")) for pair in sys.argv[1:]]
[t.start() for t in threads]; [t.join() for t in threads]
"""
_NAMES = """
import socket, sys
for name in sys.argv[1:]:
    try: print(name, socket.gethostbyname(name))
    except OSError: print(name, "none")
"""


@pytest.fixture(scope="module")
def user() -> Iterator[RootlessUser]:
    with RootlessUser() as user:
        user.take_templates()
        user.start()
        yield user


def execute(user: RootlessUser, sandbox: str, *argv: str) -> tuple[int, str]:
    done = user.agentlab("sandbox", "exec", sandbox, "--", *argv)
    text = base64.b64decode(done["stdout_b64"]) + base64.b64decode(done["stderr_b64"])
    return done["exit_code"], text.decode(errors="replace")


def open_ones(user: RootlessUser, sandbox: str, *pairs: str) -> set[str]:
    """Which of `address:port` answer to the sandbox."""
    status, said = execute(user, sandbox, "python3", "-c", _PROBE, *pairs)
    words = [line.split() for line in said.splitlines()]
    assert (status, len(words)) == (0, len(pairs)), said
    return {f"{address}:{port}" for address, port, answer in words if answer == "open"}


def sentences(user: RootlessUser) -> str:
    return "\n".join(user.agentlab("status")["facts"]["backends"][0]["missing_guarantees"])


# Refusals


def test_a_user_without_subordinate_ids_is_refused_with_the_command_that_grants_them() -> None:
    with RootlessUser(subordinates=False) as user, pytest.raises(RuntimeError) as refused:
        user.start()

    said = str(refused.value)
    assert "the daemon ended with 9" in said
    assert "/etc/subuid grants" in said
    assert f"{user.name}" in said.split("usermod --add-subuids ")[1].split("\n")[0]


def test_everything_that_is_missing_is_named_at_once() -> None:
    with RootlessUser(subordinates=False, hidden=["newuidmap", "newgidmap"]) as user:
        with pytest.raises(RuntimeError) as refused:
            user.start()
        left = user.processes()

    assert "subordinate ids" in str(refused.value)
    assert "apt-get install uidmap" in str(refused.value)
    assert left == []


def test_a_kernel_that_keeps_user_namespaces_for_itself_is_named_with_its_setting() -> None:
    with RootlessUser(closed=True) as user, pytest.raises(RuntimeError) as refused:
        user.start()

    assert "the daemon ended with 9" in str(refused.value)
    assert "user namespaces: the number of user namespaces is limited to none" in str(refused.value)
    assert "sysctl -w user.max_user_namespaces=15000" in str(refused.value)


def test_a_missing_part_of_the_backend_refuses_and_leaves_no_namespace() -> None:
    with RootlessUser(hidden=["crun", "runc"]) as user:
        with pytest.raises(RuntimeError, match="apt-get install crun"):
            user.start()

        until(lambda: not user.processes(), "everything to end", 10)
        assert not (user.home / "run/rootless").exists()


# What works


def test_a_job_runs_end_to_end(user: RootlessUser) -> None:
    repository = user.home / "repo"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    (repository / "README").write_text("hello\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "Begin")
    subprocess.run(["chown", "-R", f"{user.uid}:{user.uid}", str(repository)], check=True)
    task = "id -u; echo repaired > README; git commit -qam Repair"

    job = user.agentlab("job", "run", "--repo", str(repository), "--agent", "shell", "--task", task)
    ended = user.agentlab("job", "show", job["id"])

    assert ended["state"] == "succeeded", ended
    assert "+repaired" in user.run(*user.words("job", "diff", job["id"])).stdout
    until(lambda: not user.agentlab("sandbox", "list"), "the sandbox to go", 30)


def test_doctor_and_each_sandbox_name_every_guarantee_that_is_missing(user: RootlessUser) -> None:
    row = user.agentlab("sandbox", "new", "--network", "off")
    shown = "\n".join(user.agentlab("sandbox", "show", row["id"])["missing_guarantees"])
    doctor = "\n".join(each["detail"] for each in user.agentlab("doctor")["items"] if not each["ok"])
    user.agentlab("sandbox", "destroy", row["id"])

    for text in (shown, doctor, sentences(user)):
        assert "Memory is not limited" in text
        assert "CPU time is not limited" in text
        assert "number of processes is not limited" in text
        assert "Disk use is not limited" in text
        assert "share one range of user ids" in text
        assert "passes through pasta" in text


def test_a_sandbox_keeps_its_disk_over_a_stop(user: RootlessUser) -> None:
    sandbox = user.agentlab("sandbox", "new")["id"]
    script = "echo kept > /root/f; chown 1000:1000 /root/f; rm /usr/bin/less; mv /usr/share/perl5 /usr/share/moved"
    assert execute(user, sandbox, "sh", "-c", script) == (0, "")

    user.agentlab("sandbox", "stop", sandbox)
    user.agentlab("sandbox", "start", sandbox)

    look = "cat /root/f; stat -c %u /root/f; ls /usr/bin/less /usr/share/perl5 2>/dev/null; ls -d /usr/share/moved"
    assert execute(user, sandbox, "sh", "-c", look) == (0, "kept\n1000\n/usr/share/moved\n")
    user.agentlab("sandbox", "destroy", sandbox)


def test_a_sandbox_without_network_has_only_loopback(user: RootlessUser) -> None:
    sandbox = user.agentlab("sandbox", "new", "--network", "off")["id"]

    assert execute(user, sandbox, "ls", "/sys/class/net") == (0, "lo\n")
    user.agentlab("sandbox", "destroy", sandbox)


def test_a_template_is_built_without_root(user: RootlessUser) -> None:
    recipes = user.home / "config/templates"
    recipes.mkdir(exist_ok=True)
    command = "{name: leave traces, run: 'echo built > /built; rm -r /usr/share/ca-certificates; chown agent /built'}"
    (recipes / "tiny.yaml").write_text(f"name: tiny\nextends: base\ncommands:\n  - {command}\n")
    subprocess.run(["chmod", "-R", "a+rX", str(recipes)], check=True)
    user.agentlab("reload")

    user.agentlab("template", "build", "tiny")
    sandbox = user.agentlab("sandbox", "new", "--template", "tiny", "--network", "off")["id"]

    look = "cat /built; stat -c %U /built; ls /usr/share/ca-certificates 2>/dev/null || echo gone"
    assert execute(user, sandbox, "sh", "-c", look) == (0, "built\nagent\ngone\n")
    user.agentlab("sandbox", "destroy", sandbox)


def test_only_the_user_who_runs_the_daemon_is_served(user: RootlessUser) -> None:
    assert user.agentlab("whoami")["name"] == f"uid:{user.uid}"

    call = ["curl", "-s", "--unix-socket", str(user.home / "run/agentlabd.sock"), "http://agentlab/v1/sandboxes"]
    answer = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)

    assert answer["code"] == "request/forbidden", answer


# Ends and beginnings


def test_after_sigkill_the_next_daemon_finds_the_sandboxes_running() -> None:
    with RootlessUser() as user:
        user.take_templates()
        user.start()
        sandbox = user.agentlab("sandbox", "new")["id"]
        execute(user, sandbox, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! > /run/sleeper")

        user.stop(signal.SIGKILL)
        user.start()

        assert user.agentlab("sandbox", "show", sandbox)["state"] == "ready"
        assert execute(user, sandbox, "sh", "-c", "kill -0 $(cat /run/sleeper) && echo alive") == (0, "alive\n")
        assert execute(user, sandbox, "ls", "/sys/class/net")[1].split() == ["eth0", "lo"]


def test_sandboxes_outlive_a_clean_stop_and_after_the_last_one_nothing_is_left() -> None:
    with RootlessUser() as user:
        user.take_templates()
        user.start()
        sandbox = user.agentlab("sandbox", "new")["id"]
        assert user.stop() == 0
        assert user.processes()

        user.start()
        assert execute(user, sandbox, "echo", "still") == (0, "still\n")
        user.agentlab("sandbox", "destroy", sandbox)
        assert user.stop() == 0

        until(lambda: not user.processes(), "everything to end", 10)
        assert not (user.home / "run/rootless").exists()


def test_signals_reach_the_daemon_by_the_id_that_was_started(user: RootlessUser) -> None:
    assert user.agentlab("status")["facts"]["pid"] == user.pid
    (user.home / "config/profiles/extra.yaml").write_text("name: extra\ndescription: more\n")
    (user.home / "config/profiles/extra.yaml").chmod(0o644)

    user.send(signal.SIGHUP)

    until(lambda: "extra" in user.agentlab("status")["facts"]["profiles"], "the reload", 10)


def test_a_second_daemon_of_the_same_user_is_refused_and_harms_nothing(user: RootlessUser) -> None:
    sandbox = user.agentlab("sandbox", "new")["id"]

    second = user.second()

    assert second.returncode != 0
    assert str(user.pid) in second.stderr
    assert execute(user, sandbox, "echo", "alive") == (0, "alive\n")
    user.agentlab("sandbox", "destroy", sandbox)


# Network


async def test_only_the_internet_is_reached_through_pasta() -> None:
    async with NetLab() as lab:
        with RootlessUser(network=lab.host_name, resolv_conf=f"nameserver {lab.NAME_SERVER}\n") as user:
            user.take_templates()
            user.start()
            one, two = (user.agentlab("sandbox", "new")["id"] for _ in range(2))
            other = user.agentlab("sandbox", "show", two)["address"]
            closed = [*lab.LAN, *lab.TAILNET, *lab.METADATA, *lab.PRIVATE, *lab.NEIGHBOUR, *lab.HOST, other]
            gateway = user.agentlab("status")["facts"]["subnet"].replace("0/16", "1")
            internet = [f"{each}:80" for each in lab.INTERNET]
            forbidden = [f"{each}:{port}" for each in (*closed, gateway, "169.254.53.53") for port in (80, 22)]

            found = open_ones(user, one, *internet, *forbidden)

            assert found == set(internet)
            names = ("web.netlab.test", "intranet.netlab.test", "rebind.netlab.test")
            _, said = execute(user, one, "python3", "-c", _NAMES, *names)
            assert said.splitlines() == [
                "web.netlab.test 1.1.1.10",
                "intranet.netlab.test none",
                "rebind.netlab.test none",
            ]

            # Without pasta nothing flows, which doctor says; the next daemon brings another for the same sandboxes.
            for pid in user.processes():
                if b"pasta" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGTERM)
            until(lambda: "pasta has ended" in str(user.agentlab("doctor")), "doctor to see it", 10)
            assert open_ones(user, one, *internet) == set()
            user.stop()
            user.start()
            assert open_ones(user, one, *internet, *forbidden[:8]) == set(internet)


async def test_names_resolve_where_the_hosts_resolver_listens_on_its_loopback() -> None:
    async with NetLab() as lab:
        with lab.socket(lab.host, socket.SOCK_DGRAM) as server:
            server.settimeout(None)
            server.bind(("127.0.0.53", 53))
            threading.Thread(target=_answer, args=(server,), daemon=True).start()
            with RootlessUser(network=lab.host_name, resolv_conf="nameserver 127.0.0.53\n") as user:
                user.take_templates()
                user.start()
                sandbox = user.agentlab("sandbox", "new")["id"]

                _, said = execute(user, sandbox, "python3", "-c", _NAMES, "web.netlab.test")

                assert said == "web.netlab.test 1.1.1.10\n"
                assert open_ones(user, sandbox, "127.0.0.1:80", "127.0.0.53:80", "169.254.53.53:53") == set()


def test_without_pasta_there_is_no_network_and_that_is_said() -> None:
    with RootlessUser(hidden=["pasta"]) as user:
        user.take_templates()
        user.start()
        refused = user.run(*user.words("sandbox", "new", "--network", "nat"))
        sandbox = user.agentlab("sandbox", "new", "--network", "off")["id"]

        assert refused.returncode != 0
        assert "network" in refused.stdout + refused.stderr
        assert "only mode `off`: pasta is not installed.  apt-get install passt" in sentences(user)
        assert execute(user, sandbox, "echo", "works") == (0, "works\n")


def _answer(server: socket.socket) -> None:
    while True:
        try:
            query, asker = server.recvfrom(4096)
            server.sendto(dns_reply(query, 512), asker)
        except OSError:
            return
