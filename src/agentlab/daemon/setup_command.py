"""`agentlabd setup`: the commands that prepare something for the daemon; `agentlab setup` becomes this program."""

from __future__ import annotations

import click

from agentlab.daemon.setup_host_network import host_network


@click.group("setup")
def setup() -> None:
    """Prepare something for the daemon."""


setup.add_command(host_network)
