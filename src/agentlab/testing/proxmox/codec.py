"""Requests from bytes, as Proxmox VE's server reads them, and answers to bytes."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from agentlab.testing.proxmox.refusal import Refused, invalid

BODY_BYTES_MAX = 512 << 10
UPLOAD_ORDER = ("content", "checksum-algorithm", "checksum", "filename")
JSON_TYPE = "application/json;charset=UTF-8"
PREFIX = "/api2/json"
_BAD_REQUEST = Refused("Bad Request", status=400, bare=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; `target` as it stood in the request line, header names in small letters."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | mmap.mmap = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer.  `lost`: the connection is closed instead."""

    status: int
    reason: str
    body: bytes = b""
    content_type: str | None = None
    lost: bool = False

    def json(self) -> Any:
        """The body as a value; an empty one is an empty text."""
        return json.loads(self.body) if self.body else ""


def answer_with(data: Any, beside: Mapping[str, Any] | None = None) -> Answer:
    """200 with a value."""
    body = json.dumps({"data": data, **(beside or {})}).encode()
    return Answer(status=200, reason="OK", body=body, content_type=JSON_TYPE)


def answer_refusal(error: Refused) -> Answer:
    """What a refusal looks like: its text in the reason phrase and, mostly, in the body."""
    if error.bare:
        return Answer(status=error.status, reason=error.reason)
    whole: dict[str, Any] = {"data": None, "message": error.text if error.status == 501 else error.text + "\n"}
    if error.errors:
        whole["errors"] = error.errors
    return Answer(status=error.status, reason=error.reason, body=json.dumps(whole).encode(), content_type=JSON_TYPE)


def form(given: str) -> dict[str, Any]:
    """Form fields: pairs end at `&` and `;`, and a pair's value ends at its second `=`.

    A field that is repeated becomes a list.
    """
    found: dict[str, Any] = {}
    for pair in re.split("[&;]", given):
        if not pair:
            continue
        parts = pair.split("=")
        name, value = _text(parts[0]), _text(parts[1]) if len(parts) > 1 else ""
        if name not in found:
            found[name] = value
        elif isinstance(found[name], list):
            found[name].append(value)
        else:
            found[name] = [found[name], value]
    return found


def parameters(request: Request) -> dict[str, Any]:
    """What the query and the body say.  Raises Refused: 501 for a body where none may be, 400 for bad JSON."""
    found = form(request.target.partition("?")[2])
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method in ("GET", "DELETE") and request.body:
        raise Refused(f"Unexpected content for method '{request.method}'", status=501, bare=True)
    if len(request.body) > BODY_BYTES_MAX:
        raise Refused("for data too large", status=501, bare=True)
    if kind == "application/json" and request.body:
        return found | _json(bytes(request.body))
    return found | form(bytes(request.body).decode("latin-1"))


def uploaded(request: Request) -> tuple[dict[str, str], memoryview]:
    """The fields and the file of a multipart body.  Raises Refused (400, bare) unless the fields come in order."""
    stated = re.search(r'boundary="?([^";]+)"?', request.headers.get("content-type", ""))
    if stated is None:
        raise _BAD_REQUEST
    body, boundary = request.body, b"--" + stated[1].encode()
    fields: dict[str, str] = {}
    at = body.find(boundary)
    while at >= 0:
        start = body.find(b"\r\n\r\n", at) + 4
        name = re.search(rb'[; ]name="([^"]*)"(?:; *filename="([^"]*)")?', body[at:start])
        if start < 4 or name is None or (key := name[1].decode()) not in UPLOAD_ORDER:
            raise _BAD_REQUEST
        if fields and UPLOAD_ORDER.index(key) <= max(UPLOAD_ORDER.index(each) for each in fields):
            raise _BAD_REQUEST
        if key == "filename":  # the file itself, which is last
            end = body.rfind(b"\r\n" + boundary + b"--")
            if end < start or "content" not in fields:
                raise _BAD_REQUEST
            return fields | {key: (name[2] or b"").decode()}, memoryview(body)[start:end]
        at = body.find(b"\r\n" + boundary, start)
        fields[key] = body[start : max(at, start)].decode()
        at = at + 2 if at >= 0 else at
    raise _BAD_REQUEST


def _text(given: str) -> str:
    return unquote_to_bytes(given.replace("+", " ")).decode("utf-8", errors="replace")


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        raise Refused("Bad Request", status=400, bare=True) from None
    if not isinstance(found, dict):
        raise invalid({})
    return {str(name): value for name, value in found.items() if value is not None}
