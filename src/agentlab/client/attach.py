"""A command in a sandbox with its streams connected: a WebSocket over the daemon's Unix socket."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from agentlab.client.core import error_of, request_of
from agentlab.client.sync import connected
from agentlab.wire.attach import STDERR, STDIN, STDIN_CHUNK_BYTES, STDIN_WINDOW_BYTES, STDOUT, binary_of, text_of
from agentlab.wire.problem import from_problem
from agentlab.wire.routes import ROUTES

CONNECT_TIMEOUT_S = 30.0
READ_BYTES = 256 << 10


class Piece(NamedTuple):
    """`stdout` and `stderr` with bytes, `started` with nothing, `exit` with the status."""

    kind: Literal["started", "stdout", "stderr", "exit"]
    value: Any


class Attachment:
    """One command.  Use as a context manager: leaving it hangs up, which ends the command if it still runs.

    `fileno` is readable when `receive` has something to do.
    """

    def __init__(self, path: Path, sandbox: str, argv: list[str], **options: Any) -> None:
        """Connect and ask for the command; see wire.attach for the options.  Raises what the daemon tells."""
        self._link = connected(path, CONNECT_TIMEOUT_S)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._text, self._bytes = "", bytearray()
        self._rejected: tuple[int, bytearray] | None = None
        self._ready: deque[Piece] = deque()
        self._open, self.ended = False, False
        self.window = STDIN_WINDOW_BYTES  # how many bytes `write` may be given now
        try:
            target = request_of(ROUTES["sandboxes.attach"], {"sandbox": sandbox}).target
            self._link.sendall(self._protocol.send(Request(host="agentlab", target=target)))
            while not self._open:
                self._read()
            self._link.settimeout(None)
            self._say("start", argv=argv, **{name: value for name, value in options.items() if value is not None})
        except BaseException:
            self._link.close()
            raise

    def fileno(self) -> int:
        """For select."""
        return self._link.fileno()

    @property
    def pending(self) -> bool:
        """Whether `receive` returns at once although `fileno` may not be readable."""
        return bool(self._ready)

    def receive(self) -> list[Piece]:
        """What has arrived; waits for something.  Raises the daemon's error, ConnectionResetError when cut off."""
        if not self._ready and not self.ended:
            self._read()
        pieces = list(self._ready)
        self._ready.clear()
        return pieces

    def pieces(self) -> Iterator[Piece]:
        """All pieces up to and including `exit`."""
        while True:
            for piece in self.receive():
                yield piece
                if piece.kind == "exit":
                    return

    def write(self, data: bytes) -> None:
        """Give bytes to standard input: at most `window` of them, which is opened again as the command reads."""
        assert len(data) <= self.window, "more than the window"
        self.window -= len(data)
        for place in range(0, len(data), STDIN_CHUNK_BYTES):
            chunk = binary_of(STDIN, data[place : place + STDIN_CHUNK_BYTES])
            self._link.sendall(self._protocol.send(Message(data=chunk)))

    def close_input(self) -> None:
        """End of standard input."""
        self._say("eof")

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's size."""
        self._say("resize", rows=rows, columns=columns)

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        self._say("signal", number=number)

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _say(self, kind: str, **values: Any) -> None:
        self._link.sendall(self._protocol.send(Message(data=text_of(kind, **values))))

    def _read(self) -> None:
        try:
            data = self._link.recv(READ_BYTES)
        except TimeoutError as error:
            raise ConnectionResetError("the daemon did not answer") from error
        try:
            self._protocol.receive_data(data or None)
            for event in self._protocol.events():
                self._take(event)
        except RemoteProtocolError as error:
            raise ConnectionResetError(str(error)) from error
        if not data and not self.ended:
            raise ConnectionResetError("the daemon closed the connection")

    def _take(self, event: object) -> None:
        match event:
            case AcceptConnection():
                self._open = True
            case RejectConnection():
                self._rejected = (event.status_code, bytearray())
                if not event.has_body:
                    raise error_of(event.status_code, b"")
            case RejectData():
                assert self._rejected is not None
                self._rejected[1].extend(event.data)
                if event.body_finished:
                    raise error_of(self._rejected[0], bytes(self._rejected[1]))
            case TextMessage():
                self._text += event.data
                if event.message_finished:
                    text, self._text = self._text, ""
                    self._hear(json.loads(text))
            case BytesMessage():
                self._bytes += event.data
                if event.message_finished:
                    kind: Literal["stdout", "stderr"] = "stderr" if self._bytes[0] == STDERR else "stdout"
                    assert self._bytes[0] in (STDOUT, STDERR)
                    self._ready.append(Piece(kind, bytes(self._bytes[1:])))
                    self._bytes.clear()
            case Ping():
                self._link.sendall(self._protocol.send(event.response()))
            case CloseConnection():
                if not self.ended:
                    raise ConnectionResetError(event.reason or "the daemon ended the connection")

    def _hear(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "started":
                self._ready.append(Piece("started", None))
            case "taken":
                self.window += int(message["bytes"])
            case "exit":
                self.ended = True
                self._ready.append(Piece("exit", int(message["status"])))
            case "error":
                raise from_problem(message["problem"])
