"""Errors as the user meets them, and the exit codes that go with them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agentlab.errors import AgentLabError

if TYPE_CHECKING:
    from agentlab.cli.screen import Screen


def tell(screen: Screen, error: AgentLabError) -> int:
    """Print the error and return its exit code."""
    if screen.json:
        import json

        from agentlab.wire.problem import to_problem

        screen.note(json.dumps(to_problem(error, error.request_id), separators=(",", ":")))
        return error.exit_code
    from agentlab.base.text import printable

    lines = [screen.paint("error: ", "red", sys.stderr) + printable(str(error))]
    cause = printable(error.cause)
    if cause and cause not in lines[0]:
        lines.append(f"cause: {cause}")
    if error.advice:
        lines.append(screen.paint("remedy: ", "green", sys.stderr) + printable(error.advice))
    if error.code == "internal" and error.request_id:
        lines.append(f"request: {error.request_id}")
    screen.note("\n".join(lines))
    return error.exit_code


def usage(screen: Screen, message: str, hint: str) -> int:
    """Print what is wrong with the command line and return exit code 2."""
    from agentlab.errors import Invalid

    if screen.json:
        return tell(screen, Invalid.received(message=message, cause=message, remedy=hint, facts={}))
    screen.note(f"{screen.paint('error: ', 'red', sys.stderr)}{message}\n{hint}")
    return 2
