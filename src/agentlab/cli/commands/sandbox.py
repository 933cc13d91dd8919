"""agentlab sandbox: make and use sandboxes."""

from __future__ import annotations

from typing import Any

import click

from agentlab.cli import complete
from agentlab.cli.commands.sandbox_exec import exec_, shell
from agentlab.cli.commands.sandbox_snapshot import COMMANDS
from agentlab.cli.commands.sandbox_wait import settled, steps_so_far, tell
from agentlab.cli.render import age, between, cell, fields, local, remaining
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Group, screen_of
from agentlab.cli.values import DURATION, SIZE

sandbox = Group("sandbox", help="Make and use sandboxes.", no_args_is_help=True)
sandbox.add_command(exec_)
sandbox.add_command(shell)
for each in COMMANDS:
    sandbox.add_command(each)

NAMED = click.argument("name", metavar="SANDBOX", shell_complete=complete.sandboxes)


@sandbox.command("new")
@click.option("--name", help="A name to call it by, unique among living sandboxes.")
@click.option("--profile", shell_complete=complete.names("profiles.list"), help="Defaults.  [yolo-ephemeral]")
@click.option("--template", shell_complete=complete.names("templates.list"))
@click.option("--backend")
@click.option("--user", help="Whom commands run as inside.")
@click.option("--network", type=click.Choice(["off", "nat"]))
@click.option("--ttl", type=DURATION, help="How long it lives: 90s, 15m, 4h.")
@click.option("--memory", type=SIZE, help="Such as 2GiB.")
@click.option("--cpus", type=float)
@click.option("--pids", type=int, help="How many processes.")
@click.option("--disk", type=SIZE, help="Such as 20GiB.")
@click.option("--no-wait", is_flag=True, help="Return at once; it is made in the background.")
@click.pass_context
def new(context: click.Context, /, no_wait: bool, **options: Any) -> None:
    """Make a sandbox and wait until it is ready."""
    screen = screen_of(context)
    asked = {
        "ttl_s": options.pop("ttl"),
        "memory_bytes": options.pop("memory"),
        "pids_max": options.pop("pids"),
        "disk_bytes": options.pop("disk"),
        **options,
    }
    with screen.connection() as connection:
        row = connection.call("sandboxes.create", **asked)
        if not no_wait:
            row = settled(screen, connection, row)
    tell(screen, row, "ready" if row["state"] == "ready" else row["state"])


@sandbox.command("list")
@click.option("--state", multiple=True, help="Only in this state; may be repeated.")
@click.option("--all", "all_", is_flag=True, help="Destroyed ones too.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@click.pass_context
def list_(context: click.Context, state: tuple[str, ...], all_: bool, limit: int) -> None:
    """List sandboxes, newest first."""
    screen = screen_of(context)
    with screen.connection() as connection:
        rows = pages(connection, "sandboxes.list", limit, state=list(state), all=all_ or None)
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("ID", "NAME", "STATE", "PROFILE", "TEMPLATE", "AGE", "LEASE", "JOB"),
        [
            (
                row["id"], cell(row["name"]), row["state"], cell(row["profile"]), cell(row["template"]),
                age(row["created_at"]), "-" if row["ended_at"] else remaining(row["lease_until"]), cell(row["job"]),
            )
            for row in rows
        ],
        "There are no sandboxes.  `agentlab sandbox new` makes one.",
    )  # fmt: skip


