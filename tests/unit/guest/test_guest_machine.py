"""The runner's state machine: from any order of events the job ends with a report, and never runs its agent twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab_guest import machine as m
from agentlab_guest.report import Failure

FAILURE = Failure(phase="fetch", cause="c", remedy="r")
HARVEST = m.Harvest(base_commit="b", head_commit="h", files_changed=1, lines_added=2)


def machine(mode: str = "run", former: m.Memory | None = None) -> m.Machine:
    return m.Machine(mode=mode, timeout_s=100, stop_grace_s=10, former=former)


def drive(made: m.Machine, *events: tuple[float, m.Happening]) -> list[m.Command]:
    commands = made.begin()
    for now, event in events:
        commands += made.take(event, now)
    return commands


def kinds(commands: list[m.Command]) -> list[type]:
    return [type(each) for each in commands if not isinstance(each, m.Remember | m.Enter)]


def report(commands: list[m.Command]) -> Any:
    return next(each.report for each in commands if isinstance(each, m.SendReport))


RUNNING: tuple[tuple[float, m.Happening], ...] = (
    (1, m.Fetched(base_commit="b")),
    (2, m.Prepared()),
    (3, m.Started()),
)


def test_a_job_goes_through_its_phases_in_order() -> None:
    commands = drive(
        machine(),
        *RUNNING,
        *((9, m.Ended(exit_status=0)), (10, m.Tick()), (11, m.Swept()), (12, m.Collected(harvest=HARVEST))),
        (13, m.Acknowledged()),
    )

    assert kinds(commands) == [
        *(m.Fetch, m.Prepare, m.StartAgent, m.Terminate, m.Sweep, m.Collect, m.SendReport, m.Exit)
    ]
    assert report(commands).outcome == "succeeded"
    assert report(commands).summary == "the agent ended with status 0 after 6 s; 1 file changed, +2 -0"


def test_it_is_remembered_that_the_agent_started_before_it_is_started() -> None:
    commands = drive(machine(), *RUNNING[:2])

    before = commands[: [type(each) for each in commands].index(m.StartAgent)]
    assert any(isinstance(each, m.Remember) and each.memory.agent_started for each in before)


def test_the_time_limit_asks_then_kills_after_the_grace() -> None:
    made = machine()
    drive(made, *RUNNING)

    assert made.take(m.Tick(), 102.9) == []
    assert kinds(made.take(m.Tick(), 103)) == [m.Terminate]
    assert made.take(m.Tick(), 112.9) == []
    assert kinds(made.take(m.Tick(), 113)) == [m.Sweep]


def test_a_stop_before_the_agent_runs_ends_without_running_it() -> None:
    commands = drive(machine(), (1, m.StopAsked(reason="cancelled")), (2, m.Fetched(base_commit="b")))

    assert kinds(commands) == [m.Fetch, m.Abort, m.SendReport]
    assert (report(commands).outcome, report(commands).failure) == ("cancelled", None)


def test_a_stop_after_the_agents_end_does_not_change_the_outcome() -> None:
    commands = drive(
        machine(), *RUNNING, (4, m.Ended(exit_status=0)), (4.5, m.StopAsked(reason="cancelled")), (6, m.Tick()),
        (7, m.Swept()), (8, m.Collected(harvest=HARVEST)),
    )  # fmt: skip

    assert report(commands).outcome == "succeeded"


@pytest.mark.parametrize("mode", ["run", "collect"])
def test_a_started_agent_is_never_run_again(mode: str) -> None:
    made = machine(mode, m.Memory(phase="run", base_commit="b", agent_started=True))

    commands = drive(made, (1, m.Swept()), (2, m.Collected(harvest=HARVEST)))

    assert kinds(commands) == [m.Sweep, m.Collect, m.SendReport]
    assert report(commands).outcome == "lost"


def test_a_rescue_tells_the_agents_end_if_it_was_seen() -> None:
    former = m.Memory(phase="collect", base_commit="b", agent_started=True, ended=True, exit_status=0)

    commands = drive(machine("collect", former), (1, m.Swept()), (2, m.Collected(harvest=HARVEST)))

    assert report(commands).outcome == "succeeded"


def test_a_rescue_of_a_job_that_never_ran_collects_nothing() -> None:
    commands = drive(machine("collect", m.Memory(phase="fetch")))

    assert kinds(commands) == [m.SendReport]
    assert report(commands).outcome == "lost"


def test_a_failed_collection_is_no_success() -> None:
    lost = m.Harvest(base_commit="b", failure=FAILURE)

    commands = drive(
        machine(), *RUNNING, (4, m.Ended(exit_status=0)), (6, m.Tick()), (7, m.Swept()), (8, m.Collected(harvest=lost))
    )

    assert (report(commands).outcome, report(commands).failure) == ("failed", FAILURE)


events = st.sampled_from(
    [
        *(m.Fetched(base_commit="b"), m.Prepared(), m.Started(), m.Failed(failure=FAILURE), m.Ended(exit_status=1)),
        *(m.Swept(), m.Collected(harvest=HARVEST), m.StopAsked(reason="cancelled"), m.Tick(), m.Acknowledged()),
    ]
)


@given(st.sampled_from(["run", "collect"]), st.lists(events, max_size=30))
def test_no_order_of_events_breaks_it_or_starts_the_agent_twice(mode: str, happened: list[m.Happening]) -> None:
    made = machine(mode)
    commands = drive(made, *((float(n * 40), event) for n, event in enumerate(happened)))

    assert kinds(commands).count(m.StartAgent) <= (mode == "run")
    assert kinds(commands).count(m.Exit) <= 1 + sum(isinstance(each, m.Acknowledged) for each in happened)
