"""A real daemon as a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.base.files import exclusive_lock, make_directory, mounts_below
from agentlab.client.sync import Connection
from agentlab.errors import AgentLabError, DaemonNotRunning
from agentlab.templates.build import TemplateBuilder
from agentlab.testing.rootfs import test_cache

START_S_MAX = 60.0
SUBNET_TRIES_MAX = 100
SMALL_PROFILE = """\
name: small
description: Little of everything, to reach limits quickly
resources: {memory: 256MiB, cpus: 1, pids: 64, disk: 128MiB}
"""


def shared_templates(name: str = "base") -> Path:
    """A state directory in the test cache whose `templates` holds a finished build of a shipped recipe.

    Built at first use on a machine (a minute or two, and a Debian mirror); parallel callers wait for it.
    """
    state = make_directory(test_cache() / "templates-state")
    builder = TemplateBuilder(state, test_cache() / "packages", SystemClock())
    if builder.find(name) is None:
        with exclusive_lock(state / "tests.lock", wait=True), ThreadPoolExecutor(max_workers=1) as thread:
            if builder.find(name) is None:
                thread.submit(lambda: asyncio.run(builder.build(builder.recipe(name)))).result()
    return state


class DaemonProcess:
    """`agentlabd --dir …` with templates from the test cache.  Use as a context manager: it leaves nothing behind."""

    def __init__(
        self,
        directory: Path,
        *,
        namespace: str | None = None,
        settings: dict[str, object] | None = None,
        crash_at: str = "",
    ) -> None:
        """`directory` must be short (a socket path has 107 bytes); `namespace` names a network namespace to run in;
        `crash_at` a point of `crashing_daemon` at which it dies once."""
        self.directory, self._namespace, self._crash_at = directory, namespace, crash_at
        self._process: subprocess.Popen[bytes] | None = None
        self._held = ExitStack()
        self.log_path = directory / "daemon.log"
        self._settings: dict[str, object] = {
            "limits": {"disk_reserve_bytes": "64MiB"},
            "network": {"subnet": self._subnet()},
            "durations": {"reconcile_interval_s": 1, "link_lost_s": 5, "stop_grace_s": 1},
        } | (settings or {})

    def __enter__(self) -> Self:
        state, config = self.directory / "state", self.directory / "config"
        make_directory(state)
        make_directory(config)
        if not (state / "templates").exists():
            (state / "templates").symlink_to(shared_templates() / "templates")
        prepared = make_directory(shared_templates() / "prepared", 0o755)
        if not (make_directory(state / "qemu", 0o755) / "prepared").exists():
            (state / "qemu" / "prepared").symlink_to(prepared)  # a VM need not be booted for each test
        (make_directory(config / "profiles") / "small.yaml").write_text(SMALL_PROFILE)
        (config / "agentlabd.yaml").write_text(yaml.safe_dump(self._settings))
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            sys.stderr.write(f"--- daemon log\n{self.log()[-6000:]}\n")
        if self._process is None or self._process.poll() is not None:
            self.start()
        client = self.client()
        for row in client.call("sandboxes.list", limit=500)["items"]:
            client.call("sandboxes.destroy", sandbox=row["id"])
        end = time.monotonic() + 60
        while client.call("sandboxes.list", limit=1)["items"] and time.monotonic() < end:
            time.sleep(0.1)
        client.close()
        self.stop()
        self._held.close()

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.directory / "run" / "agentlabd.sock"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start it and wait until it serves; the seconds that took.  RuntimeError with its log if it ends instead."""
        inside = ["ip", "netns", "exec", self._namespace] if self._namespace else []
        module = "agentlab.testing.crashing_daemon" if self._crash_at else "agentlab.daemon.main"
        command = [*inside, sys.executable, "-m", module, "--dir", str(self.directory)]
        crash = {"AGENTLAB_CRASH_AT": self._crash_at, "AGENTLAB_CRASH_FILE": str(self.directory / "crashed")}
        began = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--log-format", "human"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | crash,
            )
        while time.monotonic() - began < START_S_MAX:
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self._process.returncode}:\n{self.log()[-3000:]}")
            try:
                with self.client() as client:
                    client.call("daemon.status")
                return time.monotonic() - began
            except (DaemonNotRunning, OSError):
                time.sleep(0.01)
            except AgentLabError:
                return time.monotonic() - began
        raise RuntimeError(f"the daemon does not serve:\n{self.log()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def wait_crash(self, timeout_s: float = 60) -> None:
        """Wait until it has died of itself; subprocess.TimeoutExpired if it lives on."""
        assert self._process is not None
        status = self._process.wait(timeout_s)
        assert status == -signal.SIGKILL, f"ended with {status}, not by its crash point"

    def stop(self) -> int:
        """SIGTERM, and wait for its clean end; its exit status."""
        self.signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(60)

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def client(self) -> Connection:
        """A client of its own for the caller."""
        return Connection(self.socket)

    def log(self) -> str:
        """All that it has written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def installation(self) -> str:
        """Its id."""
        with self.client() as client:
            found = client.call("daemon.status")["facts"]["installation"]
        assert isinstance(found, str)
        return found

    def _subnet(self) -> str:
        """A /24 that no other test's daemon has: its lock is held for as long as this one may run."""
        locks, entropy = make_directory(Path(tempfile.gettempdir()) / "agentlab-test-subnets"), SystemEntropy()
        for _ in range(SUBNET_TRIES_MAX):
            number = int(entropy.fraction() * 100 * 256)
            subnet = f"10.{100 + number // 256}.{number % 256}.0/24"
            try:
                self._held.enter_context(exclusive_lock(locks / subnet.replace("/", "-")))
            except BlockingIOError:
                continue
            return subnet
        raise RuntimeError(f"no free subnet in {SUBNET_TRIES_MAX} tries")

    def leftovers(self, installation: str) -> list[str]:
        """What bears this installation's mark on the host: mounts, links, rules, cgroups, processes."""
        found = [f"mount {point}" for point in mounts_below(self.directory)]
        found += [f"link {name}" for name in _names(("ip", "-br", "link"), rf"\bal{installation[:4]}\S*")]
        found += [f"table {name}" for name in _names(("nft", "list", "tables"), rf"\S*{installation}\S*")]
        for folder, _, _ in os.walk("/sys/fs/cgroup"):
            if installation in folder:
                found.append(f"cgroup {folder}")
        return found


def _names(command: Sequence[str], pattern: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return sorted(set(re.findall(pattern, done.stdout)))
