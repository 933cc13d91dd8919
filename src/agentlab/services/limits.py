"""The named limits that the services obey; settings set them."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.plan.jobs import JobLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All durations in seconds, all sizes in bytes."""

    jobs_running_max: int = 4
    jobs_queued_max: int = 1000
    sandboxes_max: int = 200
    snapshots_max: int = 16  # of one sandbox
    forks_max: int = 16  # of one request
    reconcile_interval_s: float = 5.0
    stop_grace_s: float = 10.0
    disk_reserve_bytes: int = 1 << 30
    kept_s: float = 30 * 86400.0  # ended jobs, destroyed sandboxes, their events and artifacts
    step_tries_max: int = 3
    job: JobLimits = field(default_factory=JobLimits)
