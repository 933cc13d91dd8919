"""Calls of the simulated API without a socket: for simulations on virtual time, and for clients that use httpx2."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx2

from agentlab.testing.proxmox.api import Api
from agentlab.testing.proxmox.codec import PREFIX, Answer, Request


class Direct:
    """Somebody who calls the API: a token (`user@realm!id=secret`), and the node that is asked."""

    def __init__(self, api: Api, token: str, node: str | None = None) -> None:
        self._api, self._token, self._node = api, token, node

    async def call(self, method: str, path: str, /, **params: Any) -> Answer:
        """One call; parameters whose names have dashes are given as `**{"name-with-dash": …}`.

        Raises ConnectionError if the connection is closed instead of an answer.
        """
        form = "&".join(
            f"{name}={quote(str(each), safe='')}"
            for name, value in params.items()
            for each in (value if isinstance(value, list) else [value])
        )
        in_query = method in ("GET", "DELETE")
        answer = await self._api.handle(
            Request(
                method=method,
                target=PREFIX + path + (f"?{form}" if form and in_query else ""),
                headers={"authorization": f"PVEAPIToken={self._token}"},
                body=b"" if in_query else form.encode(),
            ),
            self._node,
        )
        if answer.lost:
            raise ConnectionError("connection reset by peer")
        return answer

    async def data(self, method: str, path: str, /, **params: Any) -> Any:
        """The value of a call that must succeed."""
        answer = await self.call(method, path, **params)
        assert answer.status == 200, f"{method} {path}: {answer.status} {answer.reason}"
        return answer.json()["data"]

    async def done(self, method: str, path: str, /, **params: Any) -> str:
        """The exit status of the task that a call starts; or the reason of its refusal."""
        answer = await self.call(method, path, **params)
        if answer.status != 200:
            return answer.reason
        task = self._api.cluster.tasks.tasks[answer.json()["data"]]
        await task.ended.wait()
        assert task.exitstatus is not None
        return task.exitstatus


class DirectTransport(httpx2.AsyncBaseTransport):
    """Lets an httpx2 client reach the simulated API of one node without a socket."""

    def __init__(self, api: Api, node: str | None = None) -> None:
        self._api, self._node = api, node

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer like a server; a lost answer is httpx2.ReadError."""
        answer = await self._api.handle(
            Request(
                method=request.method,
                target=request.url.raw_path.decode("ascii"),
                headers={name.lower(): value for name, value in request.headers.items()},
                body=await request.aread(),
            ),
            self._node,
        )
        if answer.lost:
            raise httpx2.ReadError("connection reset by peer", request=request)
        headers = {} if answer.content_type is None else {"content-type": answer.content_type}
        extensions = {"reason_phrase": answer.reason.encode("utf-8"), "http_version": b"HTTP/1.1"}
        return httpx2.Response(answer.status, headers=headers, content=answer.body, extensions=extensions)