@sandbox.command("show")
@NAMED
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show one sandbox, with the steps that were done for it."""
    screen = screen_of(context)
    with screen.connection() as connection:
        row = connection.call("sandboxes.get", sandbox=name)
        steps = connection.call("sandboxes.steps", sandbox=row["id"])["items"]
    if screen.json:
        screen.emit({**row, "steps": steps})
        return
    resources = row["resources"]
    limits = f"{resources['cpus']:g} CPUs, {_size(resources['memory_bytes'])} memory, {_size(resources['disk_bytes'])}"
    for line in fields(
        [
            ("id", row["id"]),
            ("name", row["name"]),
            ("state", row["state"]),
            ("owner", row["owner"]),
            ("backend", row["backend"]),
            ("profile", row["profile"]),
            ("template", f"{row['template']} ({row['template_digest'][:12]})"),
            ("network", f"{row['network']}{', ' + row['address'] if row['address'] else ''}"),
            ("limits", f"{limits} disk, {resources['pids_max']} processes"),
            ("job", row["job"]),
            ("fork of", row["origin"] and f"{row['origin']['sandbox']}, snapshot {row['origin']['snapshot']}"),
            ("restoring", row["restore_to"]),
            ("made", f"{local(row['created_at'])} ({age(row['created_at'])} ago)"),
            ("ready after", between(row["created_at"], row["ready_at"]) if row["ready_at"] else None),
            ("lease", None if row["ended_at"] else f"{remaining(row['lease_until'])} left"),
            ("ended", f"{local(row['ended_at'])}: {row['ended_reason']}" if row["ended_at"] else None),
        ]
    ):
        screen.line(line)
    for sentence in row["missing_guarantees"]:
        screen.line(screen.paint(f"weaker here: {sentence}", "yellow"))
    show_steps(screen, steps)
    show_failure(screen, row["failure"])


@sandbox.command("logs")
@NAMED
@click.pass_context
def logs(context: click.Context, name: str) -> None:
    """Show the tail of what a sandbox's own processes wrote."""
    from agentlab.base.text import printable

    screen = screen_of(context)
    with screen.connection() as connection:
        answer = connection.call("sandboxes.console", sandbox=name)
    if screen.json:
        screen.emit(answer)
    else:
        screen.line(printable(answer["text"]).rstrip("\n"))


def _verb(verb: str, doc: str, wait: bool = True) -> None:
    @sandbox.command(verb, help=doc)
    @NAMED
    @click.option("--no-wait", is_flag=True, help="Return at once.")
    @click.pass_context
    def command(context: click.Context, name: str, no_wait: bool) -> None:
        screen = screen_of(context)
        with screen.connection() as connection:
            known = steps_so_far(connection, name)
            row = connection.call(f"sandboxes.{verb}", sandbox=name)
            if not no_wait:
                row = settled(screen, connection, row, known)
        tell(screen, row, row["state"])


_verb("stop", "Stop a sandbox; its disk stays.")
_verb("start", "Start a stopped sandbox.")
_verb("pause", "Freeze every process of a sandbox.")
_verb("resume", "Let a paused sandbox go on.")
_verb("destroy", "Destroy a sandbox and all that is in it.")


@sandbox.command("renew")
@NAMED
@click.option("--ttl", type=DURATION, required=True, help="How long it shall live from now: 15m, 4h.")
@click.pass_context
def renew(context: click.Context, name: str, ttl: float) -> None:
    """Let a sandbox live longer."""
    screen = screen_of(context)
    with screen.connection() as connection:
        row = connection.call("sandboxes.renew", sandbox=name, ttl_s=ttl)
    tell(screen, row, f"lives {remaining(row['lease_until'])} more")


def pages(connection: Any, route: str, limit: int, **arguments: Any) -> list[Any]:
    """All rows of a list, up to `limit`."""
    rows: list[Any] = []
    cursor = None
    while len(rows) < limit:
        page = connection.call(route, limit=min(1000, limit - len(rows)), cursor=cursor, **arguments)
        rows += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return rows


def show_steps(screen: Screen, steps: list[Any]) -> None:
    """Steps with their times and what they wait for."""
    if not steps:
        return
    screen.line()
    rows = [
        (
            step["operation"], step["step"], step["outcome"], between(step["started_at"], step["ended_at"]),
            cell(step["detail"]),
        )
        for step in steps
    ]  # fmt: skip
    screen.table(("OPERATION", "STEP", "OUTCOME", "TOOK", "DETAIL"), rows, "")


def show_failure(screen: Screen, failure: Any) -> None:
    """Why something failed, and what to do."""
    if failure is None:
        return
    screen.line()
    for line in fields([("failed at", failure["step"]), ("cause", failure["cause"]), ("remedy", failure["remedy"])]):
        screen.line(screen.paint(line, "red") if line.startswith("failed") else line)


def _size(count: int) -> str:
    from agentlab.base.units import format_bytes

    return format_bytes(count)
