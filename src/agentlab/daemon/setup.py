"""`agentlabd setup …`: prepares what sandboxes stand on.  People call it as `agentlab setup …`."""

from __future__ import annotations

import click

from agentlab.daemon.setup_host_network import host_network


@click.group()
def setup() -> None:
    """Prepare what sandboxes stand on."""


setup.add_command(host_network)
