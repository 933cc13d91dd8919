"""Running git so that neither a repository nor the environment can make it run anything else, ask, or wait for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

from agentlab_guest.account import Account

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

PROTOCOLS = "https:http:git:ssh:file"  # file: the sandbox's own disk, where nothing is hidden from the agent
POLL_S = 0.1

# On the command scope, which no repository can override.
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.pager": "cat",
    "core.quotePath": "true",
    "core.bigFileThreshold": "16m",
    "core.autocrlf": "false",
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "diff.external": "",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "init.templateDir": "",
    "init.defaultBranch": "main",
    "advice.detachedHead": "false",
    "safe.directory": "*",
    "uploadpack.allowAnySHA1InWant": "true",
    "protocol.ext.allow": "never",
}


class GitFailed(Exception):
    """git ended with another status than 0; `detail` is the end of what it said."""

    def __init__(self, action: str, status: int, detail: str) -> None:
        super().__init__(f"git {action} ended with status {status}: {detail}")
        self.action, self.status, self.detail = action, status, detail


class TimeUp(Exception):
    """A named time limit was reached."""


class Aborted(Exception):
    """The step was given up on request."""


class Patience:
    """How long a step may still take, and whether it was given up meanwhile."""

    def __init__(self, limit_name: str, limit_s: float) -> None:
        self.limit = f"{limit_name} = {limit_s:g} s"
        self._until = time.monotonic() + limit_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """From another thread: end the step soon."""
        self._given_up.set()

    def check(self) -> None:
        """Raises Aborted or TimeUp when it is time."""
        if self._given_up.is_set():
            raise Aborted
        if time.monotonic() > self._until:
            raise TimeUp(self.limit)


class Git:
    """git as one user, with a neutral environment."""

    def __init__(self, account: Account, patience: Patience, *, trust_system: bool = False) -> None:
        self._account, self._patience = account, patience
        self._environment = _environment(account, trust_system)
        self.status = 0  # of the last run
        self.complaints = ""

    def run(
        self,
        *argv: str,
        cwd: str,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
        stdout: IO[bytes] | None = None,
        statuses: tuple[int, ...] = (0,),
    ) -> bytes:
        """What git wrote, unless it goes to the file `stdout`.

        Raises GitFailed for a status not in `statuses`, TimeUp and Aborted; git and its children are then gone.
        """
        with subprocess.Popen(
            ["git", *argv],
            cwd=cwd,
            env=self._environment | (env or {}),
            stdin=subprocess.PIPE,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **switched(self._account),
        ) as process:
            out, err = self._finish(process, stdin)
        self.status, self.complaints = process.returncode, err.decode(errors="replace").strip()
        if self.status not in statuses:
            raise GitFailed(argv[0], self.status, self.complaints[-600:])
        return out or b""

    def line(self, *argv: str, cwd: str, env: dict[str, str] | None = None) -> str:
        """The one line that git wrote."""
        return self.run(*argv, cwd=cwd, env=env).decode(errors="replace").strip()

    def _finish(self, process: subprocess.Popen[bytes], stdin: bytes) -> tuple[bytes, bytes]:
        given: bytes | None = stdin
        while True:
            try:
                return process.communicate(given, timeout=POLL_S)
            except subprocess.TimeoutExpired:
                given = None
            try:
                self._patience.check()
            except (Aborted, TimeUp):
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                raise


def switched(account: Account) -> dict[str, Any]:
    """Arguments of Popen that make the child run as `account`, or none if it does already."""
    if not account.switch:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": list(account.groups)}


def _environment(account: Account, trust_system: bool) -> dict[str, str]:
    names = {
        **account.environment,
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_COUNT": str(len(_CONFIG)),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oStrictHostKeyChecking=accept-new",
        "GIT_ALLOW_PROTOCOL": PROTOCOLS,
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }
    if not trust_system:
        names |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1"}
    for number, (key, value) in enumerate(_CONFIG.items()):
        names |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return names
