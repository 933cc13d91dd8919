"""What all commands share: late imports, global options in every place, and a suggestion for what is misspelt."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from agentlab.cli.screen import Screen


def screen_of(context: click.Context) -> Screen:
    """The one screen of this run."""
    return context.find_root().ensure_object(Screen)


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        setattr(screen_of(context), str(parameter.name), value)


def global_options() -> list[click.Parameter]:
    """Options that every command takes."""
    return [
        click.Option(
            ["--json", "json"], is_flag=True, expose_value=False, callback=_set, help="Print JSON: for programs."
        ),
        click.Option(
            ["--socket"], metavar="PATH", expose_value=False, callback=_set, help="The daemon's socket."
        ),
        click.Option(
            ["--no-color", "no_color"], is_flag=True, expose_value=False, callback=_set, help="No colours."
        ),
    ]  # fmt: skip


class Command(click.Command):
    """A command with the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *global_options()]


class Group(click.Group):
    """A group with the global options, whose commands may be imported on use."""

    command_class = Command

    def __init__(self, *args: Any, late: dict[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        """`late` maps a command's name to the module that has an attribute of that name, and its line of help."""
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *global_options()]
        self._late = late or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._late, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._late:
            found: click.Command = getattr(import_module(self._late[cmd_name][0]), cmd_name)
            return found
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help without importing every command."""
        rows = [(name, doc) for name, (_, doc) in self._late.items()]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(90)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            from agentlab.base.text import did_you_mean

            known = [each for each in self.list_commands(ctx) if not each.startswith("_")]
            raise click.UsageError(f"There is no command {name!r}.{did_you_mean(name, known)}", ctx)
        return super().resolve_command(ctx, args)
