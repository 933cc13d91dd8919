"""The guest link's socket in the guest: each connection to it becomes a channel to the daemon."""

from __future__ import annotations

import contextlib
import os
import socket

from agentlab_guest import mux
from agentlab_guest.orders import Relay
from agentlab_guest.reactor import READ
from agentlab_guest.wire import Sink, Source, Wire

BUFFER_BYTES = 1 << 20  # asked for; the kernel gives what it allows


class Relays:
    """Listens always; takes connections while the daemon is there."""

    def __init__(self, wire: Wire, path: str) -> None:
        self._wire = wire
        self._open: dict[int, _Relay] = {}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(path)
        os.chmod(path, 0o666)  # noqa: S103  # anyone may connect: the credential decides
        self._listener.listen(16)
        self._listening = False

    def begin(self) -> None:
        """The daemon is there."""
        if not self._listening and self._wire.room:
            self._listening = True
            self._wire.reactor.watch(self._listener.fileno(), READ, self._accept)

    def happened(self, kind: int, channel: int, payload: bytes) -> None:
        """Something on a relay's channel."""
        relay = self._open.get(channel)
        if relay is None:
            return
        if kind == mux.DATA:
            relay.sink.add(payload)
        elif kind == mux.END:
            relay.sink.end()
        elif kind == mux.DEAF:
            relay.source.close()
        elif kind == mux.CLOSE:
            relay.source.close()
            relay.sink.end()  # what came before is still delivered
            del self._open[channel]
            self._wire.close(channel)
            self.begin()

    def drop(self) -> None:
        """The daemon has gone: so have all connections to it, and new ones wait."""
        if self._listening:
            self._listening = False
            self._wire.reactor.forget(self._listener.fileno())
        opened, self._open = self._open, {}
        for relay in opened.values():
            relay.source.close()
            relay.sink.close()

    def _accept(self, _: int) -> None:
        try:
            made, _address = self._listener.accept()
        except OSError:
            return
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        channel = self._wire.open(Relay())
        self._open[channel] = _Relay(self._wire, channel, made.detach())
        if not self._wire.room:
            self._listening = False
            self._wire.reactor.forget(self._listener.fileno())


class _Relay:
    def __init__(self, wire: Wire, channel: int, descriptor: int) -> None:
        self.sink = Sink(wire, channel, os.dup(descriptor), _shut)
        self.source = Source(wire, channel, mux.DATA, descriptor, lambda: None)


def _shut(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as found, contextlib.suppress(OSError):
        found.shutdown(socket.SHUT_WR)
