"""agentlab backend: what makes sandboxes here."""

from __future__ import annotations

from typing import Any

import click

from agentlab.cli import complete
from agentlab.cli.render import cell, fields
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Group, screen_of

backend = Group("backend", help="What makes sandboxes here.", no_args_is_help=True)


@backend.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """List this daemon's backends with what they work with."""
    screen = screen_of(context)
    rows = _backends(screen)
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("NAME", "STATE", "FACTS", "WEAKER"),
        [(row["name"], _state(row), cell(_facts(row)) or "-", str(len(row["missing_guarantees"]))) for row in rows],
        "There are no backends.",
    )


@backend.command("show")
@click.argument("name", metavar="BACKEND", shell_complete=complete.backends)
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show one backend: what it can do, what it works with, and which guarantees it cannot give here."""
    from agentlab.base.text import did_you_mean
    from agentlab.errors import BackendUnknown

    screen = screen_of(context)
    rows = {row["name"]: row for row in _backends(screen)}
    if (row := rows.get(name)) is None:
        raise BackendUnknown(name=name, hint=did_you_mean(name, rows))
    if screen.json:
        screen.emit(row)
        return
    for line in fields(
        [
            ("name", row["name"]),
            ("state", _state(row)),
            ("can", ", ".join(row["capabilities"]) or "nothing"),
            *sorted(row["facts"].items()),
        ]
    ):
        screen.line(line)
    for sentence in row["missing_guarantees"]:
        screen.line(screen.paint(f"weaker here: {cell(sentence)}", "yellow"))


def _backends(screen: Screen) -> list[Any]:
    with screen.connection() as connection:
        found: list[Any] = connection.call("daemon.status")["facts"]["backends"]
    return found


def _state(row: Any) -> str:
    return "usable" if row["usable"] else "not usable: see `agentlab doctor`"


def _facts(row: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(row["facts"].items()))
