"""`agentlabd`: the daemon's command line."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import click

from agentlab import __version__
from agentlab.errors import AgentLabError

# The loop goes on at the latest after this while threads mount, hash or write; the default is 5 ms, and waits add up.
SWITCH_INTERVAL_S = 0.001

_BEGAN = time.monotonic()


class _Commands(click.Group):
    """What the program does beside serving; imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["setup"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "setup":
            return None
        from agentlab.daemon.setup_command import setup

        return setup


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="The configuration file; without it, defaults serve.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Keep everything below this directory.")
@click.option("--log-format", type=click.Choice(["auto", "json", "human"]), help="How log lines look.")
@click.option("--check", is_flag=True, help="Check the configuration and end.")
@click.version_option(__version__, prog_name="agentlabd")
@click.pass_context
def command(
    context: click.Context, config: Path | None, directory: Path | None, log_format: str | None, check: bool
) -> None:
    """Run the AgentLab daemon in the foreground until SIGTERM; or, with a command, only that."""
    if context.invoked_subcommand is not None:
        return
    gc.disable()  # importing makes no garbage to speak of, and looking for it takes a fifth of the time; see `serve`
    import uvloop

    from agentlab.base.redaction import Redaction
    from agentlab.daemon import rootless
    from agentlab.daemon.lifecycle import serve
    from agentlab.daemon.logs import configure
    from agentlab.daemon.settings import load_settings

    os.umask(0o077)
    settings = load_settings(config, os.environ, rootless.user_id(), directory)
    if check:
        click.echo(f"settings: good ({settings.source})")
        return
    rootless.enter(settings)
    redaction = Redaction()
    configure(log_format or settings.log.format, settings.log.level, redaction)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(serve(settings, redaction, _BEGAN))


def main() -> None:
    """The console script: errors with cause and remedy on standard error, never a traceback for a known one."""
    try:
        status = command(standalone_mode=False)
    except AgentLabError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _tell(error: AgentLabError) -> None:
    if "--json" in sys.argv:  # of a command that was meant for programs
        import json

        from agentlab.wire.problem import to_problem

        sys.stderr.write(json.dumps(to_problem(error)) + "\n")
        return
    sys.stderr.write(f"agentlabd: {error}\n  remedy: {error.advice}\n")


if __name__ == "__main__":
    main()
