"""A daemon's end of the guest link for tests: a thread that speaks `DaemonSide` over a real Unix socket."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentlab_guest import protocol as p

PIECE = 1 << 20


class GuestPeer:
    """Gives one job to one guest and keeps what it brings.  Use as a context manager.

    `cut_after` closes the first connections after so many received bytes, one value per connection; `deaf` makes it
    accept no connection.  All public state may be read from the test's thread at any time.
    """

    def __init__(self, socket_path: Path, bootstrap: bytes, blobs: dict[str, bytes] | None = None) -> None:
        self.path, self.bootstrap, self.blobs = socket_path, bootstrap, blobs or {}
        self.grant, self.credential = "grant-" + os.urandom(8).hex(), "credential-" + os.urandom(8).hex()
        self.cut_after: list[int] = []
        self.refuse_artifact: Callable[[p.ArtifactOffer], str | None] = lambda offer: None
        self.hold_acks = False  # receive, but acknowledge nothing
        self.keep_content = True
        self.output = bytearray()
        self.events: list[p.Event] = []
        self.artifacts: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.report: p.Report | None = None
        self.connections = 0
        self.hellos: list[p.Hello] = []
        self.errors: list[str] = []
        self.stop_reason: str | None = None
        self.accepted = False
        self.heartbeats = 0
        self.changed = threading.Condition()
        self._partial: dict[tuple[str, str], bytearray] = {}
        self._connection: socket.socket | None = None
        self._side = p.DaemonSide()
        self._lock = threading.Lock()
        self._closing = False
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> GuestPeer:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self.deafen()

    def listen(self) -> None:
        """Take connections, also again after `deafen`."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def deafen(self) -> None:
        """Be gone: no socket, no connection."""
        self.path.unlink(missing_ok=True)
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End the connection."""
        connection = self._connection
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stop(self, reason: str) -> None:
        """Ask the guest to end the job."""
        self.stop_reason = reason
        with self._lock:
            if self._side.welcome is not None:
                self._write(self._side.send(p.Stop(reason=reason)))

    def wait(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        """Return when `condition` holds.  AssertionError after `timeout_s`."""
        with self.changed:
            ok = self.changed.wait_for(condition, timeout_s)
        assert ok, f"timed out; output {bytes(self.output[-500:])!r}, events {self.events[-5:]}, errors {self.errors}"

    def phases(self) -> list[str]:
        """The phases that were told, in order."""
        return [event.phase for event in self.events]

    def _serve(self, listener: socket.socket) -> None:
        while not self._closing:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connection = connection
            self.connections += 1
            limit = self.cut_after.pop(0) if self.cut_after else None
            try:
                self._converse(connection, limit)
            except p.ProtocolError as error:
                self.errors.append(str(error))
            except OSError:
                pass
            finally:
                connection.close()

    def _converse(self, connection: socket.socket, limit: int | None) -> None:
        self._side = p.DaemonSide()
        self._wants: dict[int, p.ArtifactOffer] = {}
        self._hashes: dict[int, tuple[Any, list[int]]] = {}
        received = 0
        while data := connection.recv(PIECE if limit is None else min(PIECE, limit - received)):
            received += len(data)
            messages = self._side.receive(data)
            with self._lock:
                for message in messages:
                    self._answer(message)
            with self.changed:
                self.changed.notify_all()
            if limit is not None and received >= limit:
                return

    def _write(self, buffers: list[p.Data]) -> None:
        assert self._connection is not None
        for buffer in buffers:
            self._connection.sendall(buffer)

    def _say(self, message: p.Message) -> None:
        self._write(self._side.send(message))

    def _answer(self, message: p.Message) -> None:
        match message:
            case p.Hello():
                self._welcome(message)
            case p.Accepted():
                self.accepted = True
            case p.Output(data=data):
                self.output += data
                if not self.hold_acks:
                    self._say(p.OutputAck(offset=len(self.output)))
            case p.Event():
                self.events.append(message)
                if not self.hold_acks:
                    self._say(p.EventAck(seq=message.seq))
            case p.Heartbeat():
                self.heartbeats += 1
                self._say(p.HeartbeatAck())
            case p.BlobWant(digest=digest, offset=offset):
                self._blob(digest, offset)
            case p.ArtifactOffer():
                self._offer(message)
            case p.ArtifactChunk(id=number, data=data):
                self._chunk(number, data)
            case p.ReportMessage(data=data):
                self.report = p.parse_report(data)
                self._say(p.ReportAck())

    def _welcome(self, hello: p.Hello) -> None:
        self.hellos.append(hello)
        by_grant = hello.grant == self.grant and not self.accepted
        if not by_grant and hello.credential != self.credential:
            self._say(p.Refused(code="grant-unknown", message="no such grant"))
            return
        self._say(
            p.Welcome(
                protocol=p.agreed_protocol(hello),
                output_acked=len(self.output),
                event_acked=len(self.events),
                reported=self.report is not None,
                stop=self.stop_reason,
                credential=self.credential if by_grant else None,
                data=self.bootstrap if by_grant else b"",
            )
        )

    def _blob(self, digest: str, offset: int) -> None:
        blob = self.blobs.get(digest)
        if blob is None:
            self._say(p.BlobMissing(digest=digest, reason="not here"))
            return
        while True:
            data = blob[offset : offset + p.CHUNK_BYTES_MAX]
            self._say(p.BlobChunk(digest=digest, offset=offset, total=len(blob), data=data))
            offset += len(data)
            if offset >= len(blob):
                return

    def _offer(self, offer: p.ArtifactOffer) -> None:
        if (reason := self.refuse_artifact(offer)) is not None:
            self._say(p.ArtifactRefused(id=offer.id, reason=reason))
            return
        if self.digests.get(offer.name) == offer.digest:
            self._say(p.ArtifactStored(id=offer.id))
            return
        partial = self._partial.setdefault((offer.name, offer.digest), bytearray())
        self._wants[offer.id] = offer
        self._hashes[offer.id] = (hashlib.sha256(), [0])
        if len(partial) == offer.bytes:
            self._store(offer)
        else:
            self._say(p.ArtifactWant(id=offer.id, offset=len(partial)))

    def _chunk(self, number: int, data: p.Data) -> None:
        offer = self._wants[number]
        if not self.keep_content:  # hash only: for measuring, without cuts
            state, received = self._hashes[number]
            state.update(data)
            received[0] += len(data)
            if received[0] == offer.bytes:
                assert state.hexdigest() == offer.digest
                self.digests[offer.name] = offer.digest
                self._say(p.ArtifactStored(id=number))
            return
        partial = self._partial[offer.name, offer.digest]
        partial += data
        if len(partial) == offer.bytes:
            self._store(offer)

    def _store(self, offer: p.ArtifactOffer) -> None:
        content = bytes(self._partial[offer.name, offer.digest])
        if hashlib.sha256(content).hexdigest() != offer.digest:
            self._say(p.ArtifactRefused(id=offer.id, reason="its digest is wrong"))
            return
        self.artifacts[offer.name], self.kinds[offer.name] = content, offer.kind
        self.digests[offer.name] = offer.digest
        self._say(p.ArtifactStored(id=offer.id))


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Poll until `condition` holds.  AssertionError after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.01)
