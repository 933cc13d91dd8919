"""The client without I/O: from a row and arguments to a request, from a response to a value or the right error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from agentlab.errors import AgentLabError, Draining
from agentlab.wire.problem import from_problem
from agentlab.wire.routes import PARAMETER, Route

RETRIES_MAX = 4
RETRY_PAUSE_S = (0.1, 0.3, 1.0, 3.0)
EVENT_BYTES_MAX = 64 << 20  # of one server-sent event; a state with a long task is some MiB

assert len(RETRY_PAUSE_S) == RETRIES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to send."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes | None = None


def request_of(route: Route, arguments: Mapping[str, Any], key: str | None = None) -> Request:
    """The request for a row.  An argument that is None is left out; one that the row does not know is a TypeError."""
    given = {name: value for name, value in arguments.items() if value is not None}
    missing = [name for name in route.parameters if name not in given]
    if missing:
        raise TypeError(f"{route.name} needs {', '.join(missing)}")
    target = PARAMETER.sub(lambda match: quote(str(given.pop(match[1])), safe="/" if match[2] else ""), route.path)
    headers = {"host": "agentlab", "accept": "application/json"}
    body: bytes | None = None
    if route.request is not None:
        # ASCII: a text with a lone surrogate still arrives, and is refused there with its place.
        body = json.dumps(given, separators=(",", ":")).encode()
        headers["content-type"] = "application/json"
    elif route.query is not None:
        pairs = [(name, each) for name, value in given.items() for each in _texts(value)]
        target += f"?{urlencode(pairs)}" if pairs else ""
    elif given:
        raise TypeError(f"{route.name} takes no {', '.join(given)}")
    if route.mutates and key is not None:
        headers["idempotency-key"] = key
    return Request(method=route.method, target=target, headers=headers, body=body)


def answer_of(status: int, content_type: str, body: bytes) -> Any:
    """The answer's plain value, or its bytes if it is not JSON.  Raises the error that the daemon told."""
    if status >= 400:
        raise error_of(status, body)
    if content_type.startswith("application/json"):
        return json.loads(body)
    return body


def error_of(status: int, body: bytes) -> AgentLabError:
    """The error in a response."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"cause": f"the answer had the status {status} and no explanation", "facts": {"status": status}}
    return from_problem(problem, status)


def may_retry(route: Route, key: str | None, error: BaseException) -> bool:
    """Whether the same request may be sent again after `error`: it is known not to have happened, or cannot twice."""
    if isinstance(error, Draining):
        return True
    repeatable = route.method in ("GET", "HEAD", "PUT") or (route.mutates and key is not None)
    return repeatable and isinstance(error, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One server-sent event."""

    kind: str
    data: str
    id: str | None  # the last one seen, also on an earlier event

    def value(self) -> Any:
        """The data as a plain value."""
        return json.loads(self.data)


@dataclass(slots=True)
class StreamParser:
    """Server-sent events from bytes, however they are cut."""

    last_id: str | None = None
    _buffer: bytearray = field(default_factory=bytearray)
    _searched: int = 0

    def feed(self, data: bytes) -> list[StreamEvent]:
        """The events that `data` completes.  ValueError if one exceeds EVENT_BYTES_MAX."""
        self._buffer += data
        found = []
        while (end := self._buffer.find(b"\n\n", max(0, self._searched - 1))) >= 0:
            block = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._searched = 0
            if (event := self._event(block.decode(errors="replace"))) is not None:
                found.append(event)
        self._searched = len(self._buffer)
        if len(self._buffer) > EVENT_BYTES_MAX:
            raise ValueError("a server-sent event is too long")
        return found

    def _event(self, block: str) -> StreamEvent | None:
        kind, lines = "message", []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                lines.append(value)
            elif name == "id":
                self.last_id = value
        return StreamEvent(kind=kind, data="\n".join(lines), id=self.last_id) if lines else None


def _texts(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [str(each) for each in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]
