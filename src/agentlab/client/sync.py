"""The synchronous client, over http.client on the daemon's Unix socket."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from agentlab.client.core import (
    RETRIES_MAX,
    RETRY_PAUSE_S,
    Request,
    StreamEvent,
    StreamParser,
    answer_of,
    error_of,
    may_retry,
    request_of,
)
from agentlab.client.discover import connect_error, socket_path
from agentlab.errors import AgentLabError
from agentlab.wire.routes import ROUTES

ANSWER_TIMEOUT_S = 120.0  # longer than any long poll
STREAM_TIMEOUT_S = 45.0  # three heartbeats
COPY_BYTES = 256 << 10
UPLOAD = ROUTES["blobs.put"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("agentlab", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path, self.timeout)


def connected(path: Path, timeout_s: float | None) -> socket.socket:
    """A connected socket.  Raises DaemonNotRunning, PermissionMissing."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(timeout_s)
    try:
        link.connect(os.fspath(path))
    except OSError as error:
        link.close()
        raise connect_error(path, error) from error
    return link


class Connection:
    """Calls rows by name, with plain values.  One call at a time; each stream takes a connection of its own."""

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        """`socket` is the daemon's; without it, it is looked for (see `client.discover`)."""
        self.path = Path(socket).absolute() if socket is not None else socket_path(os.environ, os.getuid())
        self._connection: _UnixConnection | None = None

    def call(self, name: str, /, *, retry: bool = True, **arguments: Any) -> Any:
        """The answer of one row: plain JSON values, or bytes.

        A mutation is sent with a key, so that a retry after a cut happens once.  Raises what the daemon told,
        DaemonNotRunning, PermissionMissing.
        """
        route = ROUTES[name]
        key = _new_key() if route.mutates else None
        request = request_of(route, arguments, key)
        if not may_retry(route, key, OSError()):
            self.close()  # a connection that idled may be dead, which only a repeatable request may find out
        for tries in range(RETRIES_MAX + 1):
            try:
                return self._exchange(request)
            except (AgentLabError, OSError, http.client.HTTPException) as error:
                self.close()
                broken = OSError(str(error)) if isinstance(error, http.client.HTTPException) else error
                if not retry or tries == RETRIES_MAX or not may_retry(route, key, broken):
                    if isinstance(error, AgentLabError):
                        raise
                    raise connect_error(self.path, OSError(0, f"the connection broke: {error}")) from error
                _pause(RETRY_PAUSE_S[tries])
        raise AssertionError("unreachable")

    def stream(self, name: str, /, *, last_id: str | None = None, **arguments: Any) -> Iterator[StreamEvent]:
        """The events of a streaming row, until the daemon ends the stream.  OSError when the connection breaks."""
        request = request_of(ROUTES[name], arguments)
        if last_id is not None:
            request.headers["last-event-id"] = last_id
        connection = _UnixConnection(self.path, STREAM_TIMEOUT_S)
        try:
            response = _send(connection, request)
            if response.status >= 400:
                raise error_of(response.status, response.read())
            parser = StreamParser(last_id)
            while data := response.read1(COPY_BYTES):
                yield from parser.feed(data)
        except http.client.HTTPException as error:
            raise ConnectionResetError(str(error) or "the daemon closed the connection") from error
        finally:
            connection.close()

    def download(self, name: str, into: IO[bytes], /, **arguments: Any) -> int:
        """Copy the bytes of a row into a file and return how many.  Raises OSError if they end early."""
        connection = _UnixConnection(self.path, ANSWER_TIMEOUT_S)
        try:
            response = _send(connection, request_of(ROUTES[name], arguments))
            if response.status >= 400:
                raise error_of(response.status, response.read())
            count = 0
            while chunk := response.read(COPY_BYTES):
                count += into.write(chunk)
            return count
        except http.client.HTTPException as error:
            raise ConnectionResetError(str(error) or "the daemon closed the connection") from error
        finally:
            connection.close()

    def upload(self, digest: str, file: IO[bytes], length: int) -> Any:
        """Give the daemon the bytes of `file`, whose SHA-256 is `digest`; nothing is sent that it has already."""
        if self.has_blob(digest):
            return {"digest": digest, "bytes_count": length}
        request = request_of(UPLOAD, {"digest": digest})
        connection = _UnixConnection(self.path, ANSWER_TIMEOUT_S)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for header, value in {**request.headers, "content-length": str(length)}.items():
                connection.putheader(header, value)
            try:
                connection.endheaders()
                while chunk := file.read(COPY_BYTES):
                    connection.send(chunk)
            except BrokenPipeError:
                pass  # refused before all was sent; the answer says why
            response = connection.getresponse()
            return answer_of(response.status, response.getheader("content-type", ""), response.read())
        except http.client.HTTPException as error:
            raise ConnectionResetError(str(error) or "the daemon closed the connection") from error
        finally:
            connection.close()

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon holds these bytes."""
        try:
            self.call("blobs.head", digest=digest)
        except AgentLabError as error:
            if error.facts.get("status") == 404:  # a HEAD has no room for the problem itself
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _exchange(self, request: Request) -> Any:
        if self._connection is None:
            self._connection = _UnixConnection(self.path, ANSWER_TIMEOUT_S)
        response = _send(self._connection, request)
        return answer_of(response.status, response.getheader("content-type", ""), response.read())


def _send(connection: http.client.HTTPConnection, request: Request) -> http.client.HTTPResponse:
    try:
        connection.request(request.method, request.target, body=request.body, headers=request.headers)
    except BrokenPipeError:
        pass  # refused before all was sent; the answer says why
    return connection.getresponse()


def _new_key() -> str:
    from agentlab.base.entropy import SystemEntropy

    return SystemEntropy().token(16)


def _pause(seconds: float) -> None:
    from agentlab.base.clock import pause

    pause(seconds)
