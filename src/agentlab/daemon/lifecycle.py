"""Start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from agentlab import __version__
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.base.files import exclusive_lock
from agentlab.base.redaction import Redaction
from agentlab.base.tasks import TaskScope
from agentlab.daemon import rootless
from agentlab.daemon.ground import Ground, open_ground, prepare_directories
from agentlab.daemon.notify import notify
from agentlab.daemon.settings import Settings
from agentlab.errors import DaemonAlreadyRunning
from agentlab.model import event as facts
from agentlab.services.profiles import Profiles
from agentlab.services.watch import watch
from agentlab.store import sandboxes

if TYPE_CHECKING:
    from agentlab.daemon.build import Daemon

log = logging.getLogger(__name__)

LOCK = "agentlabd.lock"
OUTDATED_IMAGE_KEPT_S = 86400.0


async def serve(settings: Settings, redaction: Redaction, started_monotonic: float | None = None) -> None:
    """Run a daemon until SIGTERM or SIGINT.  Raises what `open_ground` does, and DaemonAlreadyRunning."""
    prepare_directories(settings)
    lock = settings.state_dir / LOCK
    try:
        with exclusive_lock(lock):
            rootless.confirm(settings)
            try:
                await _serve_locked(settings, redaction, started_monotonic)
            finally:
                rootless.leave(settings)
    except BlockingIOError as error:
        holder = lock.read_text().strip() or "unknown"
        raise DaemonAlreadyRunning(pid=holder, path=settings.state_dir) from error


async def _serve_locked(settings: Settings, redaction: Redaction, started_monotonic: float | None) -> None:
    profiles = Profiles(settings.profile_dirs)
    profiles.load()
    outbound = partial(rootless.outbound, settings)
    # What serves requests takes a tenth of a second to import; the preflight waits for programs meanwhile.
    opening = open_ground(settings, SystemClock(), SystemEntropy(), redaction, outbound)
    ground, build = await asyncio.gather(opening, asyncio.to_thread(_builder))
    empty = False
    try:
        async with TaskScope("daemon") as scope:
            stopping = asyncio.Event()
            daemon: Daemon

            async def reload() -> list[str]:
                notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
                problem = profiles.reload()
                notify("READY=1")
                return [] if problem is None else [str(problem)]

            daemon = build(settings, ground, profiles, scope, reload)
            _on_signals(scope, stopping, reload)
            await _start(daemon, ground, settings, scope)
            if started_monotonic is not None:
                took_ms = round((time.monotonic() - started_monotonic) * 1000)
                log.info("ready", extra={"took_ms": took_ms})
            gc.freeze()  # modules and settings stay: no collection needs to look at them again
            gc.enable()
            notify(f"READY=1\nSTATUS=serving on {settings.socket}")
            await stopping.wait()
            notify("STOPPING=1")
            await _stop(daemon, ground)
            empty = not ground.database.read(sandboxes.living)
    finally:
        await ground.close(remove_network=empty)


def _builder() -> Callable[..., Daemon]:
    from agentlab.daemon.build import build

    return build


async def _start(daemon: Daemon, ground: Ground, settings: Settings, scope: TaskScope) -> None:
    await daemon.templates.reconcile()
    await daemon.guest_server.start()
    await daemon.api.start()
    scope.start(daemon.reconciler.run(), "reconcile")
    scope.start(daemon.retention.run(), "retention")
    if any(entry.remote for entry in ground.backends.values()):
        scope.start(watch(ground.backends), "watch backends")
    # Images of an earlier guest program, but not while somebody may be going back to it.
    scope.start(ground.images.prune(kept_s=OUTDATED_IMAGE_KEPT_S), "prune images")
    await daemon.services.events.append(facts.DaemonStarted(subject="daemon", version=__version__), ground.clock.now())
    services = daemon.services
    log.info("agentlabd serves", extra={"version": __version__, "installation": ground.installation})
    log.info("settings", extra={"source": settings.source, "state_dir": str(settings.state_dir)})
    log.info("listener", extra={"socket": str(settings.socket), "for": "clients"})
    log.info("listener", extra={"socket": str(ground.guest_dir / "guest.sock"), "for": "guests"})
    log.info("network", extra={"subnet": ground.subnet})
    for name, entry in ground.backends.items():
        can = " ".join(sorted(entry.probe.capabilities))
        log.info("backend", extra={"backend": name, "usable": entry.probe.usable, "can": can} | dict(entry.probe.facts))
        for sentence in entry.probe.missing_guarantees:
            log.warning("missing guarantee", extra={"backend": name, "guarantee": sentence})
        for each in entry.probe.findings if entry.remote else ():
            if not each.ok:
                log.warning("finding", extra={"backend": name, "what": each.name, "detail": each.detail})
    log.info("profiles", extra={"names": " ".join(profile.name for profile in services.profiles.list())})
    for template in services.templates.list():
        log.info("template", extra={"template": template.name, "state": template.state})


async def _stop(daemon: Daemon, ground: Ground) -> None:
    log.info("draining")
    daemon.sessions.draining = True
    daemon.services.events.close()
    await daemon.api.stop()
    await daemon.guest_server.stop()
    await daemon.reconciler.drain()
    await daemon.services.events.append(facts.DaemonStopped(subject="daemon"), ground.clock.now())
    await ground.database.flush()
    log.info("stopped", extra={"sandboxes_left_running": len(ground.database.read(sandboxes.living))})


def _on_signals(
    scope: TaskScope, stopping: asyncio.Event, reload: Callable[[], Coroutine[Any, Any, list[str]]]
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: scope.start(reload(), "reload"))
