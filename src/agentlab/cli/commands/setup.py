"""agentlab setup: prepares what sandboxes stand on.  The daemon's program does it, in place of this one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from agentlab.cli.screen import Screen
from agentlab.cli.shape import Group, screen_of

setup = Group("setup", help="Prepare what sandboxes stand on.", no_args_is_help=True)


@setup.command("host-network")
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
    hand_over(screen_of(context), "host-network", given)


def hand_over(screen: Screen, name: str, given: dict[str, Any]) -> None:
    """Go on as `agentlabd setup NAME` with these options; those that are not set are left out."""
    from agentlab.base.process import ProgramFailed, become
    from agentlab.cli.background import daemon_program
    from agentlab.errors import PreflightFailed

    words = [*daemon_program(), "setup", name]
    for option, value in {**given, "json": screen.json}.items():
        flag = f"--{option.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    try:
        become(words, os.environ)
    except ProgramFailed as failure:
        raise PreflightFailed(cause=str(failure), what_to_do="Install AgentLab again, whole.") from failure
