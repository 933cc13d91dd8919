"""How the daemon and its machine are doing, as observed."""

from __future__ import annotations

import asyncio
import os
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentlab import __version__
from agentlab.base.clock import Clock
from agentlab.base.files import free_bytes
from agentlab.base.units import format_bytes
from agentlab.model.finding import Finding
from agentlab.model.ids import InstallationId
from agentlab.services.limits import Limits
from agentlab.services.profiles import Profiles
from agentlab.services.reconcile.loop import Reconciler
from agentlab.services.sandboxes import BackendEntry
from agentlab.services.templates import Templates
from agentlab.store import events, jobs, sandboxes
from agentlab.store.database import Database


class Health:
    """Answers `agentlab status` and `agentlab doctor`."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        installation: InstallationId,
        backends: Mapping[str, BackendEntry],
        default_backend: str,
        profiles: Profiles,
        templates: Templates,
        reconciler: Reconciler,
        limits: Limits,
        state_dir: Path,
        started_at: float,
        subnet: str,
        listeners: tuple[str, ...],
    ) -> None:
        self._database, self._clock, self._installation = database, clock, installation
        self._default_backend = default_backend
        self._backends, self._profiles, self._templates = backends, profiles, templates
        self._reconciler, self._limits, self._state_dir = reconciler, limits, state_dir
        self._started_at, self._subnet, self._listeners = started_at, subnet, listeners

    def status(self) -> dict[str, Any]:
        """What runs here now; cheap."""
        living, active = self._database.read(lambda tx: (sandboxes.living(tx), jobs.active(tx)))
        return {
            "version": __version__,
            "installation": self._installation,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "uptime_s": round(self._clock.now() - self._started_at, 1),
            "listeners": list(self._listeners),
            "state_dir": str(self._state_dir),
            "subnet": self._subnet,
            "sandboxes": dict(sorted(Counter(row.state.value for row in living).items())),
            "jobs": dict(sorted(Counter(row.state.value for row in active).items())),
            "jobs_running_max": self._limits.jobs_running_max,
            "backends": [
                {
                    "name": name,
                    "usable": entry.probe.usable,
                    "capabilities": sorted(entry.probe.capabilities),
                    "missing_guarantees": list(entry.probe.missing_guarantees),
                    "facts": dict(entry.probe.facts),
                }
                for name, entry in self._backends.items()
            ],
            "profiles": [profile.name for profile in self._profiles.list()],
            "templates": [{"name": row.name, "state": row.state} for row in self._templates.list()],
            "disk_free_bytes": free_bytes(self._state_dir),
            "memory_bytes": _resident_bytes(),
            "last_event": self._database.read(events.last_seq),
            "reconcile_ticks": self._reconciler.ticks,
            "reconcile_last_ms": round(self._reconciler.last_tick_s * 1000, 1),
        }

    async def doctor(self) -> list[Finding]:
        """Look at the machine again, now; changes nothing."""
        probes = await asyncio.gather(*(entry.backend.probe() for entry in self._backends.values()))
        found = [
            Finding(
                name="system",
                ok=True,
                detail=f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs",
            ),
            self._disk(),
        ]
        for (name, entry), probe in zip(self._backends.items(), probes, strict=True):
            entry.probe = probe
            for each in probe.findings:
                named = f"{name}: {each.name}"
                fatal = each.fatal and name == self._default_backend  # without another one work goes on
                found.append(Finding(name=named, ok=each.ok, detail=each.detail, remedy=each.remedy, fatal=fatal))
            found += [
                Finding(
                    name=f"{name}: guarantee",
                    ok=False,
                    fatal=False,
                    detail=sentence,
                    remedy="docs/concepts/proxmox.md" if entry.remote else "docs/operating/rootless.md",
                )
                for sentence in probe.missing_guarantees
            ]
        networks = {id(entry.network): entry.network for entry in self._backends.values()}
        for findings in await asyncio.gather(*(network.probe() for network in networks.values())):
            found += findings
        found += [self._template(row.name, row.state) for row in self._templates.list()]
        return found

    def _disk(self) -> Finding:
        free, needed = free_bytes(self._state_dir), self._limits.disk_reserve_bytes
        return Finding(
            name="disk",
            ok=free >= needed,
            detail=f"{format_bytes(free)} free at {self._state_dir}; {format_bytes(needed)} are kept in reserve",
            remedy="" if free >= needed else "Free some space, or lower the setting limits.disk_reserve_bytes.",
        )

    def _template(self, name: str, state: str) -> Finding:
        ready = state == "ready"
        remedy = "" if ready else f"agentlab template build {name}"
        return Finding(name=f"template {name}", ok=ready, fatal=False, detail=state, remedy=remedy)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
