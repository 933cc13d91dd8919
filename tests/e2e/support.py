"""What end-to-end tests ask of a daemon."""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlab.client.repository import pack
from agentlab.client.sync import Connection
from agentlab.testing.daemon_process import DaemonProcess
from agentlab.testing.proxmox.server import ProxmoxSim
from agentlab.testing.proxmox_thread import TEMPLATE_VMID, ProxmoxThread

FINAL = {"succeeded", "failed", "timed_out", "cancelled", "lost"}
WAIT_S = 120.0


def git(where: Path, *arguments: str) -> str:
    """Run git in `where`, as a user would."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    done = subprocess.run(["git", *identity, "-C", str(where), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def until(look: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first truthy value of `look`; AssertionError naming `what` after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:g} s for {what}")


@contextmanager
def daemon_of(folder: Path, backend: str, crash_at: str = "", **settings: Any) -> Iterator[DaemonProcess]:
    """A daemon whose sandboxes are of this backend; for `proxmox`, beside a simulated cluster of its own."""
    with ExitStack() as stack:
        found: dict[str, object] = {"default_backend": backend, **settings}
        if backend == "proxmox":
            cluster = stack.enter_context(ProxmoxThread(folder / "cluster"))
            found["backends"] = {"proxmox": cluster.settings(free_port())}
            stack.callback(_nothing_left, cluster)
        yield stack.enter_context(DaemonProcess(folder, settings=found, crash_at=crash_at))


def _nothing_left(cluster: ProxmoxThread) -> None:
    """Once the daemon has destroyed its sandboxes, there is nothing on the cluster but the template."""

    async def look(sim: ProxmoxSim) -> list[int]:
        return sorted(sim.cluster.vms)

    assert cluster.run(look) == [TEMPLATE_VMID]


def free_port() -> int:
    """A TCP port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A running daemon, a client, and a folder to work in."""

    daemon: DaemonProcess
    client: Connection
    folder: Path
    backend: str = "oci"  # the daemon's default

    def repository(self, name: str = "repo") -> Path:
        """A small repository with one commit."""
        where = self.folder / name
        where.mkdir()
        git(where, "init", "-q", "-b", "main")
        (where / "README").write_text("hello\n")
        git(where, "add", ".")
        git(where, "commit", "-q", "-m", "Begin")
        return where

    def upload(self, repository: Path, ref: str | None = None) -> dict[str, Any]:
        """The repository as a blob, ready for `repo=`."""
        scratch = self.folder / f"pack-{time.monotonic_ns()}"
        scratch.mkdir()
        packed = pack(repository, ref, False, scratch)
        with packed.file.open("rb") as file:
            self.client.upload(packed.digest, file, packed.bytes_count)
        return {"bundle": packed.digest, "ref": packed.branch, "origin": packed.origin}

    def job(self, task: str, repository: Path | None = None, **more: Any) -> str:
        """Queue a shell job; its id."""
        repo = self.upload(repository) if repository is not None else {}
        job: str = self.client.call("jobs.create", task=task, repo=repo, agent="shell", **more)["id"]
        return job

    def get(self, job: str) -> dict[str, Any]:
        """The job as it is."""
        found: dict[str, Any] = self.client.call("jobs.get", job=job)
        return found

    def ended(self, job: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """The job once it is final."""
        found: dict[str, Any] = until(
            lambda: (row := self.get(job))["state"] in FINAL and row, f"{job} to end", timeout_s
        )
        return found

    def running(self, job: str) -> dict[str, Any]:
        """The job once its agent runs."""
        found: dict[str, Any] = until(lambda: (row := self.get(job))["phase"] == "run" and row, f"{job} to run")
        return found

    def output(self, job: str) -> str:
        """What its agent wrote."""
        raw: bytes = self.client.call("jobs.output", job=job, limit=1 << 20)
        return raw.decode()

    def patch(self, job: str) -> str:
        """Its patch."""
        raw: bytes = self.client.call("jobs.patch", job=job)
        return raw.decode()

    def sandbox(self, **wanted: Any) -> str:
        """A ready sandbox; its id."""
        row = self.client.call("sandboxes.create", **wanted)
        return self.settled(row["id"], "ready")

    def settled(self, sandbox: str, state: str) -> str:
        """Wait until the sandbox has reached `state`."""
        look = lambda: self.client.call("sandboxes.get", sandbox=sandbox)  # noqa: E731
        until(lambda: look()["state"] in (state, "failed"), f"{sandbox} to be {state}", 60)
        found = look()
        assert found["state"] == state, found
        return sandbox

    def execute(self, sandbox: str, *argv: str, **more: Any) -> tuple[int, str]:
        """Run a command in it; status, and both streams together."""
        done = self.client.call("sandboxes.execute", sandbox=sandbox, argv=list(argv), **more)
        out, err = base64.b64decode(done["stdout_b64"]), base64.b64decode(done["stderr_b64"])
        return done["exit_code"], (out + err).decode(errors="replace")

    def living(self) -> list[dict[str, Any]]:
        """Sandboxes that are not destroyed."""
        found: list[dict[str, Any]] = self.client.call("sandboxes.list", limit=100)["items"]
        return found

    def events(self, **wanted: Any) -> list[dict[str, Any]]:
        """The event log."""
        found: list[dict[str, Any]] = self.client.call("events.list", limit=500, **wanted)["items"]
        return found
