"""agentlab setup: prepare something for the daemon.  The work is the daemon's program's, which this one becomes."""

from __future__ import annotations

from agentlab.cli.commands.setup_host_network import host_network
from agentlab.cli.shape import Group

setup = Group("setup", help="Prepare something for the daemon.", no_args_is_help=True)
setup.add_command(host_network)
