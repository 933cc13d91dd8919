"""agentlab agent: who can do a job."""

from __future__ import annotations

import click

from agentlab.cli.render import cell
from agentlab.cli.shape import Group, screen_of

agent = Group("agent", help="The agents that a job can run.", no_args_is_help=True)


@agent.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """List agents, with the variables that carry their provider keys: any one of them suffices."""
    screen = screen_of(context)
    with screen.connection() as connection:
        rows = connection.call("agents.list")["items"]
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("NAME", "TITLE", "TEMPLATE", "KEY"),
        [(row["name"], cell(row["title"]), row["template"], " or ".join(row["key_names"]) or "-") for row in rows],
        "There are no agents.",
    )
