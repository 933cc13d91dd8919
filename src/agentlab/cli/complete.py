"""Completion of ids and names, asked of the daemon.  Where none answers, nothing is offered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from agentlab.cli.shape import screen_of

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
OFFERED_MAX = 200


def sandboxes(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names, and ids."""
    rows = _ask(context, "sandboxes.list", limit=OFFERED_MAX)
    items = [CompletionItem(row["name"], help=row["state"]) for row in rows if row["name"]]
    items += [CompletionItem(row["id"], help=row["state"]) for row in rows]
    return [item for item in items if item.value.startswith(typed)]


def jobs(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """Ids."""
    rows = _ask(context, "jobs.list", limit=OFFERED_MAX)
    return [
        CompletionItem(row["id"], help=f"{row['state']} {row['agent']}") for row in rows if row["id"].startswith(typed)
    ]


def snapshots(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of the snapshots of the sandbox that the words before name."""
    rows = _ask(context, "sandboxes.snapshots", sandbox=context.params.get("name") or "")
    return [CompletionItem(row["name"], help=row["state"]) for row in rows if row["name"].startswith(typed)]


def backends(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names."""
    from agentlab.errors import AgentLabError

    try:
        with screen_of(context).connection() as connection:
            rows = connection.call("daemon.status", retry=False)["facts"]["backends"]
    except (AgentLabError, OSError):
        return []
    return [CompletionItem(row["name"]) for row in rows if row["name"].startswith(typed)]


def names(route: str) -> Completer:
    """The names that a listing without pages gives."""

    def complete(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
        return [CompletionItem(row["name"]) for row in _ask(context, route) if row["name"].startswith(typed)]

    return complete


def _ask(context: click.Context, route: str, **arguments: Any) -> list[Any]:
    from agentlab.errors import AgentLabError

    try:
        with screen_of(context).connection() as connection:
            found: list[Any] = connection.call(route, retry=False, **arguments)["items"]
            return found
    except (AgentLabError, OSError):
        return []
