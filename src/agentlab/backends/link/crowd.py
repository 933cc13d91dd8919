"""Connections that nobody has let in yet: how many there may be, and who has to go for the next one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from agentlab.base.clock import Clock
from agentlab.base.pace import Pace

WAITING_MAX = 128  # each costs memory for TLS
WAITING_PER_ADDRESS_MAX = 32  # guests may share an address, behind a router
COMING_PER_S_MAX = 50.0  # from one address in the long run: each costs a millisecond of the daemon's time
COMING_BURST_MAX = 200  # after a restart, all guests behind a router come at once
ADDRESSES_MAX = 4096  # whose pace is remembered


class Waiting:
    """One connection at the door; `leave` ends it."""

    __slots__ = ("address", "leave")

    def __init__(self, address: str, leave: Callable[[], object]) -> None:
        self.address, self.leave = address, leave


class Crowd:
    """Who waits.  A newcomer never waits for who is slow: the oldest of the most crowded address leaves for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[str, list[Waiting]] = {}
        self._count = 0
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def may_come(self, address: str) -> bool:
        """Whether one more connection from there is taken now."""
        pace = self._paces.pop(address, None)
        if pace is None:
            pace = Pace(self._clock, per_s=COMING_PER_S_MAX, burst=COMING_BURST_MAX)
        self._paces[address] = pace
        if len(self._paces) > ADDRESSES_MAX:
            self._paces.popitem(last=False)  # who was silent longest
        return pace.allows()

    def enter(self, waiting: Waiting) -> None:
        """One more waits; others may have to leave."""
        own = self._waiting.setdefault(waiting.address, [])
        if len(own) >= WAITING_PER_ADDRESS_MAX:
            self._push_out(own)
        elif self._count >= WAITING_MAX:
            self._push_out(max(self._waiting.values(), key=len))
        self._waiting.setdefault(waiting.address, []).append(waiting)
        self._count += 1

    def left(self, waiting: Waiting) -> None:
        """It was let in, or has gone.  Quiet if it was made to leave."""
        own = self._waiting.get(waiting.address, [])
        if waiting in own:
            self._forget(waiting)

    def _push_out(self, crowded: list[Waiting]) -> None:
        oldest = crowded[0]
        self._forget(oldest)
        oldest.leave()

    def _forget(self, waiting: Waiting) -> None:
        own = self._waiting[waiting.address]
        own.remove(waiting)
        self._count -= 1
        if not own:
            del self._waiting[waiting.address]
