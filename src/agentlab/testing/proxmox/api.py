"""From a request to an answer: who calls, which method, may they, are the parameters right; then do it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from agentlab.base.clock import sleep
from agentlab.testing.proxmox.access import Caller
from agentlab.testing.proxmox.cluster import WORKERS, Cluster
from agentlab.testing.proxmox.codec import PREFIX, Answer, Request, answer_refusal, answer_with, parameters, uploaded
from agentlab.testing.proxmox.faults import Fault
from agentlab.testing.proxmox.kinds import validated
from agentlab.testing.proxmox.method import Call, Method, Reply, Upload
from agentlab.testing.proxmox.refusal import WRONG_CREDENTIALS_S, Refused, invalid, unauthenticated
from agentlab.testing.proxmox.table import METHODS

LOST = Answer(status=0, reason="", lost=True)
LATE_596 = (596, "Connection timed out")
NOT_SELF = frozenset({"GET", "HEAD"})


class Api:
    """Answers requests as one node of the cluster would; needs no socket."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._methods = [each for each in METHODS if each.since <= cluster.major <= each.until]
        self._kinds = {
            (each.verb, each.path): {name: kind for name, kind in each.kinds.items() if kind.since <= cluster.major}
            for each in self._methods
        }
        self._workers = {name: asyncio.Semaphore(WORKERS) for name in cluster.nodes}

    async def handle(self, request: Request, served_by: str | None = None) -> Answer:
        """The answer; `lost` if the connection is closed instead.  `served_by`: the node that was asked."""
        cluster = self.cluster
        node = served_by or next(iter(cluster.nodes))
        path = request.target.partition("?")[0].removeprefix(PREFIX)
        fault = cluster.faults.draw(request.method, path, cluster.entropy)
        if fault in (Fault.REFUSED, Fault.RESET) or cluster.nodes[node].absence is not None:
            return LOST
        if fault is Fault.PROXY:
            return Answer(status=LATE_596[0], reason=LATE_596[1])
        cluster.calls.append((request.method, path))
        cluster.calls_in_flight += 1
        cluster.calls_in_flight_max = max(cluster.calls_in_flight_max, cluster.calls_in_flight)
        try:
            answer = await self._answered(request, path, node, fault)
        finally:
            cluster.calls_in_flight -= 1
        if fault is Fault.DELAY:
            low, high = cluster.faults.delay_s
            await sleep(low + (high - low) * cluster.entropy.fraction())
        if fault is Fault.REPLY_LOST:
            return LOST
        return Answer(status=LATE_596[0], reason=LATE_596[1]) if fault is Fault.PROXY_LATE else answer

    async def _answered(self, request: Request, path: str, node: str, fault: Fault | None) -> Answer:
        try:
            return await self._done(request, path, node, fault)
        except Refused as error:
            if error.delay_s:
                await sleep(self.cluster.latency.refused_s)
            return answer_refusal(error)

    async def _done(self, request: Request, path: str, node: str, fault: Fault | None) -> Answer:
        if request.method not in ("GET", "POST", "PUT", "DELETE"):
            raise Refused(f"no such method '{request.method}'", status=501, bare=True)
        if "transfer-encoding" in request.headers:
            raise Refused("chunked transfer encoding not supported", status=501, bare=True)
        method, named = self._found(request.method, path)
        caller = None if path == "/access/ticket" and request.method == "POST" else self._caller(request)
        if method is None:
            raise Refused(f"Method '{request.method} {path}' not implemented", status=501)
        values, upload = _parameters(request, path)
        if doubled := sorted(values.keys() & named.keys()):
            raise invalid(dict.fromkeys(doubled, "duplicate parameter (already defined in URI)"))
        values |= named
        caller = caller or Caller(user="")
        self._allow(method, caller, values, upload)
        where = await self._reached(method, named, node)
        call = Call(cluster=self.cluster, caller=caller, values={}, node=where, fault=fault, upload=upload)
        async with self._workers[where]:
            await self.cluster.spend("call")
            call.values = validated(self._kinds[method.verb, method.path], values)
            if method.writes and request.method != "GET":
                self.cluster.check_quorum()
            found = await method.handler(call)
        return answer_with(found.data, found.beside) if isinstance(found, Reply) else answer_with(found)

    def _allow(self, method: Method, caller: Caller, values: Mapping[str, Any], upload: Upload | None) -> None:
        try:
            method.allow(self.cluster, caller, values)
        except Refused as error:
            if upload is not None:  # refused while the file is still coming in: no body, and late
                raise Refused(error.text, status=error.status, bare=True, delay_s=WRONG_CREDENTIALS_S) from None
            raise

    async def _reached(self, method: Method, named: Mapping[str, str], node: str) -> str:
        """The node that carries the call out.  Raises Refused (59x) if the asked one cannot reach it."""
        where = named.get("node", node)
        if where == "localhost":
            return node
        if where not in self.cluster.nodes:
            raise Refused(
                f"hostname lookup '{where}' failed - failed to get address info for: {where}: "
                "Temporary failure in name resolution"
            )
        absence = self.cluster.nodes[where].absence
        if absence is not None:
            status, reason, wait_s = absence.value
            await sleep(wait_s if self.cluster.latency.work else 0)
            raise Refused(reason, status=status, bare=True)
        return where

    def _found(self, verb: str, path: str) -> tuple[Method | None, dict[str, str]]:
        for method in self._methods:
            if method.verb == verb and (match := method.pattern.fullmatch(path)) is not None:
                return method, {name: unquote(value) for name, value in match.groupdict().items()}
        return None, {}

    def _caller(self, request: Request) -> Caller:
        access, now = self.cluster.access, self.cluster.clock.now()
        stated = request.headers.get("authorization", "")
        if found := re.match(r"PVEAPIToken[= ](.*)", stated):
            return access.by_token(found[1], now)
        cookie = re.search(r"PVEAuthCookie=([^;\s]+)", request.headers.get("cookie", ""))
        if cookie is None:
            raise unauthenticated("No ticket")
        ticket = access.tickets.get(unquote(cookie[1]))
        if ticket is None:
            raise unauthenticated("Authentication failed!")
        if request.method not in NOT_SELF and request.headers.get("csrfpreventiontoken") != ticket[1]:
            raise unauthenticated("Permission denied - invalid csrf token")
        return Caller(user=ticket[0])


def _parameters(request: Request, path: str) -> tuple[dict[str, Any], Upload | None]:
    if path.endswith("/upload") and request.method == "POST":
        fields, body = uploaded(request)
        return dict(fields), Upload(filename=fields["filename"], body=body)
    return parameters(request), None
