"""One thread that waits: descriptors, timers, child processes."""

from __future__ import annotations

import heapq
import os
import select
import time
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READ, WRITE, GONE, EDGE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR, select.EPOLLET
EVENTS_MAX = 64


class Timer:
    """A call to come; `cancel` it, or let it happen."""

    __slots__ = ("at", "call")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not happen."""
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Reactor:
    """Calls back what was asked for; `turn` after `turn`, from one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], Any]] = {}
        self._timers: list[Timer] = []

    def watch(self, descriptor: int, mask: int, call: Callable[[int], Any]) -> None:
        """Call with the events whenever the descriptor has some of `mask`; GONE comes unasked."""
        self._epoll.register(descriptor, mask)
        self._calls[descriptor] = call

    def change(self, descriptor: int, mask: int) -> None:
        """From now on, this mask."""
        self._epoll.modify(descriptor, mask)

    def forget(self, descriptor: int) -> None:
        """No more calls.  Before the descriptor is closed; quiet if it is not watched."""
        if self._calls.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call once, later."""
        timer = Timer(time.monotonic() + delay_s, call)
        heapq.heappush(self._timers, timer)
        return timer

    def child(self, pid: int, ended: Callable[[int], Any]) -> None:
        """Tell the exit status of a child of ours, 128 + n for signal n, once it has ended; it is reaped then."""
        descriptor = os.pidfd_open(pid)

        def reap(_: int) -> None:
            self.forget(descriptor)
            os.close(descriptor)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            ended(128 - status if status < 0 else status)

        self.watch(descriptor, READ, reap)

    def turn(self) -> None:
        """Wait for something, and call what it concerns."""
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        wait_s = None if not self._timers else max(0.0, self._timers[0].at - time.monotonic())
        for descriptor, mask in self._epoll.poll(wait_s, EVENTS_MAX):
            if (call := self._calls.get(descriptor)) is not None:
                call(mask)
        while self._timers and self._timers[0].at <= time.monotonic():
            timer = heapq.heappop(self._timers)
            if timer.call is not None:
                timer.call()
