"""A job's progress on the terminal, and what Ctrl-C means meanwhile."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from agentlab.cli.output import Output
from agentlab.cli.progress import Progress
from agentlab.client.watch import JobFollower

if TYPE_CHECKING:
    from agentlab.cli.screen import Screen
    from agentlab.client.sync import Connection

QUESTION = "\nThe job goes on.  [d]etach from it, [c]ancel it, or Enter to keep watching: "


class Detached(Exception):
    """The user left the job to itself."""


def follow(screen: Screen, connection: Connection, job: str) -> Any:
    """Show a job until it has ended; its row.  Raises Detached."""
    progress, output = Progress(screen), Output(screen)
    follower = JobFollower(connection, job)
    while True:
        try:
            for news in follower.news():
                if news.kind == "end":
                    progress.clear()
                    if not screen.json:
                        output.end()
                    return news.value
                _show(screen, progress, output, news.kind, news.value)
        except KeyboardInterrupt:
            progress.clear()
            _interrupted(screen, connection, job)


def _show(screen: Screen, progress: Progress, output: Output, kind: str, value: Any) -> None:
    if kind == "output":
        progress.clear()
        if not screen.json:
            output.write(value, 0)
    elif kind == "step":
        progress.step(value)
    elif kind == "cut":
        progress.line(f"  the connection was cut ({value}); the job goes on, waiting for the daemon …")
    elif value["state"] == "queued" and value["queue_position"]:
        progress.passing(f"  … queued, number {value['queue_position']}")
    elif value["state"] in ("starting", "collecting"):
        progress.passing(f"  … {value['state']}{': ' + value['phase'] if value['phase'] else ''}")


def _interrupted(screen: Screen, connection: Connection, job: str) -> None:
    if screen.json or not sys.stdin.isatty():
        raise Detached
    try:
        answer = input(QUESTION).strip().lower()
    except EOFError:
        raise Detached from None
    except KeyboardInterrupt:
        answer = "c"
    if answer.startswith("d"):
        raise Detached
    if answer.startswith("c"):
        screen.note("\nCancelling; the work that is there is brought back.")
        connection.call("jobs.cancel", job=job)


def leave(screen: Screen, job: str) -> int:
    """Say how to come back; the exit code."""
    from agentlab.errors import EXIT_INTERRUPTED

    screen.note(f"\nDetached; {job} goes on.  Watch: agentlab job logs -f {job}   Stop: agentlab job cancel {job}")
    return EXIT_INTERRUPTED
