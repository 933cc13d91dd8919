"""Waiting for what was asked of a sandbox, with its steps as they happen, and telling what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentlab.cli.progress import Progress
from agentlab.cli.screen import Screen


def steps_so_far(connection: Any, name: str) -> list[Any]:
    """The steps that are old news when something new is asked."""
    found: list[Any] = connection.call("sandboxes.steps", sandbox=name)["items"]
    return found


def settled(screen: Screen, connection: Any, row: Any, known: Iterable[Any] = ()) -> Any:
    """The row once nothing is under way for it.  ProvisionFailed, SnapshotFailed."""
    from agentlab.client.watch import settle
    from agentlab.errors import ProvisionFailed, SnapshotFailed

    wanted, row = row["restore_to"], shown(screen, settle(connection, row["id"], known=known))
    failure = row["failure"]
    if failure is not None and row["state"] == "failed":
        raise ProvisionFailed(
            sandbox=row["id"], step=failure["step"], cause=failure["cause"], what_to_do=failure["remedy"]
        )
    if failure is not None and wanted is not None:
        raise SnapshotFailed(
            sandbox=row["id"], step=failure["step"], name=wanted, cause=failure["cause"], what_to_do=failure["remedy"]
        )
    return row


def shown(screen: Screen, news: Iterable[Any]) -> Any:
    """Show each step; the value that comes at the end."""
    progress, value = Progress(screen), None
    try:
        for each in news:
            if each.kind == "step":
                progress.step(each.value)
            elif each.kind == "end":
                value = each.value
    finally:
        progress.clear()
    return value


def tell(screen: Screen, row: Any, what: str) -> None:
    """One sandbox on one line, or as JSON."""
    if screen.json:
        screen.emit(row)
        return
    name = f" ({row['name']})" if row["name"] else ""
    screen.line(f"{row['id']}{name} {what}")
