"""agentlab profile: named defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agentlab.base.units import format_bytes, format_seconds
from agentlab.cli import complete
from agentlab.cli.render import cell, fields
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Group, screen_of
from agentlab.errors import PermissionMissing

profile = Group("profile", help="Named defaults.", no_args_is_help=True)
FILE_BYTES_MAX = 1 << 20


@profile.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """List profiles."""
    screen = screen_of(context)
    with screen.connection() as connection:
        rows = connection.call("profiles.list")["items"]
    _table(screen, rows)


@profile.command("show")
@click.argument("name", metavar="PROFILE", shell_complete=complete.names("profiles.list"))
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show one profile with every value."""
    screen = screen_of(context)
    with screen.connection() as connection:
        row = connection.call("profiles.get", profile=name)
    if screen.json:
        screen.emit(row)
        return
    resources = row["resources"]
    for line in fields(
        [
            ("name", row["name"]),
            ("description", row["description"]),
            ("template", row["template"]),
            ("backend", row["backend"] or "the daemon's default"),
            ("agent", row["agent"]),
            ("user", row["user"]),
            ("network", row["network"]),
            ("memory", format_bytes(resources["memory_bytes"])),
            ("cpus", f"{resources['cpus']:g}"),
            ("processes", resources["pids_max"]),
            ("disk", format_bytes(resources["disk_bytes"])),
            ("ttl", format_seconds(row["ttl_s"])),
            ("timeout", format_seconds(row["timeout_s"])),
            ("keepalive", "yes" if row["keepalive"] else "no"),
            ("nested sandboxes", "yes" if row["nested_sandboxes"] else "no"),
            ("environment", ", ".join(row["env_names"])),
            ("artifacts", ", ".join(row["artifacts"]["globs"])),
            ("from", row["source"]),
        ]
    ):
        screen.line(line)


@profile.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def validate(context: click.Context, file: Path) -> None:
    """Check a profile file as the daemon would, without keeping it."""
    screen = screen_of(context)
    try:
        text = file.read_bytes()[: FILE_BYTES_MAX + 1].decode()
    except OSError as error:
        raise PermissionMissing(
            path=file, cause=error.strerror or str(error), what_to_do="Name a file that can be read."
        ) from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file} is not UTF-8 text: byte {error.start}.") from None
    with screen.connection() as connection:
        rows = connection.call("profiles.validate", text=text, source=str(file))["items"]
    _table(screen, rows)


def _table(screen: Screen, rows: list[Any]) -> None:
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("NAME", "AGENT", "TEMPLATE", "NETWORK", "TTL", "DESCRIPTION"),
        [
            (
                cell(row["name"]), cell(row["agent"]), cell(row["template"]), row["network"],
                format_seconds(row["ttl_s"]), cell(row["description"]),
            )
            for row in rows
        ],
        "There are no profiles.",
    )  # fmt: skip
