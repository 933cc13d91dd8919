"""What the tests of the guest program share: a job, a sample repository, and the real program as a process."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from agentlab.base.pyz import build_guest_pyz
from agentlab.testing.guest_peer import GuestPeer

ME = pwd.getpwuid(os.getuid()).pw_name
GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent"}
NAMED = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}


def git(cwd: Path, *argv: str, check: bool = True) -> str:
    """Run git as a user with a plain environment."""
    environment = {**os.environ, **GIT, **NAMED}
    done = subprocess.run(["git", *argv], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


class GuestWorld:
    """Directories of one test, and the guest in them."""

    def __init__(self, tmp_path: Path) -> None:
        self.top = tmp_path
        self.work, self.state, self.run_dir = tmp_path / "work", tmp_path / "state", tmp_path / "run"
        self.pyz = tmp_path / "guest.pyz"
        self.pyz.write_bytes(build_guest_pyz())
        self.job = f"job-{uuid.uuid4().hex[:12]}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.origin, self.base = tmp_path / "origin", ""
        self.blobs: dict[str, bytes] = {}

    def sample(self) -> tuple[Path, str]:
        """A repository with two commits, as a bundle."""
        self.origin.mkdir()
        git(self.origin, "init", "-q", "-b", "main")
        for number in (1, 2):
            (self.origin / "a.txt").write_text(f"line {number}\n" * number)
            (self.origin / ".gitignore").write_text("*.log\n")
            git(self.origin, "add", "-A")
            git(self.origin, "commit", "-q", "-m", f"commit {number}")
        self.base = git(self.origin, "rev-parse", "HEAD")
        bundle = self.top / "in.bundle"
        git(self.origin, "bundle", "create", "-q", str(bundle), "HEAD", "refs/heads/main")
        return bundle, hashlib.sha256(bundle.read_bytes()).hexdigest()

    def bootstrap(self, task: str, **changes: Any) -> bytes:
        """A job that runs `task` by bash."""
        if "repo" not in changes:
            bundle, digest = self.sample()
            self.blobs[digest] = bundle.read_bytes()
            changes["repo"] = {
                "url": None,
                "bundle": digest,
                "bundle_bytes": bundle.stat().st_size,
                "ref": changes.pop("ref", None),
            }
        values = {
            "job": self.job,
            "mode": "run",
            "agent": {"name": "shell", "argv": ["bash", "-eu", "{task_file}"], "prompt": "file"},
            "task": task,
            "env": {},
            "redact": [],
            "user": ME,
            "work_dir": str(self.work),
            "branch": f"agentlab/{self.job}",
            "git_name": "AgentLab",
            "git_email": "agentlab@localhost",
            "timeout_s": 60,
            "stop_grace_s": 2,
            "collect_s_max": 60,
            "heartbeat_s": 0.5,
            "globs": [],
            "file_bytes_max": 0,
            "total_bytes_max": 0,
            "count_max": 10_000,
        }
        return json.dumps(values | changes).encode()

    def peer(self, task: str, **changes: Any) -> GuestPeer:
        """The daemon's end for such a job."""
        raw = self.bootstrap(task, **changes)
        return GuestPeer(self.top / "guest.sock", raw, self.blobs)

    def start(self, peer: GuestPeer, *, grant: bool = True, more: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start the real program."""
        argv = [sys.executable, "-I", "-S", str(self.pyz), "--link", f"unix:{peer.path}", *more]
        argv += ["--run-dir", str(self.run_dir), "--state-dir", str(self.state)]
        environment = {"PATH": os.environ["PATH"]}
        with (self.top / "guest.err").open("ab") as err:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=err, env=environment)
        assert process.stdin is not None
        if grant:
            process.stdin.write(peer.grant.encode() + b"\n")
        process.stdin.close()
        self.processes.append(process)
        return process

    def finish(self, peer: GuestPeer, process: subprocess.Popen[bytes], timeout_s: float = 40) -> None:
        """Wait for the report and the end of the program."""
        peer.wait(lambda: peer.report is not None or process.poll() is not None, timeout_s)
        status = process.wait(timeout_s)
        assert status == 0, self.stderr()
        assert peer.errors == [], peer.errors
        assert peer.report is not None

    def run(self, task: str, **changes: Any) -> GuestPeer:
        """A whole job; what the daemon has at its end."""
        with self.peer(task, **changes) as peer:
            self.finish(peer, self.start(peer))
        return peer

    def stderr(self) -> str:
        """What the program itself complained about."""
        return (self.top / "guest.err").read_text()

    def apply(self, peer: GuestPeer, branch: str | None = None) -> Path:
        """A clone of the origin with the result fetched from the bundle and checked out."""
        clone = self.top / "clone"
        git(self.top, "clone", "-q", str(self.origin), str(clone))
        bundle = self.top / "out.bundle"
        bundle.write_bytes(peer.artifacts["result.bundle"])
        git(clone, "fetch", "-q", str(bundle), f"{branch or f'refs/heads/agentlab/{self.job}'}:refs/heads/result")
        git(clone, "checkout", "-q", "result")
        return clone

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    mine = f"AGENTLAB_JOB={self.job}".encode() in (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if mine:
                    os.kill(int(entry.name), 9)
        Path(f"/tmp/agentlab-task-{self.job}").unlink(missing_ok=True)
        identity = Path(pwd.getpwnam(ME).pw_dir) / ".gitconfig"
        if identity.exists() and str(self.top) in identity.read_text():
            identity.unlink()  # the guest made it, in a home that had none
