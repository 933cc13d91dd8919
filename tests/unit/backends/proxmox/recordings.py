"""Real exchanges with Proxmox VE 9.2, as they were recorded."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentlab.backends.proxmox.answers import ProxmoxError, read_answer

FOLDER = Path(__file__).parents[3] / "fixtures/proxmox"
NAMES = ("recorded-9.2.jsonl.xz", "recorded-9.2-token.jsonl.xz")


def rows() -> Iterator[dict[str, Any]]:
    """Every exchange: method, path, params, status, reason, body, note."""
    for name in NAMES:
        with lzma.open(FOLDER / name, "rt") as lines:
            yield from map(json.loads, lines)


def answered(method: str, path: str) -> list[Any]:
    """The data of all good answers to one call."""
    return [row["body"]["data"] for row in rows() if (row["method"], row["path"], row["status"]) == (method, path, 200)]


def error_of(row: dict[str, Any]) -> ProxmoxError:
    """The error that the client makes of a failing exchange."""
    body = row["body"]
    content = json.dumps(body).encode() if isinstance(body, dict) else str(body or "").encode()
    try:
        read_answer(
            method=row["method"],
            path=row["path"],
            status=row["status"],
            reason=row["reason"] or "",
            content=content,
        )
    except ProxmoxError as error:
        return error
    raise AssertionError(f"{row} did not fail")


def failures() -> list[ProxmoxError]:
    """Everything that failed at once."""
    return [error_of(row) for row in rows() if row["status"] >= 400]


def exit_statuses() -> set[str]:
    """How tasks ended that failed."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            status = value.get("exitstatus") or (value.get("status") if "upid" in value else None)
            if status and status not in ("OK", "running", "stopped") and not status.startswith("WARNINGS"):
                found.add(status)
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    for row in rows():
        walk(row["body"])
    return found
