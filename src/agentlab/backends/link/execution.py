"""A command that runs in a VM, seen from the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agentlab.backends.interface import Refused, Unavailable
from agentlab.backends.link.channels import STREAM_BYTES_HIGH, STREAMS, Channel
from agentlab.base.text import one_line
from agentlab_guest import mux, orders

START_S_MAX = 30.0
KILL_S_MAX = 10.0
KILLED = 137  # 128 + SIGKILL
_END_OF_INPUT = b"\x04"  # what a terminal takes for the end, at the beginning of a line


class VmExecution:
    """See `Execution`.  Credit bounds what waits for its reader, so that a fast program waits for a slow one."""

    def __init__(self, channel: Channel, *, terminal: bool) -> None:
        self._channel, self._terminal = channel, terminal
        self._status: int | None = None
        self._input_closed = self._ended = False

    async def started(self) -> None:
        """Return once the program runs.  Refused or Unavailable if it cannot."""
        order = await self._next_order()
        if isinstance(order, orders.Failed):
            raise failure(order)
        if not isinstance(order, orders.Started):
            raise Unavailable("the guest program answered something else than was asked")

    async def write(self, data: bytes) -> None:
        if self._input_closed or self._unheard():
            raise BrokenPipeError("the program no longer reads")
        self._channel.write(data)
        while self._channel.queued >= STREAM_BYTES_HIGH:
            await self._channel.change()
            if self._unheard():
                raise BrokenPipeError("the program no longer reads")

    async def close_input(self) -> None:
        if self._terminal:
            if not self._unheard():
                self._channel.write(_END_OF_INPUT)
        elif not self._input_closed:
            self._input_closed = True
            self._channel.end()

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        channel = self._channel
        while True:
            while (found := channel.take()) is not None:
                yield STREAMS[found[0]], found[1]
            if {mux.END, mux.ERR_END} <= channel.ended or self._ended:
                return
            if channel.closed:
                self._require_link()
                return
            await channel.change()

    async def wait(self) -> int:
        while self._status is None:
            order = await self._next_order()
            if isinstance(order, orders.Exited):
                self._status = order.status
        return self._status

    async def resize(self, rows: int, columns: int) -> None:
        if self._terminal:
            self._channel.order(orders.Resize(rows=rows, columns=columns))

    async def signal(self, number: int) -> None:
        self._look()
        if self._status is None:
            self._channel.order(orders.Signal(number=number))

    async def end(self) -> None:
        """Kill the program if it still runs, and let go of everything.  Unavailable if the guest does not answer."""
        self._ended = True
        self._look()
        self._channel.abort()
        try:
            async with asyncio.timeout(KILL_S_MAX):
                while not self._channel.closed:
                    await self._channel.change()
        except TimeoutError:
            raise Unavailable("a command could not be ended", "It may be paused: resume the sandbox.") from None
        self._look()
        if self._status is None:
            self._status = KILLED

    def _unheard(self) -> bool:
        self._look()
        return self._channel.deaf or self._status is not None

    def _look(self) -> None:
        """Take notice of an end that was told."""
        for order in self._channel.orders:
            if isinstance(order, orders.Exited):
                self._status = order.status

    async def _next_order(self) -> orders.Order:
        channel = self._channel
        while not channel.orders:
            if channel.closed:
                self._require_link()
                raise Unavailable("the guest program ended the command without telling how")
            await channel.change()
        return channel.orders.popleft()

    def _require_link(self) -> None:
        if self._channel.cause:
            raise Unavailable(f"the control link to the guest program broke: {self._channel.cause}")


def failure(order: orders.Failed) -> Refused | Unavailable:
    """What the guest could not do, as the backend's error."""
    cause = one_line(order.cause, 1000)
    if order.code == "refused":
        return Refused(cause, "See the sandbox's console; name a user and a program that the template has.")
    return Unavailable(cause, "See the sandbox's console.")
