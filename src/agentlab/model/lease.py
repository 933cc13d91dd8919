"""Until when a sandbox may live."""

from __future__ import annotations

from dataclasses import dataclass, replace

LEASE_TTL_S_MAX = 30 * 86400
LEASE_WARNING_S = (3600, 600, 60)  # how long before the end a warning event is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Renewable; the sandbox is destroyed once it ends."""

    until: float  # seconds since the epoch, by Clock.now()

    def renewed(self, now: float, ttl_s: float) -> Lease:
        """This lease, reaching at least `ttl_s` (at most LEASE_TTL_S_MAX) beyond `now`; never shortened."""
        return replace(self, until=max(self.until, round(now + min(ttl_s, LEASE_TTL_S_MAX), 3)))

    def warning_due(self, now: float) -> int | None:
        """The smallest warning threshold (seconds before the end) that has been crossed, or None."""
        crossed = [threshold for threshold in LEASE_WARNING_S if now >= self.until - threshold]
        return min(crossed) if crossed and now < self.until else None
