"""The door for guests that come over the network: TCP, TLS, and nothing said to whoever does not knock rightly."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from agentlab.backends.interface import Unavailable
from agentlab.backends.link.crowd import Crowd, Waiting
from agentlab.backends.link.doorstep import Doorstep
from agentlab.base.clock import Clock, sleep
from agentlab.base.pace import Pace
from agentlab.base.tasks import TaskScope
from agentlab.base.text import one_line
from agentlab_guest.strict import Malformed

log = logging.getLogger(__name__)

BACKLOG = 512
HANDSHAKE_S_MAX = 10.0
ENTER_S_MAX = 15.0  # from the connection to being let in
CLOSE_S_MAX = 1.0  # for the other end to agree that TLS is over
DEAD_S = 30  # without a sign of life from the guest's machine
SHORT_OF_FILES_S = 0.5  # before another is taken, when the daemon has too many files open
_PROBES = 3
REMARKS_PER_S_MAX, REMARKS_BURST_MAX = 1.0, 20
Afterwards = Callable[[], Awaitable[None]]
Enter = Callable[[Doorstep], Awaitable[Afterwards | None]]


class Listener:
    """Takes connections from `start` to `stop`; each is a child of its own scope.

    `enter` decides about a connection within `enter_s_max`, and returns what to do with it afterwards, or None: end it.
    """

    def __init__(self, *, context: ssl.SSLContext, enter: Enter, enter_s_max: float, clock: Clock) -> None:
        self._context, self._enter, self._enter_s_max = context, enter, enter_s_max
        self._crowd = Crowd(clock)
        self._remarks = Pace(clock, per_s=REMARKS_PER_S_MAX, burst=REMARKS_BURST_MAX)
        self._scope = TaskScope("guest listener")
        self._socket: socket.socket | None = None
        self._untaken: set[socket.socket] = set()  # whose task has not begun; afterwards asyncio closes them

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes any.  Unavailable if that cannot be."""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.listen(BACKLOG)
            made.setblocking(False)
        except OSError as error:
            made.close()
            cause = f"guests cannot be listened for at {host}:{port}: {error.strerror or error}"
            raise Unavailable(cause, "Choose an address of this machine and a port that is free.") from error
        self._socket = made
        self._scope.start(self._accept(made), "accept")

    async def stop(self) -> None:
        """Take no more, and end what is there."""
        await self._scope.close()
        while self._untaken:
            self._untaken.pop().close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                made, peer = await loop.sock_accept(listener)
            except OSError as error:
                self._remark("a guest's connection could not be taken", "", error)
                await sleep(SHORT_OF_FILES_S)
                continue
            address = str(peer[0])
            if not self._crowd.may_come(address):
                self._remark("guests connect too often", address, None)
                made.close()
                continue
            self._untaken.add(made)
            self._scope.start(self._meet(made, address), "guest")

    async def _meet(self, made: socket.socket, address: str) -> None:
        self._untaken.discard(made)
        task = asyncio.current_task()
        assert task is not None
        waiting = Waiting(address, task.cancel)
        self._crowd.enter(waiting)
        step = Doorstep()
        goes_on: Afterwards | None = None
        try:
            async with asyncio.timeout(self._enter_s_max):
                await self._secured(made, step)
                goes_on = await self._enter(step)
        except (OSError, Malformed) as error:  # also TLS that failed, and a time-out
            self._remark("a connection was not from a guest", address, error)
        finally:
            self._crowd.left(waiting)
            if goes_on is None:
                step.close()
        if goes_on is not None:
            await goes_on()

    async def _secured(self, made: socket.socket, step: Doorstep) -> None:
        _keep_alive(made)
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: step,
            made,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_S_MAX,
            ssl_shutdown_timeout=CLOSE_S_MAX,
        )

    def _remark(self, phrase: str, address: str, error: Exception | None) -> None:
        if self._remarks.allows():
            cause = one_line(str(error) or type(error).__name__)
            log.info(phrase, extra={"address": address, "cause": cause, "waiting": len(self._crowd)})


def _keep_alive(made: socket.socket) -> None:
    """Notice a guest whose machine went without a word."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_S // 2)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_S // 2 // _PROBES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_S * 1000)
