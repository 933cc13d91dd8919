"""The command line program.  The one fence of the CLI: no traceback is ever shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from agentlab import __version__
from agentlab.cli.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Sequence

DEBUG_VARIABLE = "AGENTLAB_DEBUG"  # set: an unforeseen error shows where it came from
EXIT_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.  docs/reference/cli.md lists the codes."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:  # before anything is imported
        sys.stdout.write(f"agentlab {__version__}\n")
        return 0
    screen = Screen()
    try:
        return _run(arguments, screen)
    except KeyboardInterrupt:
        screen.note("interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_PIPE
    except Exception as error:
        return _unforeseen(screen, error)


def _run(arguments: list[str], screen: Screen) -> int:
    import click

    from agentlab.cli.failure import tell, usage
    from agentlab.cli.root import root
    from agentlab.errors import AgentLabError

    try:
        status = root.main(arguments, prog_name="agentlab", standalone_mode=False, obj=screen)
    except AgentLabError as error:
        return tell(screen, error)
    except click.exceptions.Abort:
        screen.note("interrupted")
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stdout.write(error.format_message() + "\n")
        return 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "agentlab"
        screen.json = screen.json or "--json" in arguments  # which the parser may not have come to
        return usage(screen, error.format_message(), f"See `{path} --help`.")
    return status if isinstance(status, int) else 0


def _unforeseen(screen: Screen, error: Exception) -> int:
    from agentlab.cli.failure import tell
    from agentlab.errors import Internal

    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exception(error)
    detail = f"{type(error).__name__}: {error}"
    return tell(
        screen,
        Internal.received(
            message=f"The agentlab command failed: {detail}",
            cause=detail,
            remedy=f"This is a defect.  Run it again with {DEBUG_VARIABLE}=1 and report what it prints.",
            facts={},
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
