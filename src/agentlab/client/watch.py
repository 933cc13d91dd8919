"""Following a job or a sandbox to its end, across cuts and restarts of the daemon."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from agentlab.base.clock import pause
from agentlab.client.sync import Connection
from agentlab.errors import DaemonNotRunning, Draining

RECONNECT_S_MAX = 60.0
RECONNECT_PAUSE_S = 0.5
SETTLE_LOOK_S = 0.25

Kind = Literal["state", "step", "output", "end", "cut"]


class News(NamedTuple):
    """Something that happened: a job's row, a step, bytes of output, the row at the end, or why we were cut off."""

    kind: Kind
    value: Any


class JobFollower:
    """Yields a job's news.  `news` may be called again after an interruption: nothing is lost or told twice."""

    def __init__(self, connection: Connection, job: str, offset: int = 0) -> None:
        self.job, self.offset = job, offset
        self._connection = connection
        self._state: Any = None
        self._steps: dict[tuple[str, ...], Any] = {}

    def news(self) -> Iterator[News]:
        """Until the job has ended.  Raises DaemonNotRunning if the daemon stays away for RECONNECT_S_MAX."""
        away_s = 0.0
        while True:
            cause = "the daemon ended the stream"
            try:
                for event in self._connection.stream("jobs.follow", job=self.job, last_id=str(self.offset)):
                    away_s = 0.0
                    yield from self._news(event.kind, event.value())
                    if event.kind == "end":
                        return
            except (OSError, DaemonNotRunning, Draining) as error:
                if away_s >= RECONNECT_S_MAX:
                    raise
                cause = str(error)
            if away_s == 0.0:
                yield News("cut", cause)
            pause(RECONNECT_PAUSE_S)
            away_s += RECONNECT_PAUSE_S

    def _news(self, kind: str, value: Any) -> Iterator[News]:
        if kind == "output":
            data = base64.b64decode(value["data_b64"])
            skip = self.offset - value["offset"]
            self.offset = value["offset"] + len(data)
            yield News("output", data[max(0, skip) :])
        elif kind == "step":
            place = (value["subject"], value["operation"], value["step"], value["started_at"])
            if self._steps.get(place) != value:
                self._steps[place] = value
                yield News("step", value)
        elif kind == "state" and value != self._state:
            self._state = value
            yield News("state", value)
        elif kind == "end":
            yield News("end", value)


def settle(connection: Connection, sandbox: str, wait_s: float = 600.0, *, known: Iterable[Any] = ()) -> Iterator[News]:
    """Yield a sandbox's steps as they happen and, last, its row as `end` once nothing is under way.

    After `wait_s` the row is yielded as it is then.  Steps in `known` are not told again.
    """
    told = {_place(step): step for step in known}
    waited_s = 0.0
    while True:
        row = connection.call("sandboxes.get", sandbox=sandbox, wait_s=SETTLE_LOOK_S)
        yield from _new_steps(connection, sandbox, told)
        waited_s += SETTLE_LOOK_S
        if settled(row) or waited_s >= wait_s:
            yield News("end", row)
            return


def settle_snapshot(
    connection: Connection, sandbox: str, name: str, wait_s: float = 600.0, *, known: Iterable[Any] = ()
) -> Iterator[News]:
    """The same for one snapshot: its row once it is not being taken or removed, or None once it is gone."""
    told = {_place(step): step for step in known}
    waited_s = 0.0
    while True:
        found = connection.call("sandboxes.snapshots", sandbox=sandbox, wait_s=SETTLE_LOOK_S)["items"]
        record = next((each for each in found if each["name"] == name), None)
        yield from _new_steps(connection, sandbox, told)
        waited_s += SETTLE_LOOK_S
        if record is None or record["state"] in ("ready", "failed") or waited_s >= wait_s:
            yield News("end", record)
            return


def _new_steps(connection: Connection, sandbox: str, told: dict[tuple[str, ...], Any]) -> Iterator[News]:
    for step in connection.call("sandboxes.steps", sandbox=sandbox)["items"]:
        if told.get(_place(step)) != step:
            told[_place(step)] = step
            yield News("step", step)


def _place(step: Any) -> tuple[str, ...]:
    return step["operation"], step["step"], step["started_at"]


REACHED = {"running": "ready", "stopped": "stopped", "paused": "paused", "destroyed": "destroyed"}


def settled(row: Any) -> bool:
    """Whether what is wished of a sandbox has been reached, or cannot be."""
    if row["state"] == "failed":
        return bool(row["wish"] != "destroyed")
    if row.get("restore_to") is not None and row["state"] != "destroyed":
        return False
    return bool(row["state"] in (REACHED[row["wish"]], "destroyed"))
