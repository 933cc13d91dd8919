"""A backend in memory, held to the same contract as the real ones, with faults from a seed."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

from agentlab.backends.interface import BackendError, Capability, Command, Gone, NotOurs, Probe, Unavailable
from agentlab.base.entropy import Entropy, SeededEntropy
from agentlab.model.finding import Finding
from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.network import Namespace
from agentlab.model.sandbox import Mark, Observed, Power, SandboxSpec
from agentlab.testing.fake_shell import FakeExecution
from agentlab.testing.fake_snapshots import FakeSnapshots, FakeStorage, FakeWorkspaces

SLOW_FACTOR = 100
CALLS_KEPT_MAX = 100_000
ENDED_BY_ITSELF = "its first process ended"

_Answer = TypeVar("_Answer")
LaunchHook = Callable[[Mark, Command, bytes], Awaitable[None] | None]


@dataclass(slots=True, kw_only=True)
class FakeSandbox:
    """One sandbox in memory; tests may look at it and change it."""

    spec: SandboxSpec
    observed: Observed
    storage: FakeStorage = field(default_factory=FakeStorage)
    launched: list[tuple[Command, bytes]] = field(default_factory=list)  # since it was last armed
    console: str = ""
    executions: set[FakeExecution] = field(default_factory=set)


class FakeBackend:
    """See `Backend`.  Waits only through asyncio.sleep, so it works on a virtual clock, and replays for one seed.

    Each call takes about `latency_s`.  Of all calls, a share of `fault_rate` is refused with Unavailable before
    anything happened, as many happen but answer Unavailable, and as many take SLOW_FACTOR times as long.
    `installation` None: every sandbox is ours.
    """

    step_s_max: Mapping[str, float] = {}
    parallel_max = 8
    guest_arguments: tuple[str, ...] = ("--own-pids",)

    def __init__(
        self,
        name: str = "fake",
        capabilities: frozenset[Capability] = frozenset(Capability),
        entropy: Entropy | None = None,
        fault_rate: float = 0.0,
        latency_s: float = 0.0,
        installation: InstallationId | None = None,
    ) -> None:
        assert 0 <= fault_rate < 1 / 3, "three kinds of fault must leave room for success"
        self.name = name
        self.fault_rate = fault_rate
        self.latency_s = latency_s
        self.installation = installation
        self.sandboxes: dict[SandboxId, FakeSandbox] = {}
        self.on_launch: LaunchHook | None = None
        # The last calls with their outcomes: the trace that a seed repeats.
        self.calls: deque[tuple[str, str]] = deque(maxlen=CALLS_KEPT_MAX)
        self._capabilities = capabilities
        self._entropy = entropy or SeededEntropy(0)
        self._pids = count(1000)
        self._snapshots, self._workspaces = FakeSnapshots(self), FakeWorkspaces(self)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._capabilities

    @property
    def snapshots(self) -> FakeSnapshots | None:
        return self._snapshots if Capability.SNAPSHOT in self._capabilities else None

    @property
    def workspaces(self) -> FakeWorkspaces | None:
        return self._workspaces if Capability.WORKSPACE in self._capabilities else None

    def kill(self, sandbox: SandboxId, detail: str = ENDED_BY_ITSELF) -> None:
        """Let a sandbox die by itself, as after a crash inside; quiet if it does not run."""
        if (found := self.sandboxes.get(sandbox)) is not None and found.observed.power is not Power.STOPPED:
            self._halt(found, detail)

    async def probe(self) -> Probe:
        finding = Finding(name="memory", ok=True, detail="nothing is real here")
        return Probe(findings=(finding,), capabilities=self._capabilities)

    async def list(self) -> Sequence[Observed]:
        return await self.fate(
            "list", "", lambda: [each.observed for each in self.sandboxes.values() if self._is_ours(each)]
        )

    async def inspect(self, sandbox: SandboxId) -> Observed | None:
        def look() -> Observed | None:
            found = self.sandboxes.get(sandbox)
            return found.observed if found is not None and self._is_ours(found) else None

        return await self.fate("inspect", sandbox, look)

    async def create(self, spec: SandboxSpec) -> Observed:
        def make() -> Observed:
            if (found := self._owned(spec.mark)) is None:
                found = FakeSandbox(spec=spec, observed=Observed(mark=spec.mark, power=Power.STOPPED))
                if spec.source is not None:
                    found.storage.become(self._snapshots.find(spec.source))
                self.sandboxes[spec.mark.sandbox] = found
            return found.observed

        return await self.fate("create", spec.mark.sandbox, make)

    async def arm(self, spec: SandboxSpec) -> Observed:
        def hold() -> Observed:
            found = self._existing(spec.mark)
            if found.observed.power is Power.STOPPED:
                found.launched, found.console = [], ""
                found.storage.wake()
                found.observed = Observed(mark=spec.mark, power=Power.ARMED, end=Namespace(next(self._pids)))
            return found.observed

        return await self.fate("arm", spec.mark.sandbox, hold)

    async def start(self, mark: Mark) -> None:
        def let_go() -> None:
            found = self._existing(mark)
            if found.observed.power is Power.STOPPED:
                raise Gone(f"{mark.sandbox} is not armed")
            if found.observed.power is Power.ARMED:
                found.observed = replace(found.observed, power=Power.RUNNING)
                found.storage.files["/etc/machine-id"] = f"{mark.sandbox}\n".encode()
                found.storage.files["/proc/sys/kernel/hostname"] = f"{found.spec.hostname}\n".encode()

        await self.fate("start", mark.sandbox, let_go)

    async def stop(self, mark: Mark, grace_s: float) -> None:
        def end() -> None:
            found = self._existing(mark)
            if found.observed.power is not Power.STOPPED:
                self._halt(found, "")

        await self.fate("stop", mark.sandbox, end)

    async def pause(self, mark: Mark) -> None:
        await self.fate("pause", mark.sandbox, lambda: self._turn(mark, Power.RUNNING, Power.PAUSED))

    async def resume(self, mark: Mark) -> None:
        await self.fate("resume", mark.sandbox, lambda: self._turn(mark, Power.PAUSED, Power.RUNNING))

    async def destroy(self, mark: Mark) -> None:
        def remove() -> None:
            if (found := self._owned(mark)) is not None:
                self._halt(found, "")
                del self.sandboxes[mark.sandbox]

        await self.fate("destroy", mark.sandbox, remove)

    @asynccontextmanager
    async def execute(self, mark: Mark, command: Command) -> AsyncIterator[FakeExecution]:
        def begin() -> FakeExecution:
            found = self._running(mark)
            execution = FakeExecution(command, found.storage.files)
            found.executions.add(execution)
            return execution

        execution = await self.fate("execute", mark.sandbox, begin)
        try:
            async with execution:
                yield execution
        finally:
            if (found := self.sandboxes.get(mark.sandbox)) is not None:
                found.executions.discard(execution)

    async def launch(self, mark: Mark, command: Command, stdin: bytes) -> None:
        def begin() -> Awaitable[None] | None:
            self._running(mark).launched.append((command, stdin))
            return self.on_launch(mark, command, stdin) if self.on_launch is not None else None

        if (pending := await self.fate("launch", mark.sandbox, begin)) is not None:
            await pending

    async def console(self, sandbox: SandboxId, bytes_max: int = 4096) -> str:
        found = self.sandboxes.get(sandbox)
        return "" if found is None else found.console[-bytes_max:]

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def fate(self, call: str, sandbox: str, effect: Callable[[], _Answer]) -> _Answer:
        """Let `effect` happen, or a fault, or both."""
        roll = self._entropy.fraction()
        slow = 1 - 3 * self.fault_rate <= roll < 1 - 2 * self.fault_rate
        await asyncio.sleep(self._latency() * (SLOW_FACTOR if slow else 1))
        if roll >= 1 - self.fault_rate:
            self.calls.append((f"{call} {sandbox}", "refused"))
            raise Unavailable(f"{call}: refused by the fault of a seed")
        try:
            answer = effect()
        except BackendError as error:
            self.calls.append((f"{call} {sandbox}", error.code))
            raise
        if roll >= 1 - 2 * self.fault_rate:
            self.calls.append((f"{call} {sandbox}", "done, unanswered"))
            raise Unavailable(f"{call}: done, but the answer was lost by the fault of a seed")
        self.calls.append((f"{call} {sandbox}", "done"))
        return answer

    def storage(self, mark: Mark) -> tuple[Power, FakeStorage]:
        """The power and storage of an existing sandbox; Gone, NotOurs."""
        found = self._existing(mark)
        return found.observed.power, found.storage

    def storages(self) -> Sequence[FakeStorage]:
        """Of all sandboxes."""
        return tuple(each.storage for each in self.sandboxes.values())

    def owns(self, mark: Mark) -> bool:
        """Whether it exists; NotOurs."""
        return self._owned(mark) is not None

    def _latency(self) -> float:
        # Without latency nothing is drawn, so that a simulation without it keeps its sequence.
        return 0.0 if self.latency_s <= 0 else -self.latency_s * math.log(1 - self._entropy.fraction())

    def _is_ours(self, found: FakeSandbox) -> bool:
        return self.installation is None or found.spec.mark.installation == self.installation

    def _owned(self, mark: Mark) -> FakeSandbox | None:
        found = self.sandboxes.get(mark.sandbox)
        if found is not None and found.spec.mark != mark:
            raise NotOurs(f"{mark.sandbox} bears another mark")
        return found

    def _existing(self, mark: Mark) -> FakeSandbox:
        if (found := self._owned(mark)) is None:
            raise Gone(f"there is no sandbox {mark.sandbox}")
        return found

    def _running(self, mark: Mark) -> FakeSandbox:
        found = self._existing(mark)
        if found.observed.power is not Power.RUNNING:
            raise Gone(f"{mark.sandbox} is {found.observed.power}")
        return found

    def _turn(self, mark: Mark, before: Power, after: Power) -> None:
        found = self._existing(mark)
        if found.observed.power is before:
            found.observed = replace(found.observed, power=after)
        elif found.observed.power is not after:
            raise Gone(f"{mark.sandbox} is {found.observed.power}")

    def _halt(self, found: FakeSandbox, detail: str) -> None:
        found.observed = Observed(mark=found.spec.mark, power=Power.STOPPED, exit_detail=detail)
        found.storage.lose_power()
        for execution in tuple(found.executions):
            execution.kill()
