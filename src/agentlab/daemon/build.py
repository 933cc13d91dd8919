"""Composes one daemon: the only place that names concrete classes together.  Has no behaviour of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from agentlab.api.guest import GuestServer
from agentlab.api.server import ApiServer
from agentlab.backends.interface import Backend
from agentlab.base.tasks import TaskScope
from agentlab.daemon import rootless
from agentlab.daemon.ground import Ground
from agentlab.daemon.settings import Settings
from agentlab.plan.jobs import JobLimits
from agentlab.services.events import Events
from agentlab.services.guests import Guests
from agentlab.services.health import Health
from agentlab.services.jobs import Jobs
from agentlab.services.limits import Limits
from agentlab.services.profiles import Profiles
from agentlab.services.reconcile.interpret import Interpreter
from agentlab.services.reconcile.jobs import JobReconciler
from agentlab.services.reconcile.loop import Reconciler
from agentlab.services.reconcile.sandboxes import SandboxReconciler
from agentlab.services.registry import Services
from agentlab.services.reserve import Reserve
from agentlab.services.retention import Retention
from agentlab.services.sandboxes import Sandboxes
from agentlab.services.session import Sessions
from agentlab.services.snapshots import Snapshots
from agentlab.services.templates import Templates
from agentlab.services.wake import Wake


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """The parts that have a life: started, drained and stopped by `lifecycle`."""

    services: Services
    sessions: Sessions
    reconciler: Reconciler
    retention: Retention
    templates: Templates
    api: ApiServer
    guest_server: GuestServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What works without any socket: the daemon's whole behaviour, for its server and for simulations alike."""

    events: Events
    wake: Wake
    guests: Guests
    sandboxes: Sandboxes
    snapshots: Snapshots
    jobs: Jobs
    sessions: Sessions
    reconciler: Reconciler
    sandbox_reconciler: SandboxReconciler
    job_reconciler: JobReconciler


def limits_of(settings: Settings) -> Limits:
    """The services' limits, from the settings."""
    return Limits(
        jobs_running_max=settings.limits.jobs_running_max,
        jobs_queued_max=settings.limits.jobs_queued_max,
        sandboxes_max=settings.limits.sandboxes_max,
        snapshots_max=settings.limits.snapshots_max,
        forks_max=settings.limits.forks_max,
        reconcile_interval_s=settings.durations.reconcile_interval_s,
        stop_grace_s=settings.durations.stop_grace_s,
        disk_reserve_bytes=settings.limits.disk_reserve_bytes,
        kept_s=settings.durations.kept_s,
        job=JobLimits(
            link_lost_s=settings.durations.link_lost_s,
            harvest_s_max=settings.durations.harvest_s_max,
        ),
    )


def build_core(ground: Ground, profiles: Profiles, limits: Limits, scope: TaskScope) -> Core:
    """The services and the reconciler on top of `ground`."""
    database, clock, entropy = ground.database, ground.clock, ground.entropy
    log, wake = Events(database), Wake()
    guests = Guests(clock=clock, entropy=entropy, limits=limits)
    backends: Mapping[str, Backend] = {name: entry.backend for name, entry in ground.backends.items()}
    reserve = Reserve(ground.state_dir / "reserve")
    sandboxes = Sandboxes(
        database=database,
        clock=clock,
        entropy=entropy,
        installation=ground.installation,
        backends=ground.backends,
        default_backend=ground.default_backend,
        profiles=profiles,
        limits=limits,
        wake=wake,
        log=log,
        reserve=reserve,
    )
    snapshots = Snapshots(
        database=database, clock=clock, entropy=entropy, sandboxes=sandboxes, limits=limits, wake=wake, log=log
    )
    jobs = Jobs(
        database=database,
        clock=clock,
        entropy=entropy,
        profiles=profiles,
        sandboxes=sandboxes,
        blobs=ground.blobs,
        outputs=ground.outputs,
        seal=ground.seal,
        redaction=ground.redaction,
        limits=limits,
        wake=wake,
        log=log,
        reserve=reserve,
        state_dir=ground.state_dir,
    )
    sessions = Sessions(
        database=database,
        clock=clock,
        entropy=entropy,
        guests=guests,
        profiles=profiles,
        blobs=ground.blobs,
        outputs=ground.outputs,
        seal=ground.seal,
        limits=limits,
        wake=wake,
        log=log,
        scope=scope,
    )
    networks = {name: entry.network for name, entry in ground.backends.items()}
    interpreter = Interpreter(database=database, clock=clock, backends=backends, networks=networks, limits=limits)
    sandbox_reconciler = SandboxReconciler(
        database=database,
        clock=clock,
        installation=ground.installation,
        backends=backends,
        networks=networks,
        interpreter=interpreter,
        limits=limits,
        wake=wake,
        scope=scope,
    )
    job_reconciler = JobReconciler(
        database=database,
        clock=clock,
        backends=backends,
        jobs_service=jobs,
        sandboxes_service=sandboxes,
        guests=guests,
        limits=limits,
        wake=wake,
        scope=scope,
    )
    reconciler = Reconciler(
        clock=clock,
        sandboxes=sandbox_reconciler,
        jobs=job_reconciler,
        limits=limits,
        wake=wake,
        reserve=reserve,
    )
    return Core(
        events=log,
        wake=wake,
        guests=guests,
        sandboxes=sandboxes,
        snapshots=snapshots,
        jobs=jobs,
        sessions=sessions,
        reconciler=reconciler,
        sandbox_reconciler=sandbox_reconciler,
        job_reconciler=job_reconciler,
    )


def build(
    settings: Settings,
    ground: Ground,
    profiles: Profiles,
    scope: TaskScope,
    reload: Callable[[], Awaitable[list[str]]],
) -> Daemon:
    """A whole daemon on `ground`, not yet started."""
    limits = limits_of(settings)
    core = build_core(ground, profiles, limits, scope)
    templates = Templates(database=ground.database, clock=ground.clock, builder=ground.builder, scope=scope)
    ground.entrance.open(core.sessions.serve)
    guest_socket = ground.guest_dir / "guest.sock"
    health = Health(
        database=ground.database,
        clock=ground.clock,
        installation=ground.installation,
        backends=ground.backends,
        default_backend=ground.default_backend,
        profiles=profiles,
        templates=templates,
        reconciler=core.reconciler,
        limits=limits,
        state_dir=ground.state_dir,
        started_at=ground.clock.now(),
        subnet=ground.subnet,
        listeners=(str(settings.socket), str(guest_socket)),
    )
    services = Services(
        sandboxes=core.sandboxes,
        snapshots=core.snapshots,
        jobs=core.jobs,
        templates=templates,
        profiles=profiles,
        events=core.events,
        blobs=ground.blobs,
        guests=core.guests,
        health=health,
        reload=reload,
    )
    api = ApiServer(
        services=services,
        socket=settings.socket,
        group=settings.socket_group,
        only_user=rootless.user_id() if rootless.inside() else None,
        clock=ground.clock,
        entropy=ground.entropy,
        drain_s_max=settings.durations.drain_s_max,
    )
    retention = Retention(
        database=ground.database, clock=ground.clock, blobs=ground.blobs, outputs=ground.outputs, limits=limits
    )
    return Daemon(
        services=services,
        sessions=core.sessions,
        reconciler=core.reconciler,
        retention=retention,
        templates=templates,
        api=api,
        guest_server=GuestServer(sessions=core.sessions, socket=guest_socket, scope=scope),
    )
