"""Waiting for tasks: a call that answers with a UPID has only begun.  What its task ends with is what happened."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentlab.backends.interface import BackendError, Unavailable
from agentlab.backends.proxmox import encode, lenient
from agentlab.backends.proxmox.answers import NoAnswer, ProxmoxError
from agentlab.backends.proxmox.api import Api
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.failures import Kind, failed_task, kind_of, kind_of_text, translated
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.wording import plain
from agentlab.base.clock import Clock, sleep

POLL_S_FIRST = 0.06
POLL_S_MAX = 1.0  # the pause to which it grows
POLL_FRACTION = 0.15  # of the time waited so far is the next pause, so that an end is noticed at most so much later
LISTING_FROM = 3  # so many tasks waited for on one node are looked at by one call
LISTING_S_MAX = 0.2  # how old that look may be, for whoever looks next
LISTED_TASKS_MAX = 500  # of a node
LOG_LINES_MAX = 8  # of a failed task's log, from its end
LOG_LINES_ASKED = 50

_UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<pid>[0-9A-Fa-f]{8}):(?P<pstart>[0-9A-Fa-f]{8,9}):"
    r"(?P<start>[0-9A-Fa-f]{8}):(?P<type>[^:\s]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):"
)
_WARNINGS = re.compile(r"WARNINGS: (\d+)")
# A status of its own tells that nothing of it can be looked up; everything else may pass while a node is away.
_FINAL = frozenset({Kind.PARAMETER, Kind.AUTH, Kind.PRIVILEGE, Kind.GONE, Kind.MISSING, Kind.UNSUPPORTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Upid:
    """The name of a task, and what it says of itself."""

    text: str
    node: str
    type: str  # "qmclone", "qmstart", …
    id: str  # what it works on, mostly a VMID; "310-scsi1>311-scsi1" for a disk that moves
    user: str  # with a token, user@realm!name
    started_at: int  # seconds since the epoch, by the node's clock

    @staticmethod
    def parse(text: object) -> Upid:
        """ValueError if it is none."""
        found = _UPID.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{text!r} is not the name of a task")
        return Upid(
            text=found[0],
            node=found["node"],
            type=found["type"],
            id=found["id"],
            user=found["user"],
            started_at=int(found["start"], 16),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnd:
    """How a task ended.  With `warnings` it succeeded, and something is worth a note."""

    upid: Upid
    exit_status: str
    warnings: int = 0
    log_tail: tuple[str, ...] = ()  # only of what did not end with OK
    took_s: float  # as long as we waited

    @property
    def ok(self) -> bool:
        """Whether it did what it was to do."""
        return self.exit_status == "OK" or self.exit_status.startswith("WARNINGS")

    @property
    def kind(self) -> Kind | None:
        """What went wrong; None if nothing did."""
        return None if self.ok else kind_of_text(self.exit_status)

    def failure(self, doing: str, grantee: Grantee | None = None) -> BackendError:
        """The error for whoever asked for `doing`."""
        assert not self.ok
        return failed_task(self.exit_status, self.log_tail, doing, grantee)


@dataclass(frozen=True, slots=True)
class _Listing:
    running: frozenset[str]
    at: float


class Tasks:
    """Waits for tasks.  Several of one node share their looks; the truth is always the task's own status."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api, self._clock = api, clock
        self._waiting: dict[str, int] = {}
        self._looking: dict[str, asyncio.Lock] = {}
        self._listings: dict[str, _Listing] = {}
        self.polls = 0  # calls made to see whether tasks have ended

    async def wait(self, upid: Upid, limit_s: float) -> TaskEnd:
        """Return when the task has ended, well or not.

        Looks after 60 ms, then ever more seldom, at last once a second.  Raises Unavailable when `limit_s` is over:
        the task goes on; and BackendError if the task is not known or may not be seen.  Cancelling leaves it running.
        """
        began, trouble = self._clock.monotonic(), ""
        self._waiting[upid.node] = self._waiting.get(upid.node, 0) + 1
        try:
            while (left := began + limit_s - self._clock.monotonic()) > 0:
                pause = max(POLL_S_FIRST, min((limit_s - left) * POLL_FRACTION, POLL_S_MAX))
                await sleep(min(pause, left))
                try:
                    exit_status = await self._ended(upid)
                except ProxmoxError as error:
                    if kind_of(error) in _FINAL:
                        raise translated(error, f"waiting for task {upid.type} of {upid.id or upid.node}") from error
                    trouble = error.words  # a node that is away may come back before the limit
                    continue
                if exit_status is not None:
                    return await self._end(upid, exit_status, self._clock.monotonic() - began)
        finally:
            self._waiting[upid.node] -= 1
        raise Unavailable(
            f"task {upid.type} of {upid.id or upid.node} has not ended within {limit_s:g} s; it goes on on {upid.node}"
            + (f" (asking for it: {trouble})" if trouble else ""),
            f"See its log on the node: pvenode task log {upid.text}",
        )

    async def done(self, upid: Upid, limit_s: float, doing: str, grantee: Grantee | None = None) -> TaskEnd:
        """As `wait`, but a task that ended badly is raised as the error that it means."""
        end = await self.wait(upid, limit_s)
        if not end.ok:
            raise end.failure(doing, grantee)
        return end

    async def _ended(self, upid: Upid) -> str | None:
        """The exit status, or None while it runs."""
        if self._waiting[upid.node] >= LISTING_FROM and upid.text in await self._running(upid.node):
            return None
        self.polls += 1
        path = encode.path("nodes", upid.node, "tasks", upid.text, "status")
        status = lenient.row(await self._api.call("GET", path))
        if lenient.text(status, "status") != "stopped":
            return None
        return lenient.text(status, "exitstatus") or "unexpected status"

    async def _running(self, node: str) -> frozenset[str]:
        """The tasks that run on a node, as seen a moment ago; what is not among them is worth a look of its own."""
        async with self._looking.setdefault(node, asyncio.Lock()):
            seen = self._listings.get(node)
            if seen is None or self._clock.monotonic() - seen.at > LISTING_S_MAX:
                self.polls += 1
                params: Params = {"source": "active", "limit": LISTED_TASKS_MAX}
                try:
                    rows = lenient.rows(await self._api.call("GET", encode.path("nodes", node, "tasks"), params))
                except ProxmoxError as error:
                    if isinstance(error, NoAnswer):
                        raise
                    rows = ()
                running = frozenset(lenient.text(each, "upid") for each in rows if _runs(each))
                seen = self._listings[node] = _Listing(running, self._clock.monotonic())
            return seen.running

    async def _end(self, upid: Upid, exit_status: str, took_s: float) -> TaskEnd:
        found = _WARNINGS.match(exit_status)
        tail = () if exit_status == "OK" else await self._log_tail(upid)
        return TaskEnd(
            upid=upid, exit_status=exit_status, warnings=int(found[1]) if found else 0, log_tail=tail, took_s=took_s
        )

    async def _log_tail(self, upid: Upid) -> tuple[str, ...]:
        """The last lines of its log; empty if it cannot be read, for the exit status says the most."""
        path = encode.path("nodes", upid.node, "tasks", upid.text, "log")
        try:
            answer = await self._api.answer("GET", path, {"limit": LOG_LINES_ASKED})
            if (total := lenient.integer(answer, "total")) > LOG_LINES_ASKED:
                start = total - LOG_LINES_MAX
                answer = await self._api.answer("GET", path, {"start": start, "limit": LOG_LINES_MAX})
        except ProxmoxError:
            return ()
        lines = [plain(lenient.text(each, "t")) for each in lenient.rows(answer["data"])]
        return tuple(line for line in lines if line)[-LOG_LINES_MAX:]


def _runs(task: Mapping[str, object]) -> bool:
    """A running task has no end; some versions give it a status that says so."""
    return not task.get("endtime") and lenient.text(task, "status", "RUNNING").lower() in ("", "running")
