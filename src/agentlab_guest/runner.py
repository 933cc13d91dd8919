"""The shell around the machine: one loop over the link, the agent's pipe and the clock; long steps run in a thread."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from agentlab_guest import machine as m
from agentlab_guest.bootstrap import Bootstrap, parse_bootstrap
from agentlab_guest.collect import printable
from agentlab_guest.globs import Offer
from agentlab_guest.link import Cargo, Link
from agentlab_guest.messages import ARTIFACT_OFFERS_OPEN_MAX, Message, ReportAck, Stop, Welcome
from agentlab_guest.output import AgentOutput
from agentlab_guest.processes import AgentProcess, Offspring, become_subreaper, exit_status, reap, start_agent
from agentlab_guest.record import record, replaced
from agentlab_guest.redact import Redactor
from agentlab_guest.report import SKIPPED_MAX, Failure, Report, Skipped, parse_report
from agentlab_guest.spool import EventSpool, OutputSpool
from agentlab_guest.state import RunDirectory, Session, StateDirectory
from agentlab_guest.steps import Gathered, Steps, bounded
from agentlab_guest.transfers import Download, Uploads

REAP_S = 1.0
SWEEP_S, SWEEP_S_MAX = 0.02, 10.0
FAREWELL_S_MAX = 0.5


@record
class Options:
    """Where things are.  `own`: what else belongs to the job: "", "pids" or "cgroup", see Offspring."""

    link: str
    run_dir: str
    state_dir: str
    own: str = ""


class Runner:
    """A guest program from its start to its end."""

    def __init__(self, options: Options, grant: str | None, session: Session | None) -> None:
        self._options = options
        self._run_dir, self._state = RunDirectory(options.run_dir), StateDirectory(options.state_dir)
        self._session = session
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._inbox: deque[m.Happening | Gathered | Offer] = deque()
        self._job: _Job | None = None
        self._done = False
        self._link = Link(
            options.link,
            self._selector,
            nonce=os.urandom(16).hex(),
            grant=grant,
            credential=None if session is None or grant is not None else session.credential,
            welcomed=self._welcomed,
            told=self._told,
        )
        if session is not None and grant is None:
            self._begin(parse_bootstrap(session.bootstrap))

    def run(self) -> int:
        """Go on until the report is acknowledged.  Raises LinkRefused, AnotherGuest and Malformed at the beginning."""
        self._link.pump(time.monotonic())
        while not self._done:
            self._turn()
        self._link.close()
        return 0

    def _turn(self) -> None:
        now = time.monotonic()
        deadlines = [self._link.deadline()]
        if self._job is not None:
            deadlines += self._job.deadlines(self._link.up)
        for key, mask in self._selector.select(max(0.0, min(deadlines) - now)):
            key.data(mask, time.monotonic())
        now = time.monotonic()
        while self._inbox:
            event = self._inbox.popleft()
            assert self._job is not None
            self._job.take(event, now)
        if self._job is not None:
            self._job.tick(now)
            self._done = self._job.done
        if not self._done:
            self._link.pump(now)

    def _post(self, event: m.Happening | Gathered | Offer) -> None:
        """From any thread."""
        self._inbox.append(event)
        os.eventfd_write(self._wake, 1)

    def _woken(self, mask: int, now: float) -> None:
        os.eventfd_read(self._wake)

    def _welcomed(self, welcome: Welcome) -> Cargo:
        if welcome.credential is not None and self._job is None:
            raw = bytes(welcome.data)
            bootstrap = parse_bootstrap(raw)
            former = self._run_dir.load()
            self._run_dir.save(Session(credential=welcome.credential, bootstrap=raw))
            self._begin(bootstrap, () if former is None else _former_secrets(former))
        elif welcome.credential is not None:  # a lost answer: the same grant was redeemed again
            self._run_dir.save(Session(credential=welcome.credential, bootstrap=bytes(welcome.data)))
        assert self._job is not None
        return self._job.cargo

    def _told(self, message: Message) -> None:
        if isinstance(message, Stop):
            self._post(m.StopAsked(reason=message.reason))
        elif isinstance(message, ReportAck):
            self._post(m.Acknowledged())

    def _begin(self, bootstrap: Bootstrap, former_secrets: tuple[str, ...] = ()) -> None:
        self._state.lock(evict=bootstrap.mode == "collect")
        become_subreaper()
        redactor = Redactor((*bootstrap.redact, *former_secrets))
        self._job = _Job(bootstrap, self._state, redactor, self._selector, self._post, self._options.own)
        self._job.begin()


class _Job:
    """The machine's commands carried out."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        state: StateDirectory,
        redactor: Redactor,
        selector: selectors.BaseSelector,
        post: Callable[[m.Happening | Gathered | Offer], None],
        own: str,
    ) -> None:
        self._bootstrap, self._state, self._redactor = bootstrap, state, redactor
        self._selector, self._post = selector, post
        self.done = False
        self._spool = OutputSpool(f"{state.path}/output")
        self._events = EventSpool(f"{state.path}/events")
        self._uploads = Uploads(self._settled)
        self.cargo = Cargo(self._spool, self._events, self._uploads, max(0.1, bootstrap.heartbeat_s))
        former = state.load(bootstrap.job)
        self._machine = m.Machine(
            mode=bootstrap.mode,
            timeout_s=bootstrap.timeout_s,
            stop_grace_s=bootstrap.stop_grace_s,
            former=former,
        )
        self._room = threading.Semaphore(ARTIFACT_OFFERS_OPEN_MAX)
        self._steps = Steps(bootstrap, state.path, redactor=redactor, post=self._post, offer=self._offer)
        self._offspring = Offspring(bootstrap.job, own=own if bootstrap.mode == "collect" else "")
        self._output = AgentOutput(self._spool, redactor)
        self._reading = False
        self._agent: AgentProcess | None = None
        self._pidfd = -1
        self._gathered: m.Harvest | None = None
        self._refused: list[Skipped] = []
        self._sweep_at: float | None = None
        self._sweep_until = self._reap_at = self._quiet_at = 0.0

    def begin(self) -> None:
        """The first commands."""
        self._state.reserve()
        raw = self._state.load_report()
        if raw is not None and self._machine.memory.phase == "report":
            self._carry_out(self._machine.begin_with(parse_report(raw)))
        else:
            self._carry_out(self._machine.begin())

    def deadlines(self, connected: bool) -> list[float]:
        """When `tick` has something to do."""
        self._watch_output(connected)
        found = [self._machine.wake_at, self._sweep_at, self._output.deadline()]
        if self._agent is not None:
            found.append(self._reap_at)
            if self._machine.memory.ended and self._sweep_at is None:
                found.append(self._quiet_at)
        return [each for each in found if each is not None]

    def take(self, event: m.Happening | Gathered | Offer, now: float) -> None:
        """An event from a step or from the link."""
        if isinstance(event, Offer):
            self._uploads.add(event)
        elif isinstance(event, Gathered):
            self._gathered = event.harvest
        else:
            self._carry_out(self._machine.take(event, now))
        self._finish_collecting(now)

    def tick(self, now: float) -> None:
        """What time alone brings."""
        self._output.tick(now)
        self._carry_out(self._machine.take(m.Tick(), now))
        if self._agent is not None:
            self._look_after_agent(now)
        if self._sweep_at is not None and now >= self._sweep_at:
            self._sweep(now)
        self._finish_collecting(now)

    def _carry_out(self, commands: list[m.Command]) -> None:
        for command in commands:
            match command:
                case m.Remember(memory=memory):
                    self._state.save(self._bootstrap.job, memory)
                    self.cargo.phase = memory.phase
                case m.Enter(phase=phase, detail=detail):
                    self._events.append(time.time(), phase, printable(self._redactor.text(detail), 1000))
                case m.Fetch():
                    self._fetch()
                case m.Prepare():
                    self._steps.prepare()
                case m.StartAgent():
                    self._start_agent()
                case m.Terminate():
                    self._offspring.signal(signal.SIGTERM)
                    self._offspring.signal(signal.SIGCONT)
                case m.Sweep():
                    self._sweep_at = time.monotonic()
                    self._sweep_until = self._sweep_at + SWEEP_S_MAX
                case m.Abort():
                    self._steps.abort()
                case m.Collect(base_commit=base):
                    self._state.release()
                    self._steps.collect(base)
                case m.SendReport(report=report):
                    self._send_report(report)
                case m.Exit():
                    self.done = True

    # Fetch

    def _fetch(self) -> None:
        digest = self._bootstrap.repo.bundle
        if digest is None:
            self._steps.fetch(None)
            return
        path = f"{self._state.path}/repo.bundle"

        def arrived(problem: str | None) -> None:
            if problem is None:
                self._steps.fetch(path)
                return
            remedy = "Run the job again; if it stays, check the disks of the daemon and of the sandbox."
            failure = Failure(phase="fetch", cause=f"the repository did not arrive: {problem}", remedy=remedy)
            self._post(m.Failed(failure=failure))

        self.cargo.download = Download(digest, path, arrived)

    # Run

    def _start_agent(self) -> None:
        account, launch = self._steps.account, self._steps.launch
        assert account is not None
        assert launch is not None
        writing = self._output.open()
        try:
            self._agent = start_agent(launch, account, writing)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            remedy = f"See that {launch.argv[0]!r} is installed in the template and that the task is not too long."
            cause = f"{launch.argv[0]!r} could not be started: {reason}"
            self._post(m.Failed(failure=Failure(phase="run", cause=cause, remedy=remedy)))
            return
        finally:
            os.close(writing)
        now = time.monotonic()
        self._reap_at = now + REAP_S
        try:
            self._pidfd = os.pidfd_open(self._agent.pid)
            self._selector.register(self._pidfd, selectors.EVENT_READ, self._agent_ended)
        except OSError:
            self._pidfd = -1  # forbidden in this sandbox: its end is seen when dead children are buried
        self._carry_out(self._machine.take(m.Started(), now))

    def _agent_ended(self, mask: int, now: float) -> None:
        assert self._agent is not None
        if self._pidfd >= 0:
            self._selector.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        status = self._agent.wait()
        self._quiet_at = now
        self._carry_out(self._machine.take(m.Ended(exit_status=exit_status(status)), now))

    def _look_after_agent(self, now: float) -> None:
        agent = self._agent
        assert agent is not None
        if now >= self._reap_at:
            self._reap_at = now + REAP_S
            if not self._machine.memory.ended and agent.poll() is not None:
                self._agent_ended(0, now)
            reap(agent.pid if agent.returncode is None else None)
        if self._machine.memory.ended and self._sweep_at is None and now >= self._quiet_at:
            self._quiet_at = now + 0.05
            if not self._offspring.find():
                self._carry_out(self._machine.quiet())

    def _sweep(self, now: float) -> None:
        found = self._offspring.kill()
        agent = self._agent
        if agent is not None and agent.returncode is None and agent.poll() is not None:
            self._agent_ended(0, now)
        reap(None if agent is None or agent.returncode is not None else agent.pid)
        if found and now < self._sweep_until:
            self._sweep_at = now + SWEEP_S
            return
        self._sweep_at = None
        self._stop_reading()
        self._output.finish()
        self._agent = None
        self._carry_out(self._machine.take(m.Swept(left=found), now))

    # Output

    def _watch_output(self, connected: bool) -> None:
        wanted = self._output.descriptor >= 0 and self._agent is not None and self._output.wanted(connected)
        if wanted and not self._reading:
            self._selector.register(self._output.descriptor, selectors.EVENT_READ, self._readable)
            self._reading = True
        elif not wanted:
            self._stop_reading()

    def _readable(self, mask: int, now: float) -> None:
        if not self._output.read(now):
            self._stop_reading()
            self._output.finish()

    def _stop_reading(self) -> None:
        if self._reading:
            self._selector.unregister(self._output.descriptor)
            self._reading = False

    # Collect and report

    def _offer(self, offer: Offer) -> None:
        """In the thread of the step: wait for room, hand over."""
        self._room.acquire()
        self._post(offer)

    def _settled(self, name: str, reason: str | None) -> None:
        self._room.release()
        if reason is not None:
            self._refused.append(Skipped(name=name, reason=printable(reason)))

    def _finish_collecting(self, now: float) -> None:
        harvest = self._gathered
        if harvest is None or not self._uploads.idle:
            return
        self._gathered = None
        skipped = bounded([*harvest.skipped, *self._refused], SKIPPED_MAX, self._redactor)
        for each in self._refused:
            if each.name == "result.bundle" and harvest.failure is None:
                remedy = "Raise the profile's artifact limits; the patch may still be there."
                cause = f"the daemon did not take the work: {each.reason}"
                harvest = replaced(harvest, failure=Failure(phase="collect", cause=cause, remedy=remedy))
        self._carry_out(self._machine.take(m.Collected(harvest=replaced(harvest, skipped=skipped)), now))

    def _send_report(self, report: Report) -> None:
        clean = self._redactor.text
        failure = report.failure
        if failure is not None:
            failure = replaced(
                failure, cause=printable(clean(failure.cause), 900), remedy=printable(clean(failure.remedy), 900)
            )
        report = replaced(report, summary=printable(clean(report.summary), 900), failure=failure)
        raw = report.encode()
        self._state.save_report(raw)
        self.cargo.report = raw


def _former_secrets(former: Session) -> tuple[str, ...]:
    """A rescue is given no secrets; what it sends must still not contain those of the guest before it."""
    try:
        return parse_bootstrap(former.bootstrap).redact
    except ValueError:
        sys.stderr.write("agentlab-guest: the former session cannot be read\n")
        return ()
