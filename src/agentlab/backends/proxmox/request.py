"""One request to the API as it goes to whichever endpoint takes it.  Pure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from agentlab.backends.proxmox import encode
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.lanes import CallClass

_NODE = re.compile(r"/nodes/([^/]+)")
_AGENT = re.compile(r"/nodes/[^/]+/qemu/\d+/agent(/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`content` makes the body anew for each try; `path` is what errors name, for `target` holds parameters' values."""

    method: str
    path: str
    target: str
    headers: Mapping[str, str]
    content: Callable[[], bytes | AsyncIterator[bytes]]
    call: CallClass

    @property
    def node(self) -> str:
        """The node that does the work, wherever the request is sent; empty for what is asked of the cluster."""
        found = _NODE.match(self.path)
        return found[1] if found else ""


def request_of(method: str, path: str, params: Params, call: CallClass | None = None) -> Request:
    """Parameters in the query for GET and DELETE, as JSON otherwise; the class by method and path if not given.

    Raises ValueError for parameters that do not fit.
    """
    assert path.startswith("/"), path
    headers: Mapping[str, str] = {}
    target, content = path, b""
    if method not in ("GET", "DELETE"):
        content = encode.body(params) if params else b""
        headers = {"content-type": "application/json"} if content else {}
    elif params:
        target = f"{path}?{encode.query(params)}"
    if call is None:
        by_method = CallClass.READ if method == "GET" else CallClass.WRITE
        call = CallClass.AGENT if _AGENT.match(path) else by_method
    return Request(method=method, path=path, target=target, headers=headers, content=lambda: content, call=call)
