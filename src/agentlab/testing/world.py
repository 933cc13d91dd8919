"""A whole daemon in one seed: real services, store and protocol on virtual time, over a fake backend and network.

Simulated users ask for sandboxes and jobs, calls are refused, slow, or done but unanswered, guests die, the clock jumps
and the daemon is killed at random.  The same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agentlab.backends.interface import Capability, Command, Probe
from agentlab.base.entropy import SeededEntropy
from agentlab.base.redaction import Redaction
from agentlab.base.tasks import TaskScope
from agentlab.daemon.backends import Entrance
from agentlab.daemon.build import Core, build_core
from agentlab.daemon.ground import Ground
from agentlab.errors import AgentLabError
from agentlab.model.ids import Digest, InstallationId, JobId, SandboxId
from agentlab.model.job import RepoSource
from agentlab.model.machine import JOB_FINAL
from agentlab.model.machine import SandboxState as S
from agentlab.model.machine import SnapshotState as K
from agentlab.model.sandbox import Mark, Wish
from agentlab.model.template import Template
from agentlab.plan.jobs import JobLimits
from agentlab.services.limits import Limits
from agentlab.services.profiles import Profiles
from agentlab.services.requests import NewForks, NewJob, NewSandbox, NewSnapshot
from agentlab.services.sandboxes import BackendEntry
from agentlab.store import jobs, meta, sandboxes, snapshots, steps, templates
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database
from agentlab.store.outputs import Outputs
from agentlab.testing.fake_backend import FakeBackend
from agentlab.testing.fake_guest import Disk, FakeGuest
from agentlab.testing.fake_network import FakeNetwork
from agentlab.testing.simloop import SimClock, SimLoop
from agentlab_guest.strict import Data

DIGEST = Digest("ab" * 32)
LIMITS = Limits(
    jobs_running_max=3,
    sandboxes_max=40,
    disk_reserve_bytes=0,
    reconcile_interval_s=10,
    job=JobLimits(link_lost_s=30, harvest_s_max=120, launches_s_max=600, rescues_max=2),
)


class PlainSeal:
    """Keeps sealed values readable: the simulation has no secrets, and real encryption is not repeatable."""

    def seal(self, content: bytes) -> bytes:
        """As it is."""
        return content

    def unseal(self, sealed: bytes) -> bytes:
        """As it is."""
        return sealed


class _Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._closed = False
        self._changed = asyncio.Event()

    async def read(self) -> bytes:
        while not self._data and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        taken = bytes(self._data)
        self._data.clear()
        return taken

    def write(self, buffers: Any) -> None:
        if not self._closed:
            for each in buffers:
                self._data += each
            self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()


class End:
    """One end of a connection."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    async def read(self) -> bytes:
        return await self._incoming.read()

    def write(self, buffers: Sequence[Data]) -> None:
        self._outgoing.write(buffers)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def close(self) -> None:
        self._incoming.close()
        self._outgoing.close()


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without the remarks of hundreds of simulated failures; afterwards as it was, for the tests that follow."""
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class World:
    """`World(seed).run(scenario)`; see tests/sim."""

    limits = LIMITS

    def __init__(self, seed: int, fault_rate: float = 0.1) -> None:
        self.seed, self._fault_rate = seed, fault_rate
        self.entropy = SeededEntropy(seed)
        self.agent_runs: Counter[str] = Counter()
        self.problems: list[str] = []
        self.crashes = 0
        self.core: Core | None = None
        self.disks: dict[str, Disk] = {}
        self._guests: dict[str, asyncio.Task[None]] = {}

    @property
    def replay_hint(self) -> str:
        """How to see this run again."""
        return f"replay: python -m agentlab.testing.simulate --seed {self.seed}"

    def run(self, scenario: Callable[[World], Any]) -> None:
        """Run `scenario(world)` on virtual time with a daemon that is up at first."""
        with (
            _quiet(logging.getLogger("agentlab")),
            tempfile.TemporaryDirectory(prefix="agentlab-sim-", dir=_memory()) as folder,
            asyncio.Runner(loop_factory=SimLoop) as runner,
        ):
            loop = runner.get_loop()
            assert isinstance(loop, SimLoop)
            loop.set_exception_handler(self._unexpected)
            self.clock = SimClock(loop)
            self._folder = Path(folder)
            runner.run(self._live(scenario))

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r} {context.get('task')!r}")

    async def _live(self, scenario: Callable[[World], Any]) -> None:
        await self._make_ground()
        self.blobs = Blobs(self._folder / "blobs", self.clock, self.entropy, disk_reserve_bytes=0)
        self.profiles = Profiles([])
        self.profiles.load()
        await self.start()
        try:
            await scenario(self)
        finally:
            await self.kill()
            for guest in self._guests.values():
                guest.cancel()
            await asyncio.gather(*self._guests.values(), return_exceptions=True)

    async def _make_ground(self) -> None:
        """What stands below every daemon of this world."""
        self.backend = FakeBackend(entropy=self.entropy, fault_rate=self._fault_rate, latency_s=0.5)
        self.backend.on_launch = self._launch
        self.network = FakeNetwork(entropy=self.entropy, fault_rate=self._fault_rate, latency_s=0.05)

    async def _entries(self, installation: InstallationId) -> Mapping[str, BackendEntry]:
        """What a daemon finds at its start."""
        self.network.installation = installation
        self.network.rules_stand = True  # what `open` does at start, or the daemon does not start
        probe = Probe(findings=(), capabilities=frozenset(Capability))
        return {"fake": BackendEntry(backend=self.backend, network=self.network, probe=probe)}

    # The daemon's life

    async def start(self) -> None:
        """The daemon starts, as after a power cut: nothing but the store and the world is known to it."""
        self.database = Database.open(self._folder / "agentlab.db", writer="inline", durable=False)
        installation = await self.database.write(lambda tx: meta.installation(tx, self.entropy))
        await self.database.write(lambda tx: steps.abandon_running(tx, self.clock.now()))
        await self.database.write(lambda tx: templates.put(tx, _template()))
        self.outputs = Outputs(self._folder / "outputs")
        entries = await self._entries(installation)
        ground = Ground(
            clock=self.clock,
            entropy=self.entropy,
            state_dir=self._folder,
            guest_dir=self._folder,
            installation=installation,
            database=self.database,
            blobs=self.blobs,
            outputs=self.outputs,
            seal=PlainSeal(),  # type: ignore[arg-type]
            redaction=Redaction(),
            backends=entries,
            entrance=Entrance(),
            default_backend=next(iter(entries)),
            subnet="10.77.0.0/16",
            builder=None,  # type: ignore[arg-type]
            images=None,  # type: ignore[arg-type]
        )
        self._scope = TaskScope("daemon", self._task_failed)
        self.core = build_core(ground, self.profiles, self.limits, self._scope)
        self._scope.start(self.core.reconciler.run(), "reconcile")

    async def kill(self) -> None:
        """SIGKILL: from this instant the old daemon writes nothing, and every connection is cut."""
        if self.core is None:
            return
        self.core.sandbox_reconciler.workers.stop()
        self.core.job_reconciler.workers.stop()
        self.core = None
        self.crashes += 1
        old = self.database

        async def dead(*_: object) -> None:
            raise asyncio.CancelledError

        setattr(old, "write", dead)  # noqa: B010
        setattr(old, "write_soon", lambda *_: None)  # noqa: B010
        await self._scope.close()
        self.outputs.close()
        delattr(old, "write")
        delattr(old, "write_soon")
        await old.close()

    def _task_failed(self, name: str, error: BaseException) -> None:
        self.problems.append(f"task {name} failed: {error!r}")

    # Guests

    def _launch(self, mark: Mark, command: Command, stdin: bytes) -> None:
        """The fake backend starts a guest program: it lives as long as its sandbox runs, not as long as the daemon."""
        disk = self.disks.setdefault(mark.sandbox, Disk())
        if (former := self._guests.get(mark.sandbox)) is not None:
            former.cancel()  # a rescue ends what still runs
        guest = FakeGuest(
            grant=stdin.decode().strip(),
            disk=disk,
            connect=self.connect,
            entropy=self.entropy,
            run_s=self.entropy.fraction() * 120,
            on_agent=lambda job: self.agent_runs.update([job]),
        )
        self._guests[mark.sandbox] = asyncio.get_running_loop().create_task(guest.run())

    async def connect(self) -> End:
        """A guest's end of a new connection to the daemon.  ConnectionRefusedError while it is down."""
        if self.core is None:
            raise ConnectionRefusedError
        up, down = _Pipe(), _Pipe()
        self._scope.start(self.core.sessions.serve(End(up, down)), "session")
        return End(down, up)

    def kill_guest(self, sandbox: str) -> None:
        """The guest program of this sandbox dies."""
        if (guest := self._guests.pop(sandbox, None)) is not None:
            guest.cancel()

    def kill_sandbox(self, sandbox: str) -> None:
        """The sandbox itself dies; its disk stays."""
        self.kill_guest(sandbox)
        self.backend.kill(SandboxId(sandbox))

    async def disturb(self) -> None:
        """Somebody flushes the rule set."""
        self.network.rules_stand = False

    # What users do

    async def new_sandbox(self, ttl_s: float = 3600) -> None:
        """Ask for a sandbox."""
        if self.core is not None:
            with suppress(AgentLabError):
                await self.core.sandboxes.create("uid:0", NewSandbox(ttl_s=ttl_s, template="base"), None)

    async def new_job(self, timeout_s: float = 100) -> None:
        """Queue a job."""
        if self.core is not None:
            with suppress(AgentLabError):
                request = NewJob(repo=RepoSource(), task="true", timeout_s=timeout_s, ttl_s=7200)
                await self.core.jobs.create("uid:0", request, None)

    async def wish(self, sandbox: SandboxId, wish: Wish) -> None:
        """Ask something of a sandbox."""
        if self.core is not None:
            with suppress(AgentLabError):
                await self.core.sandboxes.wish(sandbox, wish)

    async def snapshot(self, sandbox: SandboxId, *, memory: bool) -> None:
        """Ask for a snapshot."""
        if self.core is not None:
            with suppress(AgentLabError):
                await self.core.snapshots.take(sandbox, NewSnapshot(memory=memory))

    async def remove_snapshot(self, sandbox: SandboxId, name: str) -> None:
        """Want a snapshot no longer."""
        if self.core is not None:
            with suppress(AgentLabError):
                await self.core.snapshots.remove(sandbox, name)

    async def restore(self, sandbox: SandboxId, name: str) -> None:
        """Want a sandbox to be again what it was."""
        if self.core is not None:
            with suppress(AgentLabError):
                await self.core.snapshots.restore(sandbox, name)

    async def fork(self, sandbox: SandboxId, count: int, snapshot: str | None) -> None:
        """Ask for forks."""
        if self.core is not None:
            with suppress(AgentLabError):
                await self.core.snapshots.make_forks("uid:0", sandbox, NewForks(count=count, snapshot=snapshot))

    async def cancel(self, job: JobId) -> None:
        """Cancel a job."""
        if self.core is not None:
            with suppress(AgentLabError):
                await self.core.jobs.cancel(job)

    # What must hold

    def calm(self) -> None:
        """The weather clears: no more faults."""
        self.backend.fault_rate = 0.0
        self.network.fault_rate = 0.0

    def check_at_rest(self) -> None:
        """In calm weather, while leases still run: nothing is left half done."""
        living = self.database.read(sandboxes.living)
        kept = [each for row in living for each in self.database.read(lambda tx, id=row.id: snapshots.of(tx, id))]  # type: ignore[misc]
        waiting = [row.id for row in living if row.state in (S.REQUESTED, S.PROVISIONING, S.STARTING, S.STOPPING)]
        assert waiting == [], f"sandboxes that do not come to rest: {waiting}; {self.replay_hint}"
        restoring = [row.id for row in living if row.restore_to is not None and row.state is not S.FAILED]
        assert restoring == [], f"sandboxes that are not restored: {restoring}; {self.replay_hint}"
        undone = [each for each in kept if each.state in (K.REQUESTED, K.REMOVING)]
        assert undone == [], f"snapshots that are neither taken nor given up: {undone}; {self.replay_hint}"
        silent = [each for each in kept if each.state is K.FAILED and each.failure is None]
        assert silent == [], f"snapshots that failed without a cause: {silent}; {self.replay_hint}"
        useless = [each for each in kept if each.transient]
        assert useless == [], f"snapshots for forks that stand for themselves: {useless}; {self.replay_hint}"

    def left(self) -> list[str]:
        """What stands in the backend."""
        return sorted(self.backend.sandboxes)

    def left_in_network(self) -> list[str]:
        """What stands in the network."""
        return sorted(self.network.ports)

    def check_settled(self) -> None:
        """Once all leases ended in calm weather: nothing is left, everything ended truthfully."""
        living = self.database.read(sandboxes.living)
        left = self.left()
        found = self.database.read(lambda tx: jobs.page(tx, limit=1000))[0]
        assert left == [], f"left in the backend: {left}; {self.replay_hint}"
        assert self.left_in_network() == [], f"left in the network: {self.left_in_network()}; {self.replay_hint}"
        gone = self.database.read(lambda tx: sandboxes.page(tx, include_destroyed=True, limit=1000))[0]
        kept = [each for row in gone for each in self.database.read(lambda tx, id=row.id: snapshots.of(tx, id))]  # type: ignore[misc]
        assert kept == [], f"snapshots of what is gone: {kept}; {self.replay_hint}"
        assert [row.id for row in living if row.state is not S.DESTROYED] == [], f"living rows; {self.replay_hint}"
        endless = [job.id for job in found if job.state not in JOB_FINAL]
        assert endless == [], f"jobs without an end: {endless}; {self.replay_hint}"
        twice = [job for job, runs in self.agent_runs.items() if runs > 1]
        assert twice == [], f"jobs that ran twice: {twice}; {self.replay_hint}"
        silent = [job.id for job in found if job.failure is None and job.state not in ("succeeded", "cancelled")]
        assert silent == [], f"jobs that ended without a cause: {silent}; {self.replay_hint}"
        assert self.problems == [], f"{self.problems}; {self.replay_hint}"


def _memory() -> str | None:
    """A file system in memory, if there is one: a simulation need not survive a power cut."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _template() -> Template:
    return Template(
        name="base",
        digest=DIGEST,
        recipe_digest=DIGEST,
        state="ready",
        bytes_count=1,
        built_at=0.0,
        build_s=1.0,
    )
