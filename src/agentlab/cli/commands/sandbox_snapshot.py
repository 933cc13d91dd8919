"""agentlab sandbox snapshot, restore and fork: a sandbox as it was, again or several times."""

from __future__ import annotations

from typing import Any

import click

from agentlab.cli import complete
from agentlab.cli.commands.sandbox_wait import settled, shown, steps_so_far, tell
from agentlab.cli.render import age, cell
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Command, screen_of
from agentlab.cli.values import DURATION

NAMED = click.argument("name", metavar="SANDBOX", shell_complete=complete.sandboxes)
SNAPSHOT = click.argument("snapshot", metavar="SNAPSHOT", shell_complete=complete.snapshots)
NO_WAIT = click.option("--no-wait", is_flag=True, help="Return at once; it is done in the background.")


@click.command("snapshot", cls=Command)
@NAMED
@click.option("--name", "snapshot", help="What to call it; it is given a name otherwise.")
@click.option("--memory", is_flag=True, help="With what runs inside, so that it goes on from there.")
@NO_WAIT
@click.pass_context
def snapshot_(context: click.Context, name: str, snapshot: str | None, memory: bool, no_wait: bool) -> None:
    """Keep a sandbox as it is now.  It goes on afterwards."""
    screen = screen_of(context)
    with screen.connection() as connection:
        known = steps_so_far(connection, name)
        record = connection.call("sandboxes.snapshot", sandbox=name, name=snapshot, memory=memory or None)
        if not no_wait:
            record = _kept(screen, connection, record, known) or record
    if screen.json:
        screen.emit(record)
    else:
        screen.line(f"{record['sandbox']} {record['name']} {record['state']}")


@click.command("snapshots", cls=Command)
@NAMED
@click.pass_context
def snapshots(context: click.Context, name: str) -> None:
    """List a sandbox's snapshots, oldest first."""
    screen = screen_of(context)
    with screen.connection() as connection:
        rows = connection.call("sandboxes.snapshots", sandbox=name)["items"]
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("NAME", "STATE", "MEMORY", "SIZE", "AGE", "DETAIL"),
        [
            (
                row["name"], row["state"], "yes" if row["memory"] else "no", _size(row["bytes_count"]),
                age(row["taken_at"]), cell(row["failure"]["cause"] if row["failure"] else ""),
            )
            for row in rows
        ],
        f"There are no snapshots.  `agentlab sandbox snapshot {name}` takes one.",
    )  # fmt: skip


@click.command("snapshot-remove", cls=Command)
@NAMED
@SNAPSHOT
@NO_WAIT
@click.pass_context
def snapshot_remove(context: click.Context, name: str, snapshot: str, no_wait: bool) -> None:
    """Remove a snapshot.  Forks that began as it stay whole."""
    screen = screen_of(context)
    with screen.connection() as connection:
        known = steps_so_far(connection, name)
        answer = connection.call("sandboxes.snapshot_remove", sandbox=name, snapshot=snapshot)
        if not no_wait:
            _kept(screen, connection, {"sandbox": name, "name": snapshot}, known)
    screen.emit(answer) if screen.json else screen.line(f"{snapshot} {'is being ' if no_wait else ''}removed")


@click.command("restore", cls=Command)
@NAMED
@SNAPSHOT
@NO_WAIT
@click.pass_context
def restore(context: click.Context, name: str, snapshot: str, no_wait: bool) -> None:
    """Let a sandbox be again what it was.  What it has become since is lost, except in other snapshots."""
    screen = screen_of(context)
    with screen.connection() as connection:
        known = steps_so_far(connection, name)
        row = connection.call("sandboxes.restore", sandbox=name, snapshot=snapshot)
        if not no_wait:
            row = settled(screen, connection, row, known)
    tell(screen, row, "is being restored" if no_wait else f"restored, {row['state']}")


@click.command("fork", cls=Command)
@NAMED
@click.option("-n", "--count", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--name", "prefix", metavar="NAME", help="They are called NAME-1, NAME-2 …")
@click.option("--snapshot", shell_complete=complete.snapshots, help="What they begin as.  [as the sandbox is now]")
@click.option("--ttl", type=DURATION, help="How long they live.  [as long as the sandbox]")
@NO_WAIT
@click.pass_context
def fork(
    context: click.Context,
    name: str,
    count: int,
    prefix: str | None,
    snapshot: str | None,
    ttl: float | None,
    no_wait: bool,
) -> None:
    """Make sandboxes that begin as this one is, each with an identity of its own.  It goes on meanwhile."""
    from agentlab.errors import ProvisionFailed

    screen = screen_of(context)
    problem: ProvisionFailed | None = None
    with screen.connection() as connection:
        rows = connection.call(
            "sandboxes.fork", sandbox=name, count=count, name=prefix, snapshot=snapshot, ttl_s=ttl
        )["items"]  # fmt: skip
        for place, row in enumerate(rows if not no_wait else ()):
            if len(rows) > 1 and not screen.json:
                screen.note(f"{row['id']}:")
            try:
                rows[place] = settled(screen, connection, row)
            except ProvisionFailed as error:  # the others may well succeed, and are told of first
                problem = problem or error
                rows[place] = connection.call("sandboxes.get", sandbox=row["id"])
    if screen.json:
        screen.emit(rows)
    else:
        for row in rows:
            tell(screen, row, row["state"])
    if problem is not None:
        raise problem


COMMANDS = (snapshot_, snapshots, snapshot_remove, restore, fork)


def _kept(screen: Screen, connection: Any, record: Any, known: list[Any]) -> Any:
    """The snapshot once nothing is under way for it; None once it is gone.  SnapshotFailed."""
    from agentlab.client.watch import settle_snapshot
    from agentlab.errors import SnapshotFailed

    found = shown(screen, settle_snapshot(connection, record["sandbox"], record["name"], known=known))
    if found is not None and (failure := found["failure"]) is not None:
        raise SnapshotFailed(
            sandbox=found["sandbox"],
            step=failure["step"],
            name=found["name"],
            cause=failure["cause"],
            what_to_do=failure["remedy"],
        )
    return found


def _size(count: int) -> str:
    from agentlab.base.units import format_bytes

    return format_bytes(count)
