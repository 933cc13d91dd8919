"""The agent as processes: starting it, finding everything that it started, ending all of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable

from agentlab_guest import cgroups
from agentlab_guest.account import Account
from agentlab_guest.git import switched
from agentlab_guest.prepare import JOB_MARK, Launch

OOM_SCORE_ADJ = 500  # the kernel should end the agent before the guest program, which saves its work
FREEZE_ROUNDS_MAX = 5
_PR_SET_CHILD_SUBREAPER = 36
AgentProcess = subprocess.Popen[bytes]


def become_subreaper() -> bool:
    """Adopt what the agent's processes leave behind.  False if the kernel or the Python in the sandbox cannot."""
    try:
        import ctypes
    except ImportError:
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def start_agent(launch: Launch, account: Account, output: int) -> subprocess.Popen[bytes]:
    """Start the agent in a session of its own, its output going to the descriptor `output`.  Raises OSError."""
    stdin = os.open(launch.stdin, os.O_RDONLY | os.O_CLOEXEC)
    former = _oom_score_adj(None)
    try:
        # Raised around the fork, so that no child can be born before it counts; lowering it again needs no privilege.
        _oom_score_adj(OOM_SCORE_ADJ)
        return subprocess.Popen(
            launch.argv,
            cwd=launch.cwd,
            env=launch.env,
            stdin=stdin,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **switched(account),
        )
    finally:
        _oom_score_adj(former)
        os.close(stdin)


class Offspring:
    """All processes that belong to a job: our descendants, and whatever bears the job's mark in its environment.

    For a rescue, when the former guest's descendants are no longer ours, also with `own` "pids" every other process of
    this PID namespace but its first, and with "cgroup" everything that AgentLab runs in this VM.
    """

    def __init__(self, job: str, *, own: str = "") -> None:
        self._mark = f"{JOB_MARK}={job}".encode()
        self._own = own

    def find(self) -> list[int]:
        """Their ids; ours, our ancestors' and zombies' are not among them."""
        table = _table()
        spared = {1, os.getpid(), *_ancestors(os.getpid(), table)}
        living = {pid for pid, (_, state) in table.items() if state not in "ZX"} - spared
        if self._own == "pids":
            return sorted(pid for pid in living if table[pid][0] not in (0, 2))  # not the kernel's own
        found = _descendants({os.getpid()}, table)
        if self._own == "cgroup":
            found |= cgroups.members(cgroups.LAUNCHED, cgroups.SERVICE) & living
        found |= {pid for pid in living - found if _bears(pid, self._mark)}
        return sorted((found | _descendants(found, table)) & living)

    def signal(self, number: int) -> None:
        """Send a signal to all of them, once."""
        _signal(self.find(), number)

    def kill(self) -> int:
        """Freeze, then kill what is there now; how many were found.  Repeat until 0: they may multiply meanwhile."""
        seen: set[int] = set()
        for _ in range(FREEZE_ROUNDS_MAX):
            found = self.find()
            if seen.issuperset(found):
                break
            _signal(found, signal.SIGSTOP)
            seen.update(found)
        _signal(seen, signal.SIGKILL)
        return len(seen)


def reap(but: int | None) -> None:
    """Bury dead children, adopted ones too, except the process `but`, whose status is waited for elsewhere."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == but:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)


def exit_status(returncode: int) -> int:
    """As a shell tells it: 128 + n for signal n."""
    return 128 - returncode if returncode < 0 else returncode


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            pass  # not root, and it changed its user: the caller sees that it stays


def _table() -> dict[int, tuple[int, str]]:
    """Parent and state of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    rest = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(name)] = (int(rest[1]), rest[0].decode())
    return found


def _descendants(roots: set[int], table: dict[int, tuple[int, str]]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    pending = list(roots)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def _ancestors(pid: int, table: dict[int, tuple[int, str]]) -> set[int]:
    found: set[int] = set()
    while pid in table and table[pid][0] not in found | {0}:
        pid = table[pid][0]
        found.add(pid)
    return found


def _bears(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def _oom_score_adj(value: int | None) -> int | None:
    try:
        with open("/proc/self/oom_score_adj", "r+" if value is not None else "r") as file:
            if value is None:
                return int(file.read())
            file.write(str(value))
    except OSError:
        return None
    return value
