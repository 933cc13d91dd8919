"""From an ASGI scope to a handler's answer: match, identify, authorise, parse, call, answer.

The one place where an unforeseen exception is caught: it becomes `internal`, with its traceback in the log.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from agentlab.api.call import Call, CallerGone, Handler, Message, Receive, Reply, Send, Serving
from agentlab.api.identity import Identity, Peer
from agentlab.api.match import Matcher
from agentlab.api.parse import parse_body, parse_query
from agentlab.base.clock import Clock
from agentlab.errors import AgentLabError, DiskFull, Draining, Forbidden, Internal, Invalid, RouteUnknown, TooLarge
from agentlab.services.requests import Idempotency
from agentlab.wire.problem import to_problem
from agentlab.wire.requests import REQUEST_BYTES_MAX
from agentlab.wire.routes import ROUTES, Route

if TYPE_CHECKING:
    from agentlab.services.registry import Services

log = logging.getLogger(__name__)

KEY_LENGTH_MAX = 200
DISCARD_BYTES_MAX = 64 << 20  # of a refused body that is read, so that the caller sees the answer and not a broken pipe
HUNG_UP = 499  # counted, never sent
JSON = b"application/json"
PROBLEM = b"application/problem+json"


class Dispatcher:
    """The ASGI application.  Every path that is not a row is refused, and every row has a handler."""

    def __init__(
        self,
        services: Services,
        handlers: Mapping[str, Handler],
        identify: Callable[[Peer], Identity],
        clock: Clock,
        instance: str,
    ) -> None:
        assert handlers.keys() == ROUTES.keys(), handlers.keys() ^ ROUTES.keys()
        self._services, self._handlers, self._identify, self._clock = services, handlers, identify, clock
        self._matcher = Matcher(ROUTES.values())
        self._instance, self._count = instance, 0  # request ids: unique in the log of one installation
        self._serving = Serving()

    def drain(self) -> None:
        """Refuse new work, and end streams and long polls, whose callers then come again."""
        self._serving.draining = True
        now = asyncio.get_running_loop().time()
        for limit in tuple(self._serving.waiting):
            if not limit.expired():
                limit.reschedule(now)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        self._count += 1
        request_id = f"{self._instance}-{self._count:x}"
        body = _Body(receive)
        began = self._clock.monotonic()
        method: str = scope.get("method", "GET")
        found = self._matcher.find(method, scope["path"])
        call: Call | None = None
        try:
            if found is None or (found[0].stream == "websocket") != (scope["type"] == "websocket"):
                raise RouteUnknown(method=method, path=scope["path"][:200])
            call = self._call(found, scope, request_id, body, send)
            status = await self._carry_out(call, scope["query_string"])
        except CallerGone:
            stopping = self._serving.draining and (call is None or not call.answered)
            status = await self._refuse(call, scope, send, Draining(), request_id) if stopping else HUNG_UP
        except AgentLabError as error:
            status = await self._refuse(call, scope, send, error, request_id, body)
        except Exception as error:
            status = await self._refuse(call, scope, send, _unforeseen(error, request_id), request_id, body)
        self._serving.counters.count(found[0].name if found else "none", status, self._clock.monotonic() - began)

    def _call(
        self, found: tuple[Route, dict[str, str]], scope: Message, request_id: str, receive: Receive, send: Send
    ) -> Call:
        route, parameters = found
        identity = self._identify(scope["state"]["peer"])
        if not identity.may(route.permission):
            raise Forbidden(identity=identity.name, permission=route.permission)
        return Call(
            route=route,
            services=self._services,
            identity=identity,
            parameters=parameters,
            request_id=request_id,
            headers=dict(scope["headers"]),
            receive=receive,
            send=send,
            server=self._serving,
        )

    async def _carry_out(self, call: Call, query: bytes) -> int:
        route = call.route
        # Another's thing and a missing thing are told alike, before anything else of the request is looked at.
        if route.target == "sandbox":
            call.target = call.services.sandboxes.get(call.parameters["sandbox"], call.identity.owner)
        elif route.target == "job":
            call.target = call.services.jobs.get(call.parameters["job"], call.identity.owner)
        if self._serving.draining and route.method != "GET":
            raise Draining()
        if route.query_type is not None:
            call.query = parse_query(route.query_type, query)
        elif query:
            raise Invalid(cause=f"{route.method} {route.path} takes no query")
        if route.method not in ("GET", "HEAD") and not route.upload:
            await self._read(call)
        answer = await self._handlers[route.name](call)
        if call.answered:
            return 200
        if isinstance(answer, Reply):
            return await _send(call, answer.status, answer.content_type, answer.body, answer.headers)
        assert answer is not None, f"{route.name} answered nothing"
        content = answer.__pydantic_serializer__.to_json(answer)
        return await _send(call, route.status, JSON, content)

    async def _read(self, call: Call) -> None:
        route = call.route
        body = await read_body(call, REQUEST_BYTES_MAX)
        if route.request_type is not None:
            call.body = parse_body(route.request_type, body)
        elif body.strip() not in (b"", b"{}"):
            raise Invalid(cause=f"{route.method} {route.path} takes no body")
        if route.mutates and (key := call.headers.get(b"idempotency-key")) is not None:
            # The target's id, not the text it was named by: a name may come to mean another sandbox.
            what = f"{route.name}\n{call.target.id if call.target is not None else ''}\n".encode()
            call.key = Idempotency(
                owner=call.identity.name, key=_key(key), fingerprint=hashlib.sha256(what + body).hexdigest()
            )

    async def _refuse(
        self,
        call: Call | None,
        scope: Message,
        send: Send,
        error: AgentLabError,
        request_id: str,
        body: _Body | None = None,
    ) -> int:
        if call is not None and call.answered:
            log.warning("answer broken off", extra={"request": request_id, "cause": str(error)})
            raise error  # the protocol closes the connection, which tells the caller that the answer is incomplete
        content = json.dumps(to_problem(error, request_id), separators=(",", ":")).encode()
        headers: list[tuple[bytes, bytes]] = [(b"content-type", PROBLEM), (b"x-request-id", request_id.encode())]
        headers.append((b"content-length", str(len(content)).encode()))
        if scope["type"] == "websocket":
            await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": content})
            return error.status
        if body is not None:
            await _discard(body, scope)
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": content if scope["method"] != "HEAD" else b""})
        return error.status


async def read_body(call: Call, bytes_max: int) -> bytes:
    """The whole body.  Raises TooLarge beyond `bytes_max`, CallerGone if the caller hung up meanwhile."""
    limit = {"what": "The request", "limit_name": "REQUEST_BYTES_MAX", "limit": bytes_max}
    if int(call.headers.get(b"content-length", b"0")) > bytes_max:
        raise TooLarge(**limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > bytes_max:
            raise TooLarge(**limit)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _send(
    call: Call, status: int, content_type: bytes, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> int:
    call.answered = True
    start = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", call.request_id.encode()),
        *headers,
    ]
    await call.send({"type": "http.response.start", "status": status, "headers": start})
    await call.send({"type": "http.response.body", "body": body})
    return status


class _Body:
    """A request's messages, and whether the last of them has come: asking for more would wait for the hang-up."""

    __slots__ = ("_receive", "finished")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.finished = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self.finished = True
        return message


async def _discard(body: _Body, scope: Message) -> None:
    """Read what the caller still sends, up to a limit: who is cut off while sending never sees the answer."""
    if not any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
        return
    discarded = 0
    while discarded < DISCARD_BYTES_MAX and not body.finished:
        discarded += len((await body()).get("body", b""))


def _key(header: bytes) -> str:
    text = header.decode("latin-1")
    if not 1 <= len(text) <= KEY_LENGTH_MAX or not text.isascii() or not text.isprintable():
        raise Invalid(cause=f"Idempotency-Key: must be 1 to {KEY_LENGTH_MAX} printable ASCII characters")
    return text


def _unforeseen(error: Exception, request_id: str) -> AgentLabError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(path=error.filename or "the state directory", free="nothing", needed="some")
    log.error("request failed", extra={"request": request_id}, exc_info=error)
    return Internal(cause=f"{type(error).__name__}; the daemon's log has the details under request {request_id}")
