"""agentlab template: what sandboxes are cloned from."""

from __future__ import annotations

from typing import Any

import click

from agentlab.base.units import format_bytes, format_seconds
from agentlab.cli import complete
from agentlab.cli.commands.sandbox import show_failure
from agentlab.cli.progress import Progress
from agentlab.cli.render import age, cell, fields, local
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Group, screen_of

LOOK_S = 0.5
template = Group("template", help="What sandboxes are cloned from.", no_args_is_help=True)
NAMED = click.argument("name", metavar="TEMPLATE", shell_complete=complete.names("templates.list"))


@template.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """List templates: every recipe, built or not."""
    screen = screen_of(context)
    with screen.connection() as connection:
        rows = connection.call("templates.list")["items"]
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("NAME", "STATE", "SIZE", "BUILT", "PACKAGES", "DIGEST"),
        [
            (
                cell(row["name"]), f"{row['state']}{': ' + cell(row['step']) if row['state'] == 'building' else ''}",
                format_bytes(row["bytes_count"]) if row["bytes_count"] else "-",
                f"{age(row['built_at'])} ago" if row["built_at"] else "-", str(len(row["packages"]) or "-"),
                (row["digest"] or "-")[:12],
            )
            for row in rows
        ],
        "There are no recipes.",
    )  # fmt: skip


@template.command("show")
@NAMED
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show one template with what is installed in it."""
    screen = screen_of(context)
    with screen.connection() as connection:
        row = connection.call("templates.get", template=name)
    if screen.json:
        screen.emit(row)
        return
    for line in fields(
        [
            ("name", row["name"]),
            ("state", row["state"]),
            ("step", row["step"]),
            ("digest", row["digest"]),
            ("recipe", row["recipe_digest"]),
            ("size", format_bytes(row["bytes_count"]) if row["bytes_count"] else None),
            (
                "built",
                f"{local(row['built_at'])} in {format_seconds(row['build_s'] or 0)}" if row["built_at"] else None,
            ),
        ]
    ):
        screen.line(line)
    if row["packages"]:
        screen.line()
        packages = [(cell(each["name"]), cell(each["version"])) for each in row["packages"]]
        screen.table(("PACKAGE", "VERSION"), packages, "")
    show_failure(screen, row["failure"])


@template.command("build")
@NAMED
@click.option("--no-wait", is_flag=True, help="Return at once; it is built in the background.")
@click.pass_context
def build(context: click.Context, name: str, no_wait: bool) -> None:
    """Build a template, or take up a build where it stopped.  Ctrl-C leaves it building."""
    screen = screen_of(context)
    with screen.connection() as connection:
        since = _last_event(connection)
        row = connection.call("templates.build", template=name)
        if row["state"] == "building" and not no_wait:
            row = _watch(screen, connection, row, since)
    if screen.json:
        screen.emit(row)
    else:
        size = f", {format_bytes(row['bytes_count'])}" if row["bytes_count"] else ""
        screen.line(f"{row['name']} {row['state']}{size}")


@template.command("remove")
@NAMED
@click.pass_context
def remove(context: click.Context, name: str) -> None:
    """Remove a template's files; its recipe stays."""
    screen = screen_of(context)
    with screen.connection() as connection:
        answer = connection.call("templates.remove", template=name)
    if screen.json:
        screen.emit(answer)
    else:
        screen.line(f"{name} removed")


def _last_event(connection: Any) -> int:
    return int(connection.call("daemon.status")["facts"].get("last_event", 0))


def _watch(screen: Screen, connection: Any, row: Any, since: int) -> Any:
    from agentlab.base.clock import SystemClock, pause
    from agentlab.errors import TemplateBuildFailed

    progress, clock = Progress(screen), SystemClock()
    step, began = "", clock.monotonic()
    try:
        while row["state"] == "building":
            since = _tell_steps(connection, progress, row["name"], since)
            if row["step"] != step:
                step, began = row["step"], clock.monotonic()
            progress.passing(f"  … {step}  {format_seconds(clock.monotonic() - began)}")
            pause(LOOK_S)
            row = connection.call("templates.get", template=row["name"])
        _tell_steps(connection, progress, row["name"], since)
    finally:
        progress.clear()
    if row["state"] == "failed" and (failure := row["failure"]) is not None:
        raise TemplateBuildFailed(
            name=row["name"], step=failure["step"], cause=failure["cause"], what_to_do=failure["remedy"]
        )
    return row


def _tell_steps(connection: Any, progress: Progress, name: str, since: int) -> int:
    page = connection.call("events.list", since=since, subject=name, types=["template.step"])
    for event in page["items"]:
        took = "cached" if event["data"]["cached"] else format_seconds(event["data"]["took_ms"] / 1000)
        progress.line(f"  ✓ {cell(event['data']['step'])}  {took}")
    return max(since, int(page["next_since"]))
