"""The runner as a pure state machine: fetch, prepare, run, collect, report.  Events in, commands out, no I/O, no clock.

The shell around it (`runner`) carries the commands out in order and answers with events.  `now` is monotonic seconds.
"""

from __future__ import annotations

from agentlab_guest.record import record, replaced
from agentlab_guest.report import Failure, Report, Skipped

LEFTOVER_GRACE_S = 1.0  # for what the agent left running, between TERM and KILL


@record
class Memory:
    """What must outlive this process: written to disk before the step that relies on it."""

    phase: str = ""
    base_commit: str | None = None
    agent_started: bool = False
    exit_status: int | None = None  # once the agent's end was seen
    ended: bool = False
    stop_reason: str | None = None


@record
class Harvest:
    """What collecting brought: the counts for the report, and why it is less than everything."""

    base_commit: str | None = None
    head_commit: str | None = None
    files_changed: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    skipped: tuple[Skipped, ...] = ()
    failure: Failure | None = None
    also: tuple[str, ...] = ()  # other branches that hold work and travel in the bundle


# Commands


@record
class Enter:
    """Tell the daemon that a phase begins."""

    phase: str
    detail: str


@record
class Remember:
    """Make this memory durable before going on."""

    memory: Memory


@record
class Fetch:
    """Get the repository; answer `Fetched` or `Failed`."""


@record
class Prepare:
    """Set up user, identity and task; answer `Prepared` or `Failed`."""


@record
class StartAgent:
    """Start the agent; answer `Started` or `Failed`."""


@record
class Terminate:
    """Ask the agent and everything that it started to end."""


@record
class Sweep:
    """Kill everything that the agent started, and answer `Swept` when nothing is left."""


@record
class Abort:
    """Give up the step that is under way in fetch or prepare; it still answers."""


@record
class Collect:
    """Bring back the work and the artifacts; answer `Collected` once every artifact is settled."""

    base_commit: str | None


@record
class SendReport:
    """Send this until it is acknowledged; answer `Acknowledged`."""

    report: Report


@record
class Exit:
    """Nothing is left to do."""


Command = Enter | Remember | Fetch | Prepare | StartAgent | Terminate | Sweep | Abort | Collect | SendReport | Exit


# Events


@record
class Fetched:
    """The work tree is there.  `base_commit` is None for an empty repository."""

    base_commit: str | None


@record
class Prepared:
    """The agent can start."""


@record
class Started:
    """The agent runs."""


@record
class Failed:
    """A step of ours failed."""

    failure: Failure


@record
class Ended:
    """The agent's first process ended."""

    exit_status: int


@record
class Swept:
    """Nothing that the agent started is left, or `left` processes resist even SIGKILL."""

    left: int = 0


@record
class Collected:
    """Everything that can be brought back is with the daemon."""

    harvest: Harvest


@record
class StopAsked:
    """The daemon wants the job to end: cancelled or timed_out."""

    reason: str


@record
class Tick:
    """Time has passed."""


@record
class Acknowledged:
    """The daemon has the report."""


Happening = Fetched | Prepared | Started | Failed | Ended | Swept | Collected | StopAsked | Tick | Acknowledged


