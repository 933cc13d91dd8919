"""Pure: what one job needs next, from its row, its sandbox and its guest link."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.model.job import Job
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import JobState as J
from agentlab.model.machine import SandboxState as S
from agentlab.model.sandbox import Sandbox, Wish

STOP_SLACK_S = 15.0  # the guest enforces its own time limit; the daemon steps in this much later


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSeen:
    """The guest link of one job, as this daemon sees it."""

    connected: bool
    silent_s: float  # since the guest was last heard, or since this daemon started, whichever is later
    grant_open: bool  # a grant is out that can still be redeemed
    bootstrapped: bool  # a guest has accepted the job: it must never be started a second time


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """Named limits that decide when waiting ends."""

    link_lost_s: float = 30.0
    harvest_s_max: float = 900.0
    launches_s_max: float = 300.0  # from the start of the job to a connected guest, sandbox included
    rescues_max: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSandbox:
    """Record the desire for a sandbox of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeSandbox:
    """Its sandbox is stopped or paused, and the work in it is still to be brought back: want it running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start the guest program with a fresh grant; `rescue` collects only."""

    rescue: bool
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStop:
    """Tell the guest to stop the agent and collect."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Write the final state."""

    state: J
    step: str
    cause: str
    remedy: str
    abandoned: str = ""  # the name of the limit that ended the wait for work, if that is why
    limit_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSandbox:
    """The job is over: its sandbox is no longer needed."""


JobStep = AskSandbox | WakeSandbox | Launch | AskStop | End | ReleaseSandbox

LOGS = "See `agentlab job logs {job}` and `agentlab job show {job}`."


def next_step(job: Job, sandbox: Sandbox | None, link: LinkSeen, now: float, limits: JobLimits) -> JobStep | None:
    """The one step that this job needs now; None while it can only wait."""
    if job.state in JOB_FINAL:
        wanted = sandbox is not None and not job.keepalive and sandbox.wish is not Wish.DESTROYED
        return ReleaseSandbox() if wanted else None
    if job.state is J.QUEUED:
        return None
    if link.bootstrapped:
        return _once_running(job, sandbox, link, now, limits)
    return _before_running(job, sandbox, link, now, limits)


def _before_running(job: Job, sandbox: Sandbox | None, link: LinkSeen, now: float, limits: JobLimits) -> JobStep | None:
    assert job.started_at is not None
    if job.stop_reason is not None:
        return _stopped_early(job)
    if sandbox is None:
        return AskSandbox() if job.sandbox is None else _lost(job, "sandbox", "its sandbox is gone")
    if sandbox.state is S.FAILED:
        failure = sandbox.failure
        assert failure is not None
        return End(state=J.FAILED, step=failure.step, cause=failure.cause, remedy=failure.remedy)
    if sandbox.state in (S.DESTROYING, S.DESTROYED) or sandbox.wish is Wish.DESTROYED:
        return End(
            state=J.CANCELLED,
            step="sandbox",
            cause=f"its sandbox was destroyed before the agent started ({sandbox.ended_reason or 'asked for'})",
            remedy="Run the job again.",
        )
    if sandbox.state in (S.STOPPED, S.PAUSED):
        return WakeSandbox()
    if now - job.started_at > limits.launches_s_max:
        waits = "the guest program to call home" if sandbox.state is S.READY else f"sandbox to leave {sandbox.state}"
        return End(
            state=J.FAILED,
            step="connected",
            cause=f"waited {limits.launches_s_max:.0f} s for {waits}",
            remedy=f"See `agentlab sandbox show {sandbox.id}` and `agentlab sandbox logs {sandbox.id}`.",
        )
    if sandbox.state is S.READY and not link.connected and not link.grant_open:
        return Launch(rescue=False)
    return None


def _once_running(job: Job, sandbox: Sandbox | None, link: LinkSeen, now: float, limits: JobLimits) -> JobStep | None:
    if sandbox is None or sandbox.state in (S.FAILED, S.DESTROYING, S.DESTROYED):
        cause = "its sandbox is gone"
        if sandbox is not None and sandbox.failure is not None:
            cause = f"its sandbox failed: {sandbox.failure.cause}"
        return _lost(job, "sandbox", cause)
    began = job.stop_at or job.collecting_at
    if began is not None and now - began > limits.harvest_s_max:
        return End(
            state=_stop_state(job, J.LOST),
            step="collect",
            cause=f"the work could not be brought back within {limits.harvest_s_max:.0f} s",
            remedy="Raise the setting harvest_s_max, or leave less in the work tree.  " + LOGS.format(job=job.id),
            abandoned="harvest_s_max",
            limit_s=limits.harvest_s_max,
        )
    if job.stop_reason is None and (reason := _reason_to_stop(job, sandbox, now)):
        return AskStop(reason=reason)
    if link.connected or link.grant_open:
        return None
    if sandbox.state is S.PAUSED and sandbox.wish is Wish.PAUSED and job.stop_reason is None:
        return None  # frozen on request: its silence means nothing
    if sandbox.state is S.STOPPED and sandbox.failure is not None:
        return _lost(job, "sandbox", f"its sandbox could not be started again: {sandbox.failure.cause}")
    if sandbox.state in (S.STOPPED, S.PAUSED):
        return WakeSandbox()
    if sandbox.state is S.READY and link.silent_s > limits.link_lost_s:
        if job.rescues >= limits.rescues_max:
            return _lost(job, "link", "the guest program was lost, and starting it again did not help")
        return Launch(rescue=True, cause=f"the guest program was silent for {link.silent_s:.0f} s")
    return None


def _reason_to_stop(job: Job, sandbox: Sandbox, now: float) -> str | None:
    if job.running_at is not None and job.collecting_at is None and now > job.running_at + job.timeout_s + STOP_SLACK_S:
        return "timed_out"
    if now >= sandbox.lease.until:
        return "timed_out"
    return "cancelled" if sandbox.wish is Wish.DESTROYED else None


def _stop_state(job: Job, otherwise: J) -> J:
    return {"cancelled": J.CANCELLED, "timed_out": J.TIMED_OUT}.get(job.stop_reason or "", otherwise)


def _stopped_early(job: Job) -> End:
    state = _stop_state(job, J.CANCELLED)
    return End(state=state, step="start", cause="stopped before the agent started", remedy="Run the job again.")


def _lost(job: Job, step: str, cause: str) -> End:
    return End(state=_stop_state(job, J.LOST), step=step, cause=cause, remedy=LOGS.format(job=job.id))
