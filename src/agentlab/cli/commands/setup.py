"""agentlab setup: prepare something for the daemon.  The work is the daemon's program's, which this one becomes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from agentlab.cli.shape import Command, Group, screen_of
from agentlab.wire.setup import HOST_NETWORK, HOST_NETWORK_DOC, PROXMOX, PROXMOX_DOC, OptionRow, arguments, parameters

setup = Group("setup", help="Prepare something for the daemon.", no_args_is_help=True)


@click.pass_context
def _proxmox(context: click.Context, /, **values: Any) -> None:
    _become(context, "proxmox", PROXMOX, values)


@click.pass_context
def _host_network(context: click.Context, /, **values: Any) -> None:
    _become(context, "host-network", HOST_NETWORK, values)


setup.add_command(Command("proxmox", params=parameters(PROXMOX), callback=_proxmox, help=PROXMOX_DOC))
setup.add_command(
    Command("host-network", params=parameters(HOST_NETWORK), callback=_host_network, help=HOST_NETWORK_DOC)
)


def _become(context: click.Context, name: str, rows: Sequence[OptionRow], values: dict[str, Any]) -> None:
    """Go on as `agentlabd setup NAME` with the same options, at the same terminal.  It does not return."""
    from agentlab.base.process import ProgramFailed, become
    from agentlab.cli.background import program
    from agentlab.errors import PreflightFailed

    words = [*program(), "setup", name, *arguments(rows, values)]
    try:
        become([*words, "--json"] if screen_of(context).json else words, os.environ)
    except ProgramFailed as error:
        raise PreflightFailed(
            cause=str(error), what_to_do="Install AgentLab anew: its parts are not together."
        ) from error
