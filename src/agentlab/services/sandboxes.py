"""Sandboxes: what a request for one means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from agentlab.backends.interface import Backend, BackendError, Capability, Command, Execution, Gone, Probe
from agentlab.base.clock import Clock, milliseconds
from agentlab.base.entropy import Entropy
from agentlab.base.text import did_you_mean
from agentlab.base.units import format_seconds
from agentlab.errors import (
    BackendCallFailed,
    BackendUnknown,
    BackendUnusable,
    Invalid,
    LeaseExpired,
    LimitReached,
    ProvisionFailed,
    TemplateNotReady,
    WrongState,
)
from agentlab.model import event as facts
from agentlab.model.ids import InstallationId, JobId, SandboxId, is_name
from agentlab.model.lease import LEASE_TTL_S_MAX, Lease
from agentlab.model.machine import SANDBOX_SETTLED
from agentlab.model.machine import SandboxState as S
from agentlab.model.network import NetworkMode
from agentlab.model.profile import Profile
from agentlab.model.resources import DISK_BYTES_MIN, MEMORY_BYTES_MIN, Resources
from agentlab.model.sandbox import Mark, Sandbox, StepRecord, Wish
from agentlab.model.template import Template
from agentlab.network.interface import Network
from agentlab.services.events import Events
from agentlab.services.limits import Limits
from agentlab.services.profiles import Profiles
from agentlab.services.requests import Idempotency, NewSandbox
from agentlab.services.reserve import Reserve
from agentlab.services.wake import Wake
from agentlab.store import events, idempotency, sandboxes, steps, templates
from agentlab.store.database import Database, Tx

READY_TIMEOUT_S = 180.0
SLOTS_MAX = 32_000  # uid ranges of 65,536 ids from the first one up must stay below 2^32
CPUS_MIN, PIDS_MIN = 0.05, 16


@dataclass(slots=True, kw_only=True)
class BackendEntry:
    """A backend that this daemon runs, the network that its sandboxes are on, and what its last probe found.

    `remote`: it is not of this machine, and may become usable at any time without us.
    """

    backend: Backend
    network: Network
    probe: Probe
    remote: bool = False


class Sandboxes:
    """Records what is wanted, in one transaction with its event, and returns; the reconciler does the rest."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        installation: InstallationId,
        backends: Mapping[str, BackendEntry],
        default_backend: str,
        profiles: Profiles,
        limits: Limits,
        wake: Wake,
        log: Events,
        reserve: Reserve,
    ) -> None:
        self._database, self._clock, self._entropy = database, clock, entropy
        self._installation, self._backends, self._default_backend = installation, backends, default_backend
        self._profiles, self._limits = profiles, limits
        self._wake, self._log, self._reserve = wake, log, reserve

    async def create(self, identity: str, request: NewSandbox, key: Idempotency | None) -> Sandbox:
        """Record the desire for a sandbox; it is `requested` on return.

        Raises NotFound (profile), TemplateNotReady, BackendUnknown, BackendUnusable, NameTaken, LimitReached, Invalid.
        """

        def write(tx: Tx) -> Sandbox:
            if key is not None and (known := idempotency.recall(tx, key.owner, key.key, key.fingerprint)):
                found = sandboxes.get(tx, SandboxId(known))
                assert found is not None
                return found
            row = self.insert(tx, identity, request)
            if key is not None:
                idempotency.remember(tx, key.owner, key.key, key.fingerprint, row.id, self._clock.now())
            return row

        row = await self._database.write(write)
        self._wake.sandbox(row.id)
        return row

    def insert(
        self, tx: Tx, owner: str, request: NewSandbox, *, job: JobId | None = None, keepalive: bool = False
    ) -> Sandbox:
        """Record a new sandbox inside the caller's transaction; raises as `create` does."""
        profile = self._profiles.get(request.profile)
        name, entry = self.backend(request.backend or profile.backend)
        if request.name is not None and not is_name(request.name):
            raise Invalid(
                cause=f"name: {request.name!r} is not a name: lower-case letters, digits and dashes, at most 63"
            )
        template = _template(tx, request.template or profile.template)
        now = self._clock.now()
        lease = Lease(until=now + checked_ttl(request.ttl_s if request.ttl_s is not None else profile.ttl_s))
        mark, slot = self.place(tx, entry.network)
        row = Sandbox(
            id=mark.sandbox,
            name=request.name,
            owner=owner,
            backend=name,
            profile=profile.name,
            template=template.name,
            template_digest=template.digest,
            wish=Wish.RUNNING,
            state=S.REQUESTED,
            mark=mark,
            slot=slot,
            resources=_resources(profile, request),
            network=self._mode(request.network or profile.network, entry),
            lease=lease,
            created_at=now,
            user=request.user or profile.user,
            nested_sandboxes=profile.nested_sandboxes,
            job=job,
            keepalive=keepalive,
            missing_guarantees=entry.probe.missing_guarantees,
            lease_warned_s=lease.warning_due(now),  # a short lease starts beyond its first thresholds
        )
        self.record(tx, row)
        return row

    def place(self, tx: Tx, network: Network) -> tuple[Mark, int]:
        """A new sandbox's mark, and a slot that its network has and no other sandbox of any backend.  LimitReached."""
        if len(sandboxes.slots_in_use(tx)) >= self._limits.sandboxes_max:
            raise LimitReached(
                limit_name="sandboxes_max",
                limit=self._limits.sandboxes_max,
                cause="this many sandboxes live already",
                what_to_do="Destroy some (`agentlab sandbox list`), or raise the setting.",
            )
        sandbox_id = SandboxId(f"sb-{self._entropy.word(8)}")
        mark = Mark(installation=self._installation, sandbox=sandbox_id, nonce=self._entropy.token(16))
        return mark, sandboxes.next_slot(tx, min(SLOTS_MAX, network.slots))

    def record(self, tx: Tx, row: Sandbox) -> None:
        """Write a new sandbox's row with its first step and event.  NameTaken."""
        sandboxes.insert(tx, row)
        now = row.created_at
        steps.finish(tx, steps.begin(tx, row.id, "provision", "reserve", now), "done", self._clock.now())
        fact = facts.SandboxRequested(
            subject=row.id, backend=row.backend, profile=row.profile, template=row.template, owner=row.owner
        )
        events.append(tx, fact, now)

    def check(self, tx: Tx, request: NewSandbox) -> None:
        """Raise what `create` would raise for this profile, backend and template, now rather than later."""
        profile = self._profiles.get(request.profile)
        self._mode(request.network or profile.network, self.backend(request.backend or profile.backend)[1])
        _template(tx, request.template or profile.template)

    def get(self, text: str, owner: str | None = None) -> Sandbox:
        """By id, unique id prefix or name; NotFound, Ambiguous."""
        return self._database.read(lambda tx: sandboxes.find(tx, text, owner))

    def page(
        self,
        owner: str | None = None,
        states: Sequence[S] | None = None,
        include_destroyed: bool = False,
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[list[Sandbox], str | None]:
        """Newest first, with the cursor of the next page."""
        return self._database.read(
            lambda tx: sandboxes.page(
                tx, owner=owner, states=states, include_destroyed=include_destroyed, after=after, limit=limit
            )
        )

    def steps(self, sandbox: SandboxId) -> list[StepRecord]:
        """What was done for it, in order, with times and outcomes."""
        return self._database.read(lambda tx: steps.of(tx, sandbox))

    def address(self, row: Sandbox) -> str | None:
        """Its own address; None without a network, or if this daemon no longer has its backend."""
        entry = self._backends.get(row.backend)
        if row.network is NetworkMode.OFF or entry is None:
            return None
        return str(entry.network.port(row.id, row.slot, row.network).address)

    async def wish(self, sandbox: SandboxId, wish: Wish, key: Idempotency | None = None, reason: str = "") -> Sandbox:
        """Record what is wanted of it from now on.  WrongState, LeaseExpired; destroying twice is quiet."""

        def write(tx: Tx) -> Sandbox:
            row = sandboxes.get(tx, sandbox)
            assert row is not None
            if key is not None and idempotency.recall(tx, key.owner, key.key, key.fingerprint):
                return row
            if wish is Wish.DESTROYED:
                if row.wish is not Wish.DESTROYED and row.state is not S.DESTROYED:
                    row = sandboxes.update(tx, sandbox, wish=wish, ended_reason=reason or "asked for")
            else:
                self._check_wish(row, wish)
                row = sandboxes.update(tx, sandbox, wish=wish)
            if key is not None:
                idempotency.remember(tx, key.owner, key.key, key.fingerprint, row.id, self._clock.now())
            return row

        if wish in (Wish.DESTROYED, Wish.STOPPED):
            row = await self._reserve.write(self._database, write)  # what frees space must work on a full disk
        else:
            row = await self._database.write(write)
        self._wake.sandbox(sandbox)
        if row.job is not None:
            self._wake.job(row.job)
        return row

    async def renew(self, sandbox: SandboxId, ttl_s: float, key: Idempotency | None = None) -> Sandbox:
        """Let it live until at least `ttl_s` from now; never shortens.  LeaseExpired, WrongState."""
        ttl_s = checked_ttl(ttl_s)

        def write(tx: Tx) -> Sandbox:
            row, now = sandboxes.get(tx, sandbox), self._clock.now()
            assert row is not None
            if key is not None and idempotency.recall(tx, key.owner, key.key, key.fingerprint):
                return row
            self.check_living(row)
            lease = row.lease.renewed(now, ttl_s)
            row = sandboxes.update(tx, sandbox, lease=lease, lease_warned_s=lease.warning_due(now))
            events.append(tx, facts.LeaseRenewed(subject=sandbox, until_ms=milliseconds(lease.until)), now)
            if key is not None:
                idempotency.remember(tx, key.owner, key.key, key.fingerprint, row.id, now)
            return row

        return await self._database.write(write)

    async def wait_settled(self, sandbox: SandboxId, timeout_s: float) -> Sandbox:
        """The row once nothing is under way for it, or as it is after `timeout_s`."""
        row = await self._log.wait_until(sandbox, lambda tx: sandboxes.get(tx, sandbox), _settled, timeout_s)
        assert row is not None
        return row

    @asynccontextmanager
    async def execute(self, sandbox: SandboxId, command: Command) -> AsyncIterator[Execution]:
        """Run a command in it, once it is ready.  ProvisionFailed, WrongState, BackendCallFailed."""
        row = await self.wait_settled(sandbox, READY_TIMEOUT_S)
        if row.state is S.FAILED:
            assert row.failure is not None
            failure = row.failure
            raise ProvisionFailed(sandbox=row.id, step=failure.step, cause=failure.cause, what_to_do=failure.remedy)
        if row.state is not S.READY:
            raise WrongState(noun="sandbox", name=row.name or row.id, state=row.state, needed="ready")
        try:
            async with self._backends[row.backend].backend.execute(row.mark, command) as execution:
                yield execution
        except Gone as error:
            self._wake.sandbox(sandbox)
            raise WrongState(noun="sandbox", name=row.id, state="not running", needed="ready") from error
        except BackendError as error:
            raise BackendCallFailed(backend=row.backend, cause=error.cause, what_to_do=error.remedy) from error

    async def console(self, sandbox: SandboxId) -> str:
        """The tail of what its first process and the guest program wrote."""
        row = self._database.read(lambda tx: sandboxes.get(tx, sandbox))
        assert row is not None
        return await self._backends[row.backend].backend.console(sandbox)

    def backend(self, name: str | None) -> tuple[str, BackendEntry]:
        """The backend of this name, or the default one, if it works.  BackendUnknown, BackendUnusable."""
        name = name or self._default_backend
        entry = self._backends.get(name)
        if entry is None:
            raise BackendUnknown(name=name, hint=did_you_mean(name, self._backends))
        broken = [finding for finding in entry.probe.findings if finding.fatal and not finding.ok]
        if broken:
            raise BackendUnusable(backend=name, cause=broken[0].detail, what_to_do=broken[0].remedy)
        return name, entry

    def _mode(self, mode: NetworkMode, entry: BackendEntry) -> NetworkMode:
        if mode is not NetworkMode.OFF and Capability.NETWORK not in entry.probe.capabilities:
            raise BackendUnusable(
                backend=entry.backend.name,
                cause=f"network mode {mode} is not possible on this machine",
                what_to_do="Use `network: {mode: off}`, or see `agentlab doctor` for what is missing.",
            )
        return mode

    def check_living(self, row: Sandbox) -> None:
        """Whether anything can still be asked of it.  LeaseExpired, WrongState."""
        now = self._clock.now()
        if now >= row.lease.until:
            raise LeaseExpired(name=row.name or row.id, ago=f"{format_seconds(now - row.lease.until)} ago")
        if row.wish is Wish.DESTROYED or row.state in (S.FAILED, S.DESTROYING, S.DESTROYED):
            state = "being destroyed" if row.state is not S.FAILED and row.state is not S.DESTROYED else row.state
            raise WrongState(noun="sandbox", name=row.name or row.id, state=state, needed="a living sandbox")

    def _check_wish(self, row: Sandbox, wish: Wish) -> None:
        self.check_living(row)
        entry = self._backends[row.backend]
        if wish is Wish.PAUSED:
            if Capability.PAUSE not in entry.probe.capabilities:
                cause = "it cannot pause sandboxes"
                raise BackendUnusable(backend=row.backend, cause=cause, what_to_do="Stop it instead.")
            if row.state not in (S.READY, S.PAUSED):
                raise WrongState(noun="sandbox", name=row.name or row.id, state=row.state, needed="ready")


def _template(tx: Tx, name: str) -> Template:
    template = templates.get(tx, name)
    if template is None or template.state != "ready":
        raise TemplateNotReady(name=name, detail=f" ({template.state})" if template else "")
    return template


def _settled(row: Sandbox | None) -> bool:
    if row is None or row.state not in SANDBOX_SETTLED:
        return row is None
    if row.restore_to is not None and row.state not in (S.FAILED, S.DESTROYED):
        return False
    reached = {Wish.RUNNING: S.READY, Wish.STOPPED: S.STOPPED, Wish.PAUSED: S.PAUSED, Wish.DESTROYED: S.DESTROYED}
    return row.state in (reached[row.wish], S.DESTROYED) or (row.state is S.FAILED and row.wish is not Wish.DESTROYED)


def checked_ttl(ttl_s: float) -> float:
    """`ttl_s`, if a lease may be that long.  Invalid."""
    if not 1 <= ttl_s <= LEASE_TTL_S_MAX:
        raise Invalid(cause=f"ttl: {ttl_s:g} s is outside 1 s … {LEASE_TTL_S_MAX} s (30 days)")
    return ttl_s


def _resources(profile: Profile, request: NewSandbox) -> Resources:
    asked = {
        "memory_bytes": request.memory_bytes,
        "cpus": request.cpus,
        "pids_max": request.pids_max,
        "disk_bytes": request.disk_bytes,
    }
    wanted = replace(profile.resources, **{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]
    floors = {"memory_bytes": MEMORY_BYTES_MIN, "cpus": CPUS_MIN, "pids_max": PIDS_MIN, "disk_bytes": DISK_BYTES_MIN}
    for name, floor in floors.items():
        if getattr(wanted, name) < floor:
            raise Invalid(cause=f"{name}: {getattr(wanted, name)} is below the minimum {floor}")
    return wanted
