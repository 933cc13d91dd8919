"""agentlab setup host-network: the daemon's program does it, which this one becomes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from agentlab.cli.screen import Screen
from agentlab.cli.shape import Command, screen_of


@click.command("host-network", cls=Command)
@click.option("--bridge", metavar="NAME", help="The bridge's name.  [default: agbr0]")
@click.option("--subnet", metavar="NETWORK", help="The guests' network.  [default: 10.80.0.0/24]")
@click.option("--uplink", metavar="NAME", help="The way to the internet.  [default: auto, the default route's]")
@click.option("--guest-port", metavar="PORT", help="Where guests call home.  [default: 8811]")
@click.option("--guest-address", metavar="ADDRESS", help="Where the daemon is, if not on this host.")
@click.option("--nameserver", metavar="ADDRESS", help="Where guests ask for names, if not on the internet.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--undo", is_flag=True, help="Take it away again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--root", metavar="PATH", type=click.Path(path_type=Path), help="Only write files, below this folder.")
@click.pass_context
def host_network(context: click.Context, /, **given: Any) -> None:
    """Make the bridge that sandboxes of a cluster are on, on this host, with its rules.  Needs root."""
    _become(screen_of(context), given)


def _become(screen: Screen, given: dict[str, Any]) -> None:
    """Go on as `agentlabd setup host-network` with these options, at the same terminal.  It does not return."""
    from agentlab.base.process import ProgramFailed, become
    from agentlab.cli.background import program
    from agentlab.errors import PreflightFailed

    words = [*program(), "setup", "host-network"]
    for option, value in {**given, "json": screen.json}.items():
        flag = f"--{option.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    try:
        become(words, os.environ)
    except ProgramFailed as error:
        raise PreflightFailed(
            cause=str(error), what_to_do="Install AgentLab anew: its parts are not together."
        ) from error
