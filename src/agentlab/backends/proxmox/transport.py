"""Calls of the Proxmox VE API, by token, over verified TLS, to whichever endpoint of the cluster answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentlab.backends.proxmox import encode
from agentlab.backends.proxmox.answers import Distrusted, NoAnswer, ProxmoxError, read_answer
from agentlab.backends.proxmox.certificate import Endpoint, Trust
from agentlab.backends.proxmox.connection import Connection
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.endpoints import Endpoints
from agentlab.backends.proxmox.lanes import CALLS_PER_NODE_MAX, CallClass, Lanes
from agentlab.backends.proxmox.request import Request, request_of
from agentlab.backends.proxmox.upload import Progress, Upload
from agentlab.base.clock import Clock, sleep
from agentlab.base.entropy import Entropy
from agentlab.base.secret import Secret

log = logging.getLogger(__name__)

RETRIES_MAX = 3  # of a GET
RETRY_PAUSE_S = (0.2, 0.8, 2.4)  # each varied by half
RETRIES_S_MAX = 30.0  # after so long nothing is tried again: whoever asked has waited enough

# From sending to the end of the answer.  A node's proxy gives up on another node after 30 s; its own words say more
# than our silence does, so what may take long waits a little longer than it.
CALL_S_MAX: Mapping[CallClass, float] = {
    CallClass.READ: 20.0,
    CallClass.WRITE: 35.0,
    CallClass.AGENT: 35.0,
    CallClass.UPLOAD: 6 * 3600.0,
}
UPLOAD_PRIVILEGE = "Datastore.AllocateTemplate"
_PASSING = frozenset({502, 503, 504, 595, 596, 597, 598, 599})  # of the proxies between us and the node
_TOKEN_ID = re.compile(r"[^\s!=:/]+@[A-Za-z0-9_.-]+![A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """`user@realm!name` and its secret."""

    id: str
    secret: Secret

    def __post_init__(self) -> None:
        if _TOKEN_ID.fullmatch(self.id) is None:
            raise ValueError(f"{self.id!r} is not the id of an API token: write user@realm!name")


class Transport:
    """The API of one cluster.  Calls may overlap; they wait while a node has its fill.

    GETs are tried again after a loss, with pauses, over all endpoints.  Nothing else ever is, except that a call which
    certainly was not sent goes to the next endpoint.  Neither the token nor a parameter's value is in any error.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        trust: Trust,
        authorization: Token | Mapping[str, Secret],
        *,
        clock: Clock,
        entropy: Entropy,
        calls_per_node_max: int = CALLS_PER_NODE_MAX,
        call_s_max: Mapping[CallClass, float] = CALL_S_MAX,
    ) -> None:
        """`authorization` is a token; or, for set-up by an administrator, the headers of a ticket.

        Raises ValueError for trust that cannot be used.
        """
        self._endpoints = Endpoints(endpoints, clock)
        self._connections = {each: Connection(each, trust) for each in endpoints}
        self._authorization, self._clock, self._entropy = authorization, clock, entropy
        self._lanes, self._call_s_max = Lanes(calls_per_node_max), call_s_max
        self.troubles: dict[Endpoint, str] = {}  # why an endpoint is not in use, until it is again
        self.calls_sent = 0

    async def call(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        *,
        node: str | None = None,
        kind: CallClass | None = None,
    ) -> object:
        """The `data` of the answer.  `path` begins behind `/api2/json`; its parts are quoted already (`encode.path`).

        `node` is whose workers it occupies, by default the one that the path names.  Raises ProxmoxError: what was
        answered, or NoAnswer, or Distrusted.  Cancelling ends the call, not its effect.
        """
        return (await self.answer(method, path, params, node=node, kind=kind))["data"]

    async def answer(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        *,
        node: str | None = None,
        kind: CallClass | None = None,
    ) -> Mapping[str, object]:
        """As `call`, but all of the answer: a task's log says beside its `data` how many lines there are in `total`."""
        return await self._asked(request_of(method, path, params or {}, kind), node)

    async def upload(self, node: str, storage: str, upload: Upload, progress: Progress | None = None) -> object:
        """Stream a file to a storage; the UPID of the task that puts it in its place.

        Never tried twice once a byte was sent.  Raises ProxmoxError, OSError for the file, ValueError for its name.
        """
        await self._require_upload(storage)
        size = upload.file.stat().st_size
        path = encode.path("nodes", node, "storage", storage, "upload")
        request = Request(
            method="POST",
            path=path,
            target=path,
            headers={"content-type": upload.content_type, "content-length": str(upload.length(size))},
            content=lambda: upload.stream(size, progress),
            call=CallClass.UPLOAD,
        )
        return (await self._asked(request, node))["data"]

    async def _require_upload(self, storage: str) -> None:
        """Ask first whether it is allowed.

        The server refuses an upload while the file is on its way, and resets the connection: its reason gets lost.
        """
        where = f"/storage/{storage}"
        permissions = await self.call("GET", "/access/permissions", {"path": where})
        held = permissions.get(where) if isinstance(permissions, Mapping) else None
        if not isinstance(held, Mapping) or UPLOAD_PRIVILEGE not in held:
            raise ProxmoxError(
                status=403,
                reason=f"Permission check failed ({where}, {UPLOAD_PRIVILEGE})",
                method="POST",
                path=f"{where}/upload",
            )

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            await connection.close()

    async def _asked(self, request: Request, node: str | None) -> Mapping[str, object]:
        began = self._clock.monotonic()
        for tries in range(RETRIES_MAX + 1):
            try:
                async with self._lanes.of(node or request.node, request.call):
                    return await self._over_endpoints(request)
            except ProxmoxError as error:
                late = self._clock.monotonic() - began > RETRIES_S_MAX
                if late or tries == RETRIES_MAX or not _may_retry(request.method, error):
                    raise
                log.debug("call is tried again", extra={"cause": str(error)})
            await sleep(RETRY_PAUSE_S[tries] * (0.5 + self._entropy.fraction()))
        raise AssertionError("unreachable")

    async def _over_endpoints(self, request: Request) -> Mapping[str, object]:
        """Try one endpoint after the other, as long as nothing can have been carried out."""
        failure: NoAnswer | None = None
        for endpoint in self._endpoints.order():
            self.calls_sent += 1
            try:
                status, reason, content = await self._connections[endpoint].exchange(
                    request, self._credentials(), self._call_s_max[request.call]
                )
            except NoAnswer as error:
                self._put_aside(endpoint, error)
                if error.sent:
                    raise
                if not isinstance(failure, Distrusted):  # of several causes, the one that a person must act on
                    failure = error
                continue
            self._endpoints.worked(endpoint)
            self.troubles.pop(endpoint, None)
            return read_answer(method=request.method, path=request.path, status=status, reason=reason, content=content)
        assert failure is not None
        raise failure

    def _credentials(self) -> dict[str, str]:
        given = self._authorization
        if isinstance(given, Token):
            return {"authorization": f"PVEAPIToken={given.id}={given.secret.reveal()}"}
        return {name: value.reveal() for name, value in given.items()}

    def _put_aside(self, endpoint: Endpoint, error: NoAnswer) -> None:
        self._endpoints.failed(endpoint)
        if self.troubles.get(endpoint) != error.reason:
            level = logging.ERROR if isinstance(error, Distrusted) else logging.WARNING
            log.log(level, "endpoint put aside", extra={"endpoint": endpoint.url, "cause": error.reason})
        self.troubles[endpoint] = error.reason


def _may_retry(method: str, error: ProxmoxError) -> bool:
    if method != "GET" or isinstance(error, Distrusted):
        return False
    return isinstance(error, NoAnswer) or error.status in _PASSING
