"""How often something may happen: a token bucket that counts what it turned away."""

from __future__ import annotations

from agentlab.base.clock import Clock


class Pace:
    """`burst` at once, `per_s` in the long run."""

    def __init__(self, clock: Clock, *, per_s: float, burst: int) -> None:
        self._clock, self._per_s, self._burst = clock, per_s, burst
        self._tokens, self._at = float(burst), clock.monotonic()
        self._missed = 0

    def allows(self) -> bool:
        """Whether it may happen now; if not, it is counted."""
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            self._missed += 1
            return False
        self._tokens -= 1
        return True

    def missed(self) -> int:
        """How many were turned away since this was last asked."""
        missed, self._missed = self._missed, 0
        return missed
