"""An error as the API tells it: {code, message, cause, remedy, docs, retryable, facts, request_id}."""

from __future__ import annotations

from typing import Any

from agentlab.base.secret import Secret
from agentlab.errors import DOCS, ERRORS, AgentLabError

PLAIN = (str, int, float, bool, type(None))


def to_problem(error: AgentLabError, request_id: str | None = None) -> dict[str, Any]:
    """The error as plain values.  Facts that are not plain are told as text; secrets are left out."""
    return {
        "code": error.code,
        "message": str(error),
        "cause": error.cause,
        "remedy": error.advice,
        "docs": f"{DOCS}#{anchor(error.code)}",
        "retryable": error.retryable,
        "facts": {name: _plain(value) for name, value in error.facts.items() if not isinstance(value, Secret)},
        "request_id": request_id,
    }


def from_problem(problem: dict[str, Any], status: int = 500) -> AgentLabError:
    """The error that a daemon told, as its own class; an unknown code becomes the base class with that text."""
    code = str(problem.get("code", ""))
    kind = ERRORS.get(code, AgentLabError)
    facts = problem.get("facts")
    told = kind.received(
        message=str(problem.get("message", f"The daemon answered {status}.")),
        cause=str(problem.get("cause", "")),
        remedy=str(problem.get("remedy", "")),
        facts={**(facts if isinstance(facts, dict) else {}), "told_code": code},
    )
    told.request_id = problem.get("request_id")
    return told


def anchor(code: str) -> str:
    """Where the reference page describes this code."""
    return code.replace("/", "-")


def _plain(value: object) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return str(value)
