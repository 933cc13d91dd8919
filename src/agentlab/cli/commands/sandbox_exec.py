"""agentlab sandbox exec and shell: a command inside, with this terminal's streams."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from agentlab.cli import complete
from agentlab.cli.shape import Command, screen_of

LOGIN = "if [ -x /bin/bash ]; then exec /bin/bash -l; fi; exec /bin/sh -l"
READ_BYTES = 64 << 10


@click.command("exec", cls=Command, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--user", help="Whom the command runs as; the sandbox's user if not given.")
@click.option("--cwd", default="/", show_default=True)
@click.option("--env", multiple=True, metavar="NAME=VALUE|NAME", help="May be repeated; NAME alone takes it from here.")
@click.option("--tty/--no-tty", "-t/-T", default=None, help="With a terminal.  [if this is one]")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds; with --json only.")
@click.argument("name", metavar="SANDBOX", shell_complete=complete.sandboxes)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.pass_context
def exec_(
    context: click.Context,
    name: str,
    argv: tuple[str, ...],
    user: str | None,
    cwd: str,
    env: tuple[str, ...],
    tty: bool | None,
    timeout: float,
) -> int:
    """Run a command in a sandbox.  Its exit status becomes this program's."""
    screen = screen_of(context)
    variables = environment(env)
    command = list(argv[1:] if argv[0] == "--" else argv)
    if screen.json:
        with screen.connection() as connection:
            answer = connection.call(
                "sandboxes.execute", sandbox=name, argv=command, user=user, cwd=cwd, env=variables, timeout_s=timeout
            )
        screen.emit(answer)
        return 124 if answer["exit_code"] is None else int(answer["exit_code"])
    if tty is None:
        tty = sys.stdin.isatty() and sys.stdout.isatty()
    return _attached(screen.connection().path, name, command, user=user, cwd=cwd, env=variables, tty=tty)


@click.command("shell", cls=Command)
@click.option("--user", help="Whom the shell runs as; the sandbox's user if not given.")
@click.option("--cwd", default="/", show_default=True)
@click.argument("name", metavar="SANDBOX", shell_complete=complete.sandboxes)
@click.pass_context
def shell(context: click.Context, name: str, user: str | None, cwd: str) -> int:
    """Open a shell in a sandbox."""
    term = os.environ.get("TERM", "xterm")
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    path = screen_of(context).connection().path
    return _attached(path, name, ["/bin/sh", "-c", LOGIN], user=user, cwd=cwd, env={"TERM": term}, tty=tty)


def environment(given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, or NAME to take the value from this environment."""
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            if name not in os.environ:
                raise click.UsageError(f"--env {name}: this environment has no such variable; give {name}=VALUE.")
            value = os.environ[name]
        found[name] = value
    return found


def _attached(path: Any, name: str, argv: list[str], **options: Any) -> int:
    from agentlab.cli.terminal import Raw, rows_and_columns, run
    from agentlab.client.attach import Attachment

    if options["tty"]:
        options["rows"], options["columns"] = rows_and_columns()
    with Attachment(path, name, argv, **options) as attachment:
        if options["tty"]:
            with Raw():
                return run(attachment, tty=True)
        return run(attachment, tty=False)
