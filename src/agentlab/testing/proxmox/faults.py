"""What goes wrong between a client and the cluster: by chance, from a seed, or once, where a test wants it."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

from agentlab.base.entropy import Entropy

FORGIVEN = re.compile(r"/access/ticket$")  # a set-up that cannot even log in teaches nothing


class Fault(enum.Enum):
    """One misfortune of one call."""

    REFUSED = "the connection is closed before anything is read"
    RESET = "the connection is closed after the request was read; nothing was done"
    REPLY_LOST = "it was done; the answer never arrives"
    PROXY = "596 instead of the call"
    PROXY_LATE = "it was done; the answer is 596"
    DELAY = "it takes longer"
    TASK_DIES = "the task that it starts ends with `unexpected status` and has done nothing"
    TASK_DIES_LATE = "the task that it starts does its work and ends with `unexpected status`"


@dataclass(slots=True)
class Faults:
    """`rates` maps a fault to its chance per call.  `planned` faults come first, each once.

    Chances are drawn from the cluster's entropy, so that one seed is one history.
    """

    rates: dict[Fault, float] = field(default_factory=dict)
    delay_s: tuple[float, float] = (0.1, 2.0)
    planned: list[tuple[str, re.Pattern[str], Fault]] = field(default_factory=list)
    met: list[tuple[str, str, Fault]] = field(default_factory=list)

    def plan(self, method: str, path: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` calls of `method` whose path matches the expression `path` meet `fault`."""
        self.planned.extend([(method, re.compile(path), fault)] * times)

    def draw(self, method: str, path: str, entropy: Entropy) -> Fault | None:
        """What this call meets."""
        fault = self._drawn(method, path, entropy)
        if fault is not None:
            self.met.append((method, path, fault))
        return fault

    def _drawn(self, method: str, path: str, entropy: Entropy) -> Fault | None:
        for index, (verb, pattern, fault) in enumerate(self.planned):
            if verb == method and pattern.search(path):
                del self.planned[index]
                return fault
        if not self.rates or FORGIVEN.search(path):
            return None
        left = entropy.fraction()
        for fault, chance in self.rates.items():
            left -= chance
            if left < 0:
                return fault
        return None