class Machine:
    """One job.  `wake_at` says when the next Tick is due."""

    def __init__(self, *, mode: str, timeout_s: float, stop_grace_s: float, former: Memory | None) -> None:
        self.memory = former or Memory()
        self.wake_at: float | None = None
        self._mode, self._timeout_s, self._stop_grace_s = mode, timeout_s, stop_grace_s
        self._known = former is not None
        self._lost = False
        self._terminated = self._sweeping = False
        self._failure: Failure | None = None
        self._left = 0
        self._started_at: float | None = None
        self._ran_s: float | None = None

    @property
    def phase(self) -> str:
        """fetch, prepare, run, collect or report."""
        return self.memory.phase

    def begin(self) -> list[Command]:
        """The first commands.  A job whose agent was started before is never run again: its work is collected."""
        memory = self.memory
        if self._mode == "run" and not memory.agent_started:
            return [*self._enter("fetch", "getting the repository"), Fetch()]
        self._lost = not memory.ended
        if self._known and not memory.agent_started:
            return self._report(Harvest(base_commit=memory.base_commit))
        self._sweeping = True
        detail = "the guest program was lost" if self._lost else "the guest program was restarted"
        return [*self._enter("collect", f"{detail}; saving the work"), Sweep()]

    def begin_with(self, report: Report) -> list[Command]:
        """The first commands when a former guest has already written the report."""
        return [*self._enter("report", f"{report.outcome}: {report.summary}"), SendReport(report=report)]

    def take(self, event: Happening, now: float) -> list[Command]:
        """What follows from `event`.  One that no longer matters changes nothing."""
        match event:
            case StopAsked(reason=reason):
                return self._stop(reason, now)
            case Tick():
                return self._tick(now)
            case Failed(failure=failure):
                if self.memory.stop_reason is None:  # else it failed because it was given up
                    self._failure = failure
                return self._report(Harvest(base_commit=self.memory.base_commit))
            case Fetched(base_commit=base) if self.phase == "fetch":
                self._recall(base_commit=base)
                return self._unless_stopped([*self._enter("prepare", "preparing the agent"), Prepare()])
            case Prepared() if self.phase == "prepare":
                self._recall(agent_started=True)
                return self._unless_stopped([*self._enter("run", "running the agent"), StartAgent()])
            case Started() if self.phase == "run":
                self._started_at, self.wake_at = now, now + self._timeout_s
                return []
            case Ended(exit_status=status) if self.phase == "run" and not self.memory.ended:
                return self._ended(status, now)
            case Swept(left=left) if self._sweeping:
                self._sweeping, self._left = False, left
                return [*self._enter("collect", "bringing back the work"), Collect(base_commit=self.memory.base_commit)]
            case Collected(harvest=harvest) if self.phase == "collect":
                return self._report(harvest)
            case Acknowledged() if self.phase == "report":
                return [Exit()]
        return []

    def _recall(self, **changes: object) -> None:
        self.memory = replaced(self.memory, **changes)

    def _enter(self, phase: str, detail: str) -> list[Command]:
        known, self.memory = self.memory.phase, replaced(self.memory, phase=phase)
        remember = Remember(memory=self.memory)
        return [remember] if known == phase else [remember, Enter(phase=phase, detail=detail)]

    def _unless_stopped(self, commands: list[Command]) -> list[Command]:
        if self.memory.stop_reason is None:
            return commands
        self._recall(agent_started=False, phase="fetch")
        return self._report(Harvest(base_commit=self.memory.base_commit))

    def _stop(self, reason: str, now: float) -> list[Command]:
        if self.memory.stop_reason is not None or self.memory.ended or self.phase in ("collect", "report"):
            return []
        self._recall(stop_reason=reason)
        remember = Remember(memory=self.memory)
        if self.phase != "run":
            return [remember, Abort()]
        self._terminated, self.wake_at = True, now + self._stop_grace_s
        return [remember, Terminate()]

    def _ended(self, status: int, now: float) -> list[Command]:
        self._recall(ended=True, exit_status=status)
        self._ran_s = now - (self._started_at or now)
        self.wake_at = now + LEFTOVER_GRACE_S
        remember = Remember(memory=self.memory)
        if self._terminated:  # whatever was going to end in the grace has had its TERM
            return [remember, *self._sweep()]
        return [remember, Terminate()]

    def _sweep(self) -> list[Command]:
        if self._sweeping:
            return []
        self._sweeping, self.wake_at = True, None
        return [Sweep()]

    def _tick(self, now: float) -> list[Command]:
        if self.wake_at is None or now < self.wake_at or self.phase != "run":
            return []
        if self._terminated or self.memory.ended:
            return self._sweep()
        return self._stop("timed_out", now)

    def quiet(self) -> list[Command]:
        """Nothing that the agent started is left although it was not killed: no need to wait for the grace."""
        return self._sweep() if self.phase == "run" and self.memory.ended else []

    def _report(self, harvest: Harvest) -> list[Command]:
        self.wake_at = None
        report = self._compose(harvest)
        return [*self._enter("report", f"{report.outcome}: {report.summary}"), SendReport(report=report)]

    def _compose(self, harvest: Harvest) -> Report:
        memory, failure = self.memory, self._failure or harvest.failure
        if memory.stop_reason is not None:
            outcome = memory.stop_reason
        elif self._lost:
            outcome = "lost"
        elif failure is not None or memory.exit_status != 0:
            outcome = "failed"
        else:
            outcome = "succeeded"
        return Report(
            outcome=outcome,
            exit_status=memory.exit_status,
            summary=self._summary(harvest, failure),
            base_commit=harvest.base_commit,
            head_commit=harvest.head_commit,
            files_changed=harvest.files_changed,
            lines_added=harvest.lines_added,
            lines_removed=harvest.lines_removed,
            skipped=harvest.skipped,
            failure=failure if outcome in ("failed", "lost") or harvest.failure is not None else None,
        )

    def _summary(self, harvest: Harvest, failure: Failure | None) -> str:
        memory = self.memory
        ran = "" if self._ran_s is None else f" after {self._ran_s:.0f} s"
        if memory.ended:
            parts = [f"the agent ended with status {memory.exit_status}{ran}"]
        elif memory.agent_started and self._lost:
            parts = ["the guest program was lost while the agent ran"]
        elif memory.agent_started and failure is None:
            parts = [f"the agent was killed{ran}"]
        else:
            parts = ["the agent did not start"]
        if failure is not None:
            parts.append(f"{failure.phase} failed: {failure.cause}")
        if harvest.head_commit is not None and harvest.head_commit != harvest.base_commit:
            changed = f"{harvest.files_changed} files changed, +{harvest.lines_added} -{harvest.lines_removed}"
            parts.append(changed.replace("1 files", "1 file", 1) if harvest.files_changed == 1 else changed)
        elif memory.agent_started and failure is None:
            parts.append("no changes")
        if harvest.also:
            parts.append(f"other branches with work: {', '.join(harvest.also)}")
        if self._left:
            parts.append(f"{self._left} processes could not be ended")
        return "; ".join(parts)[:1000]
