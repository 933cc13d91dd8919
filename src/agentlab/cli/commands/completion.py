"""agentlab completion: the script that a shell evaluates."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from agentlab.cli.shape import Command, screen_of

VARIABLE = "_AGENTLAB_COMPLETE"
HOW = {
    "bash": 'eval "$(agentlab completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(agentlab completion zsh)"   in ~/.zshrc',
    "fish": "agentlab completion fish | source   in ~/.config/fish/config.fish",
}


@click.command("completion", cls=Command, epilog="Put this into your shell's start-up file: " + "; ".join(HOW.values()))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    from agentlab.cli.root import root

    kind = get_completion_class(shell)
    assert kind is not None
    # The script text is asked for, not checked against an installed shell: it may be written to a file for later.
    source = kind(root, {}, "agentlab", VARIABLE)
    text = source.source_template % source.source_vars()
    screen = screen_of(context)
    if screen.json:
        screen.emit({"shell": shell, "script": text})
    else:
        screen.line(text)
