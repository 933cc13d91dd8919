"""Waiting for tasks, on virtual time, with a cluster's tasks that are played."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import pytest

from agentlab.backends.interface import BackendError, Refused, Unavailable
from agentlab.backends.proxmox.answers import NoAnswer, ProxmoxError
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.failures import Kind
from agentlab.backends.proxmox.tasks import LISTING_FROM, Tasks, Upid
from agentlab.testing.simloop import SimClock, SimLoop

T = TypeVar("T")


def upid(number: int = 1, node: str = "pve1") -> Upid:
    return Upid.parse(f"UPID:{node}:{number:08X}:0008EE52:6B049950:qmclone:9001:agentlab@pve!daemon:")


class PlayedTasks:
    """Tasks that end at given times; answers as the cluster does."""

    def __init__(self, loop: SimLoop, ends: Mapping[str, tuple[float, str]], log: tuple[str, ...] = ()) -> None:
        self._loop, self._ends, self._log = loop, ends, log
        self.asked: list[tuple[float, str]] = []
        self.trouble: ProxmoxError | None = None
        self.listed = True

    async def call(self, method: str, path: str, params: Params | None = None) -> object:
        return (await self.answer(method, path, params))["data"]

    async def answer(self, method: str, path: str, params: Params | None = None) -> Mapping[str, object]:
        assert method == "GET"
        self.asked.append((round(self._loop.time(), 3), path))
        await asyncio.sleep(0.015)
        if self.trouble is not None:
            raise self.trouble
        parts = [unquote(each) for each in path.split("/")[1:]]
        if len(parts) == 3:
            return {"data": self._listing(parts[1])}
        if parts[4] == "log":
            start, limit = int((params or {}).get("start") or 0), int((params or {})["limit"])  # type: ignore[call-overload, arg-type]
            lines = [{"n": n + 1, "t": line} for n, line in enumerate(self._log)][start : start + limit]
            return {"data": lines, "total": len(self._log)}
        at, status = self._ends[parts[3]]
        if self._loop.time() < at:
            return {"data": {"status": "running"}}
        return {"data": {"status": "stopped", "exitstatus": status}}

    def _listing(self, node: str) -> list[dict[str, object]]:
        if not self.listed:
            raise ProxmoxError(status=403, reason="Permission check failed", method="GET", path="/x")
        return [
            {"upid": text, "node": node, **({} if self._loop.time() < at else {"endtime": 1, "status": status})}
            for text, (at, status) in self._ends.items()
            if f":{node}:" in text
        ]

    def times(self, ending: str) -> list[float]:
        return [at for at, path in self.asked if path.endswith(ending)]


def played(
    work: Callable[[Tasks, PlayedTasks], Coroutine[Any, Any, T]],
    ends: Mapping[Upid, tuple[float, str]],
    log: tuple[str, ...] = (),
) -> tuple[T, PlayedTasks, Tasks]:
    loop = SimLoop()
    try:
        world = PlayedTasks(loop, {each.text: end for each, end in ends.items()}, log)
        tasks = Tasks(world, SimClock(loop))
        return loop.run_until_complete(work(tasks, world)), world, tasks
    finally:
        loop.close()


def test_a_upid_tells_its_node_its_type_and_what_it_works_on() -> None:
    found = Upid.parse("UPID:pve1:000001CF:000997C2:6B049B02:qmclone:9000:lp@pve!t1:")

    assert (found.node, found.type, found.id, found.user) == ("pve1", "qmclone", "9000", "lp@pve!t1")
    assert found.started_at == 0x6B049B02


@pytest.mark.parametrize(
    "text", ["UPID:bad", "", None, 7, "UPID:pve1:000001CF:000997C2:6B049B02:qmclone:9000:lp@pve!t1"]
)
def test_what_is_no_upid_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not the name of a task"):
        Upid.parse(text)


def test_a_short_task_is_noticed_soon_and_its_log_is_not_asked_for() -> None:
    end, world, _ = played(lambda tasks, _: tasks.wait(upid(), 60), {upid(): (0.1, "OK")})

    assert end.ok
    assert (end.warnings, end.log_tail, end.kind) == (0, (), None)
    assert 0.05 <= world.times("/status")[0] <= 0.1
    assert end.took_s < 0.25
    assert world.times("/log") == []


def test_a_long_task_is_asked_for_at_most_once_a_second() -> None:
    end, world, _ = played(lambda tasks, _: tasks.wait(upid(), 600), {upid(): (120.0, "OK")})

    times = world.times("/status")
    assert end.ok
    assert end.took_s < 121.1
    assert max(sum(1 for other in times if at <= other < at + 1) for at in times if at > 8) == 1


@pytest.mark.parametrize("took_s", [0.13, 0.29, 1.6, 2.2, 5.0])
def test_an_end_is_noticed_within_a_sixth_of_the_tasks_time(took_s: float) -> None:
    end, world, _ = played(lambda tasks, _: tasks.wait(upid(), 60), {upid(): (took_s, "OK")})

    assert end.took_s - took_s < 0.1 + took_s / 6
    assert len(world.asked) < 30


def test_warnings_are_success_with_a_note() -> None:
    log = ("removing disk", "WARN: something was left", "TASK WARNINGS: 2")
    end, _, _ = played(lambda tasks, _: tasks.wait(upid(), 60), {upid(): (0.1, "WARNINGS: 2")}, log)

    assert end.ok
    assert (end.warnings, end.log_tail) == (2, log)


def test_a_failed_task_keeps_its_words_and_the_tail_of_its_log() -> None:
    log = (*tuple(f"line {n}" for n in range(200)), "TASK ERROR: unexpected status")
    end, _, _ = played(lambda tasks, _: tasks.wait(upid(), 60), {upid(): (0.1, "unexpected status")}, log)

    assert not end.ok
    assert end.kind is Kind.WORKER_DIED
    assert end.log_tail[-2:] == ("line 199", "TASK ERROR: unexpected status")
    assert isinstance(end.failure("cloning"), Unavailable)


def test_a_failed_task_is_raised_as_what_it_means_by_whoever_wants_it_done() -> None:
    text = "403 Permission check failed (/storage/local, Datastore.AllocateSpace)"
    with pytest.raises(Refused, match="resizing: the task ended with: 403 Permission"):
        played(lambda tasks, _: tasks.done(upid(), 60, "resizing"), {upid(): (0.1, text)})


def test_after_the_limit_the_task_goes_on_and_that_is_said() -> None:
    with pytest.raises(Unavailable, match="has not ended within 5 s; it goes on on pve1") as caught:
        played(lambda tasks, _: tasks.wait(upid(), 5), {upid(): (100.0, "OK")})

    assert "pvenode task log UPID:pve1:" in caught.value.remedy


def test_a_node_that_is_away_for_a_while_is_asked_again() -> None:
    async def work(tasks: Tasks, world: PlayedTasks) -> float:
        world.trouble = NoAnswer(reason="gone", method="GET", path="/x", sent=True)
        asyncio.get_running_loop().call_later(7.0, setattr, world, "trouble", None)
        return (await tasks.wait(upid(), 60)).took_s

    took_s, _, _ = played(work, {upid(): (1.0, "OK")})

    assert 7.0 < took_s < 8.2


def test_a_node_that_stays_away_is_the_reason_when_the_limit_is_over() -> None:
    async def work(tasks: Tasks, world: PlayedTasks) -> None:
        world.trouble = NoAnswer(reason="cannot connect", method="GET", path="/x", sent=False)
        await tasks.wait(upid(), 5)

    with pytest.raises(Unavailable, match="asking for it: cannot connect"):
        played(work, {upid(): (1.0, "OK")})


def test_a_task_that_is_not_known_is_an_error_at_once() -> None:
    async def work(tasks: Tasks, world: PlayedTasks) -> None:
        world.trouble = ProxmoxError(
            status=400,
            reason="Parameter verification failed.",
            method="GET",
            path="/x",
            errors={"upid": "no such task"},
        )
        await tasks.wait(upid(), 600)

    with pytest.raises(BackendError, match="no such task"):
        played(work, {upid(): (1.0, "OK")})


def test_many_tasks_of_one_node_share_their_looks() -> None:
    many = {upid(n): (20.0 + n * 0.1, "OK") for n in range(40)}

    async def work(tasks: Tasks, _: PlayedTasks) -> list[bool]:
        return [end.ok for end in await asyncio.gather(*(tasks.wait(each, 60) for each in many))]

    ends, world, tasks = played(work, many)

    assert all(ends)
    assert len(world.times("/status")) <= len(many) + LISTING_FROM * 8
    assert tasks.polls <= len(many) + 25 / 0.2 + LISTING_FROM * 8  # each of them alone would have made 28 calls


def test_where_the_list_is_not_to_be_had_each_task_is_asked_for() -> None:
    many = {upid(n): (3.0, "OK") for n in range(5)}

    async def work(tasks: Tasks, world: PlayedTasks) -> list[bool]:
        world.listed = False
        return [end.ok for end in await asyncio.gather(*(tasks.wait(each, 60) for each in many))]

    ends, _, _ = played(work, many)

    assert all(ends)


def test_the_node_that_is_asked_is_the_one_of_the_upid() -> None:
    there = upid(3, node="pve2")
    _, world, _ = played(lambda tasks, _: tasks.wait(there, 60), {there: (0.1, "OK")})

    assert world.asked[0][1].startswith("/nodes/pve2/tasks/UPID:pve2:")
    assert "agentlab@pve%21daemon:/status" in world.asked[0][1]


def test_cancelling_asks_no_more() -> None:
    async def work(tasks: Tasks, world: PlayedTasks) -> int:
        waiting = asyncio.ensure_future(tasks.wait(upid(), 600))
        await asyncio.sleep(10)
        waiting.cancel()
        await asyncio.wait([waiting])
        asked = len(world.asked)
        await asyncio.sleep(60)
        return len(world.asked) - asked

    assert played(work, {upid(): (100.0, "OK")})[0] == 0
