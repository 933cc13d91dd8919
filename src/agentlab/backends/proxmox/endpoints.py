"""Which of a cluster's endpoints is asked: the last that worked; one that failed is put aside for a while."""

from __future__ import annotations

from collections.abc import Sequence

from agentlab.backends.proxmox.certificate import Endpoint
from agentlab.base.clock import Clock

ASIDE_S_MIN, ASIDE_S_MAX = 10.0, 160.0  # doubled with each failure in a row
ENDPOINTS_MAX = 32  # as many as a cluster has nodes, by its makers' advice


class Endpoints:
    """The order in which to try.  Sticky: connections are kept alive, and load balancing is not ours."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Clock) -> None:
        if not 1 <= len(set(endpoints)) <= ENDPOINTS_MAX:
            raise ValueError(f"a cluster has 1 … {ENDPOINTS_MAX} endpoints, not {len(set(endpoints))}")
        self._all, self._clock = tuple(dict.fromkeys(endpoints)), clock
        self._failures: dict[Endpoint, int] = {}
        self._aside_until: dict[Endpoint, float] = {}
        self._current = self._all[0]

    @property
    def current(self) -> Endpoint:
        """The one that worked last."""
        return self._current

    def order(self) -> list[Endpoint]:
        """The current one, then the others as they were given; those put aside last, the soonest free first."""
        now = self._clock.monotonic()
        return sorted(self._all, key=lambda each: (max(self._aside_until.get(each, 0), now), each != self._current))

    def worked(self, endpoint: Endpoint) -> None:
        """It answered, be it with an error."""
        self._current = endpoint
        self._failures.pop(endpoint, None)
        self._aside_until.pop(endpoint, None)

    def failed(self, endpoint: Endpoint) -> None:
        """It could not be reached, or is not trusted."""
        count = self._failures[endpoint] = self._failures.get(endpoint, 0) + 1
        pause = min(ASIDE_S_MIN * 2.0 ** min(count - 1, 10), ASIDE_S_MAX)
        self._aside_until[endpoint] = self._clock.monotonic() + pause
