"""Guests: grants given out, links that live, and what a guest is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.model.grant import GRANT_TTL_S, Grant
from agentlab.model.ids import JobId, SandboxId
from agentlab.model.job import Job
from agentlab.plan.jobs import LinkSeen
from agentlab.services.limits import Limits

GUEST_CONNECT_S = 30.0  # from the launch of a guest program to its first hello


@dataclass(slots=True)
class _Link:
    """One job's link, as far as this daemon process knows."""

    last_seen: float  # monotonic
    stop: Callable[[str], None] | None = None  # of the live session
    close: Callable[[], None] | None = None
    launched_at: float | None = None  # monotonic; None once redeemed or failed
    told_stop: bool = False


class Guests:
    """The registry of guest links.  Forgets everything with the process: silence is counted from its start."""

    def __init__(self, *, clock: Clock, entropy: Entropy, limits: Limits) -> None:
        self._clock, self._entropy, self._limits = clock, entropy, limits
        self._started = clock.monotonic()
        self._links: dict[JobId, _Link] = {}

    def new_grant(self, job: Job, sandbox: SandboxId, rescue: bool) -> tuple[str, Grant]:
        """A fresh token and the row that remembers its hash."""
        token = self._entropy.token(32)
        expires_at = self._clock.now() + GRANT_TTL_S
        grant = Grant(token_hash=hashed(token), sandbox=sandbox, job=job.id, rescue=rescue, expires_at=expires_at)
        return token, grant

    def launched(self, job: JobId) -> None:
        """A guest program is being started for this job."""
        self._link(job).launched_at = self._clock.monotonic()

    def launch_failed(self, job: JobId) -> None:
        """It could not be started."""
        self._link(job).launched_at = None

    def connected(self, job: JobId, stop: Callable[[str], None], close: Callable[[], None], told_stop: bool) -> None:
        """A guest is being welcomed; an older session of the same job is closed."""
        link = self._link(job)
        if link.close is not None:
            link.close()
        link.stop, link.close, link.launched_at, link.told_stop = stop, close, None, told_stop
        link.last_seen = self._clock.monotonic()

    def disconnected(self, job: JobId, close: Callable[[], None]) -> None:
        """The session that was registered with `close` has ended."""
        link = self._links.get(job)
        if link is not None and link.close is close:
            link.stop = link.close = None

    def heard(self, job: JobId) -> None:
        """Something arrived from the guest, or its silence is known to mean nothing."""
        self._link(job).last_seen = self._clock.monotonic()

    def ended(self, job: JobId) -> None:
        """The job is final: its link is closed and forgotten."""
        link = self._links.pop(job, None)
        if link is not None and link.close is not None:
            link.close()

    def link_seen(self, job: Job) -> LinkSeen:
        """The link as planning sees it."""
        now, link = self._clock.monotonic(), self._links.get(job.id)
        silent_s = now - (self._started if link is None else link.last_seen)
        launched_at = None if link is None else link.launched_at
        return LinkSeen(
            connected=link is not None and link.stop is not None and silent_s <= self._limits.job.link_lost_s,
            silent_s=silent_s,
            grant_open=launched_at is not None and now - launched_at < GUEST_CONNECT_S,
            bootstrapped=job.running_at is not None,
        )

    def tell_stop(self, job: Job) -> None:
        """Pass a recorded wish to stop on to a connected guest, once per connection."""
        link = self._links.get(job.id)
        if job.stop_reason is not None and link is not None and link.stop is not None and not link.told_stop:
            link.told_stop = True
            link.stop(job.stop_reason)

    def _link(self, job: JobId) -> _Link:
        return self._links.setdefault(job, _Link(last_seen=self._clock.monotonic()))


def hashed(token: str) -> str:
    """How tokens and credentials are kept."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
