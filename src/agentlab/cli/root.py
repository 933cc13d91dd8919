"""The root of the commands.  Groups are imported when they are used."""

from __future__ import annotations

import click

from agentlab import __version__
from agentlab.cli.shape import Group

_AT = "agentlab.cli.commands"


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"agentlab {__version__}")
        context.exit()


root = Group(
    "agentlab",
    help="Run AI coding agents unattended in disposable, network-isolated sandboxes that you own.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    late={
        "job": (f"{_AT}.job", "Give an agent a repository and a task, and get the work back."),
        "sandbox": (f"{_AT}.sandbox", "Make and use sandboxes."),
        "template": (f"{_AT}.template", "What sandboxes are cloned from."),
        "profile": (f"{_AT}.profile", "Named defaults."),
        "backend": (f"{_AT}.backend", "What makes sandboxes here."),
        "agent": (f"{_AT}.agent", "The agents that a job can run."),
        "event": (f"{_AT}.event", "What happened."),
        "up": (f"{_AT}.daemon", "Start a daemon in the background."),
        "down": (f"{_AT}.daemon", "Stop the daemon."),
        "status": (f"{_AT}.daemon", "What the daemon is and holds."),
        "setup": (f"{_AT}.setup", "Prepare something for the daemon: a cluster, a network."),
        "doctor": (f"{_AT}.daemon", "Look at the machine: what is missing, and how to get it."),
        "reload": (f"{_AT}.daemon", "Let the daemon read profiles and recipes again."),
        "whoami": (f"{_AT}.daemon", "Whom the daemon takes you for."),
        "completion": (f"{_AT}.completion", "Completion for bash, zsh or fish."),
    },
)
root.params.append(
    click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, help="Print the version.", callback=_version
    )
)
