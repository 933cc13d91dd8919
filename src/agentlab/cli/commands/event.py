"""agentlab event: what happened."""

from __future__ import annotations

from typing import Any

import click

from agentlab.cli.render import cell, local
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Group, screen_of

event = Group("event", help="What happened.", no_args_is_help=True)
SUBJECT = click.option("--subject", help="Only of this sandbox, job or template.")
TYPES = click.option("--type", "types", multiple=True, help="Only of this type, such as job.state; may be repeated.")


@event.command("list")
@SUBJECT
@TYPES
@click.option("--since", type=click.IntRange(0), default=0, help="Only after this sequence number.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@click.pass_context
def list_(context: click.Context, subject: str | None, types: tuple[str, ...], since: int, limit: int) -> None:
    """List events, oldest first."""
    screen = screen_of(context)
    rows: list[Any] = []
    with screen.connection() as connection:
        while len(rows) < limit:
            page = connection.call(
                "events.list", since=since, subject=subject, types=list(types), limit=min(1000, limit - len(rows))
            )
            rows += page["items"]
            if page["next_since"] == since or not page["items"]:
                break
            since = page["next_since"]
    if screen.json:
        screen.emit(rows)
        return
    for each in rows:
        _line(screen, each)


@event.command("follow")
@SUBJECT
@TYPES
@click.option("--since", type=click.IntRange(0), help="After this sequence number.  [from now on]")
@click.pass_context
def follow(context: click.Context, subject: str | None, types: tuple[str, ...], since: int | None) -> None:
    """Show events as they happen, until Ctrl-C.  Goes on after a cut; with --json, one object on each line."""
    from agentlab.base.clock import pause
    from agentlab.errors import DaemonNotRunning

    screen = screen_of(context)
    last_id = None if since is None else str(since)
    seen = False
    with screen.connection() as connection:
        while True:
            try:
                for each in connection.stream("events.follow", last_id=last_id, subject=subject, types=list(types)):
                    seen, last_id = True, each.id
                    screen.emit(each.value()) if screen.json else _line(screen, each.value())
                seen = True
            except (OSError, DaemonNotRunning):
                if not seen:
                    raise
            pause(0.5)


def _line(screen: Screen, each: Any) -> None:
    facts = " ".join(f"{name}={cell(value)}" for name, value in each["data"].items() if value not in ("", None))
    kind = f"{each['type']:<22}"
    bad = any(word in each["type"] for word in ("failed", "refused", "broken", "quarantined", "abandoned"))
    shown = screen.paint(kind, "red") if bad else kind
    screen.line(f"{each['seq']:>6}  {local(each['at'])}  {shown}  {cell(each['subject']):<14}  {facts}")
