"""Workers: a call that takes long answers with an id (UPID) and goes on as a task with a log and an exit status."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from agentlab.base.clock import Clock
from agentlab.base.tasks import TaskScope
from agentlab.testing.proxmox.access import Caller
from agentlab.testing.proxmox.faults import Fault
from agentlab.testing.proxmox.refusal import Refused

UPID = re.compile(
    r"UPID:([a-zA-Z0-9][\w-]*):([0-9A-F]{8}):([0-9A-F]{8,9}):([0-9A-F]{8}):([^:\s/]+):([^:\s/]*):([^:\s/]+):"
)
TASKS_KEPT_MAX = 20_000
DIED = "unexpected status"
INTERRUPTED = "interrupted by signal"


@dataclass(slots=True, kw_only=True)
class Task:
    """One worker of a node.  `exitstatus` None: it runs."""

    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    caller: Caller
    lines: list[str] = field(default_factory=list)
    warnings: int = 0
    exitstatus: str | None = None
    endtime: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    job: asyncio.Task[Any] | None = None

    def log(self, line: str) -> None:
        """Add a line to its log."""
        self.lines.append(line)

    def warn(self, line: str) -> None:
        """Add a warning; the task will end with `WARNINGS: n`."""
        self.warnings += 1
        self.lines.append(f"WARN: {line}")

    def facts(self) -> dict[str, Any]:
        """What every view of a task shows."""
        facts: dict[str, Any] = {"upid": self.upid, "node": self.node, "starttime": self.starttime, "type": self.type}
        facts |= {"id": self.id, "user": self.caller.user}
        if self.caller.token is not None:
            facts["tokenid"] = self.caller.token
        return facts

    def finish(self, exitstatus: str, now: float) -> None:
        """Note how it ended."""
        if self.exitstatus is not None:
            return
        self.exitstatus, self.endtime = exitstatus, int(now)
        if exitstatus == "OK":
            self.log("TASK OK")
        elif exitstatus.startswith("WARNINGS: "):
            self.log(f"TASK {exitstatus}")
        elif exitstatus != DIED:
            self.log(f"TASK ERROR: {exitstatus}")
        self.ended.set()


Work = Callable[[Task], Awaitable[None]]


class TaskBoard:
    """All tasks of the cluster, newest last.  `spend` takes the time until a worker works, and until it is gone."""

    def __init__(self, clock: Clock, scope: TaskScope, spend: Callable[[str], Awaitable[None]]) -> None:
        self.tasks: dict[str, Task] = {}
        self._clock, self._scope, self._spend = clock, scope, spend
        self._pids = 0x100

    def start(self, node: str, kind: str, about: str, caller: Caller, work: Work, fault: Fault | None = None) -> str:
        """Fork a worker; its UPID.  A failure of `work` (Refused) is its exit status."""
        task = self._registered(node, kind, about, caller)
        task.job = self._scope.start(self._run(task, work, fault), task.upid)
        return task.upid

    def find(self, upid: str) -> Task | None:
        """The task of this id."""
        return self.tasks.get(upid)

    def running(self) -> list[Task]:
        """Those that have not ended."""
        return [task for task in self.tasks.values() if task.exitstatus is None]

    def lose(self, node: str) -> None:
        """Kill the workers of a node that went away; nobody notes how they ended."""
        for task in self.running():
            if task.node == node and task.job is not None:
                task.finish(DIED, self._clock.now())
                task.job.cancel()

    def stop(self, task: Task) -> None:
        """Kill one worker."""
        if task.job is not None and task.exitstatus is None:
            task.lines.append("received interrupt")
            task.job.cancel()

    def new_pid(self) -> int:
        """The number of the next process."""
        self._pids += 1
        return self._pids

    def _registered(self, node: str, kind: str, about: str, caller: Caller) -> Task:
        pid, pstart, now = self.new_pid(), int(self._clock.monotonic() * 100) & 0xFFFFFFFF, int(self._clock.now())
        upid = f"UPID:{node}:{pid:08X}:{pstart:08X}:{now:08X}:{kind}:{about}:{caller.authid}:"
        task = Task(upid=upid, node=node, pid=pid, pstart=pstart, starttime=now, type=kind, id=about, caller=caller)
        self.tasks[upid] = task
        while len(self.tasks) > TASKS_KEPT_MAX:
            del self.tasks[next(iter(self.tasks))]
        return task

    async def _run(self, task: Task, work: Work, fault: Fault | None) -> None:
        try:
            await self._work(task, work, fault)
        finally:
            if task.exitstatus is None:  # a mistake of the simulator's own, which is in the log
                task.finish(DIED, self._clock.now())

    async def _work(self, task: Task, work: Work, fault: Fault | None) -> None:
        try:
            if fault is Fault.TASK_DIES:
                return task.finish(DIED, self._clock.now())
            await self._spend("fork")
            await work(task)
            await self._spend("reap")
        except Refused as error:
            await self._spend("reap")
            return task.finish(DIED if fault is Fault.TASK_DIES_LATE else error.outcome, self._clock.now())
        except asyncio.CancelledError:
            task.finish(INTERRUPTED, self._clock.now())
            raise
        if fault is Fault.TASK_DIES_LATE:
            return task.finish(DIED, self._clock.now())
        return task.finish(f"WARNINGS: {task.warnings}" if task.warnings else "OK", self._clock.now())
