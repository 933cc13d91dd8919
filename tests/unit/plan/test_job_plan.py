"""What a job needs next."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.plan.test_sandbox_plan import ROW

from agentlab.model.failure import Failure
from agentlab.model.ids import JobId
from agentlab.model.job import Job, RepoSource
from agentlab.model.lease import Lease
from agentlab.model.machine import JobState as J
from agentlab.model.machine import SandboxState as S
from agentlab.model.sandbox import Wish
from agentlab.plan import jobs as plan
from agentlab.plan.jobs import JobLimits, LinkSeen, next_step

LIMITS = JobLimits(link_lost_s=30, harvest_s_max=100, launches_s_max=300, rescues_max=2)
SILENT = LinkSeen(connected=False, silent_s=0, grant_open=False, bootstrapped=False)
LOST = LinkSeen(connected=False, silent_s=31, grant_open=False, bootstrapped=True)
TALKING = LinkSeen(connected=True, silent_s=0, grant_open=False, bootstrapped=True)
QUEUED = Job(
    id=JobId("job-22222222"),
    owner="uid:0",
    state=J.QUEUED,
    profile="p",
    agent="shell",
    task="true",
    repo=RepoSource(),
    env_names=(),
    artifact_globs=(),
    timeout_s=60,
    ttl_s=3600,
    keepalive=False,
    queued_at=0.0,
)
STARTING = replace(QUEUED, state=J.STARTING, started_at=1.0)
RUNNING = replace(STARTING, state=J.RUNNING, running_at=2.0, sandbox=ROW.id)
READY = replace(ROW, state=S.READY, lease=Lease(until=10_000.0))


def test_a_claimed_job_asks_for_a_sandbox_and_launches_a_guest_once_it_is_ready() -> None:
    assert next_step(STARTING, None, SILENT, 2, LIMITS) == plan.AskSandbox()
    started = replace(STARTING, sandbox=ROW.id)
    assert next_step(started, replace(READY, state=S.PROVISIONING), SILENT, 2, LIMITS) is None
    assert next_step(started, READY, SILENT, 2, LIMITS) == plan.Launch(rescue=False)
    assert next_step(started, READY, replace(SILENT, grant_open=True), 2, LIMITS) is None


def test_the_agent_is_never_launched_twice_only_rescued() -> None:
    step = next_step(RUNNING, READY, LOST, 50, LIMITS)

    assert isinstance(step, plan.Launch)
    assert step.rescue


def test_a_guest_that_stays_lost_after_its_rescues_ends_the_job_as_lost() -> None:
    step = next_step(replace(RUNNING, rescues=2), READY, LOST, 50, LIMITS)

    assert isinstance(step, plan.End)
    assert step.state is J.LOST


def test_silence_of_a_paused_sandbox_means_nothing() -> None:
    paused = replace(READY, state=S.PAUSED, wish=Wish.PAUSED)

    assert next_step(RUNNING, paused, LOST, 50, LIMITS) is None


def test_a_stopped_sandbox_with_work_in_it_is_woken_for_the_rescue() -> None:
    assert next_step(RUNNING, replace(READY, state=S.STOPPED), LOST, 50, LIMITS) == plan.WakeSandbox()


def test_a_sandbox_that_cannot_start_again_ends_the_job_as_lost() -> None:
    failure = Failure(code="x", step="arm", cause="no disk", remedy="r", at=1.0)

    step = next_step(RUNNING, replace(READY, state=S.STOPPED, failure=failure), LOST, 50, LIMITS)

    assert isinstance(step, plan.End)
    assert step.state is J.LOST
    assert "no disk" in step.cause


def test_an_overdue_job_is_told_to_stop_and_abandoned_after_the_named_limit() -> None:
    assert next_step(RUNNING, READY, TALKING, 2 + 60 + 16, LIMITS) == plan.AskStop(reason="timed_out")
    told = replace(RUNNING, stop_reason="timed_out", stop_at=80.0)
    assert next_step(told, READY, TALKING, 100, LIMITS) is None
    step = next_step(told, READY, TALKING, 181, LIMITS)
    assert isinstance(step, plan.End)
    assert step.state is J.TIMED_OUT
    assert step.abandoned == "harvest_s_max"


def test_a_job_whose_sandbox_is_to_be_destroyed_is_cancelled_with_its_harvest() -> None:
    assert next_step(RUNNING, replace(READY, wish=Wish.DESTROYED), TALKING, 5, LIMITS) == plan.AskStop(
        reason="cancelled"
    )


def test_a_job_whose_lease_ends_is_stopped_in_time() -> None:
    assert next_step(RUNNING, replace(READY, lease=Lease(until=5.0)), TALKING, 5, LIMITS) == plan.AskStop(
        reason="timed_out"
    )


def test_a_failed_sandbox_fails_the_job_with_the_same_cause() -> None:
    failure = Failure(code="x", step="policy", cause="nft is missing", remedy="install it", at=1.0)
    failed = replace(ROW, state=S.FAILED, failure=failure)

    step = next_step(replace(STARTING, sandbox=ROW.id), failed, SILENT, 2, LIMITS)

    assert step == plan.End(state=J.FAILED, step="policy", cause="nft is missing", remedy="install it")


def test_a_guest_that_never_calls_home_fails_the_job_after_the_named_limit() -> None:
    step = next_step(replace(STARTING, sandbox=ROW.id), READY, SILENT, 302, LIMITS)

    assert isinstance(step, plan.End)
    assert step.state is J.FAILED
    assert step.step == "connected"


def test_the_sandbox_of_an_ended_job_is_released_unless_it_is_kept() -> None:
    ended = replace(RUNNING, state=J.SUCCEEDED)

    assert next_step(ended, READY, TALKING, 5, LIMITS) == plan.ReleaseSandbox()
    assert next_step(replace(ended, keepalive=True), READY, TALKING, 5, LIMITS) is None
    assert next_step(ended, replace(READY, wish=Wish.DESTROYED), TALKING, 5, LIMITS) is None


def test_a_cancel_before_the_agent_started_ends_at_once() -> None:
    step = next_step(replace(STARTING, stop_reason="cancelled", stop_at=2.0), None, SILENT, 3, LIMITS)

    assert isinstance(step, plan.End)
    assert step.state is J.CANCELLED
