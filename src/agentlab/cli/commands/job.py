"""agentlab job: give an agent a repository and a task, and get the work back."""

from __future__ import annotations

from typing import Any

import click

from agentlab.cli import complete
from agentlab.cli.commands.job_result import apply, artifacts, diff, download
from agentlab.cli.commands.job_run import run
from agentlab.cli.commands.sandbox import pages, show_failure, show_steps
from agentlab.cli.render import age, between, cell, fields, local
from agentlab.cli.shape import Group, screen_of
from agentlab.cli.values import DURATION

job = Group("job", help="Give an agent a repository and a task, and get the work back.", no_args_is_help=True)
for each in (run, diff, apply, artifacts, download):
    job.add_command(each)

NAMED = click.argument("name", metavar="JOB", shell_complete=complete.jobs)


@job.command("list")
@click.option("--state", multiple=True, help="Only in this state; may be repeated.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@click.pass_context
def list_(context: click.Context, state: tuple[str, ...], limit: int) -> None:
    """List jobs, newest first."""
    screen = screen_of(context)
    with screen.connection() as connection:
        rows = pages(connection, "jobs.list", limit, state=list(state))
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("ID", "STATE", "AGENT", "REPOSITORY", "TASK", "AGE", "TOOK", "SANDBOX"),
        [
            (
                row["id"], _state(row), cell(row["agent"]), cell(row["repo"]["origin"])[-40:], cell(row["task"])[:40],
                age(row["queued_at"]), between(row["started_at"], row["ended_at"]), cell(row["sandbox"]),
            )
            for row in rows
        ],
        "There are no jobs.  `agentlab job run` starts one.",
    )  # fmt: skip


@job.command("show")
@NAMED
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show one job, with the steps that were done for it."""
    screen = screen_of(context)
    with screen.connection() as connection:
        row = connection.call("jobs.get", job=name)
        steps = connection.call("jobs.steps", job=row["id"])["items"]
    if screen.json:
        screen.emit({**row, "steps": steps})
        return
    result = row["result"] or {}
    changed = f"{result.get('files_changed')} files, +{result.get('lines_added')} -{result.get('lines_removed')}"
    for line in fields(
        [
            ("id", row["id"]),
            ("state", _state(row)),
            ("owner", row["owner"]),
            ("agent", row["agent"]),
            ("profile", row["profile"]),
            ("repository", row["repo"]["origin"] or "none"),
            ("ref", row["repo"]["ref"]),
            ("task", row["task"]),
            ("environment", ", ".join(row["env_names"])),
            ("sandbox", row["sandbox"]),
            ("queued", f"{local(row['queued_at'])} ({age(row['queued_at'])} ago)"),
            ("waited", between(row["queued_at"], row["started_at"]) if row["started_at"] else None),
            ("ran", between(row["running_at"], row["collecting_at"] or row["ended_at"]) if row["running_at"] else None),
            ("ended", local(row["ended_at"]) if row["ended_at"] else None),
            ("output", f"{row['output_bytes']} bytes"),
            ("exit status", result.get("exit_status")),
            ("summary", result.get("summary")),
            ("changed", changed if result else None),
        ]
    ):
        screen.line(line)
    for skipped in result.get("skipped", []):
        screen.line(f"not brought back: {cell(skipped)}")
    show_steps(screen, steps)
    show_failure(screen, row["failure"])


@job.command("logs")
@NAMED
@click.option("-f", "--follow", is_flag=True, help="Until the job ends.")
@click.option("--raw", is_flag=True, help="The bytes as they are, also on a terminal.  The guest chose them.")
@click.pass_context
def logs(context: click.Context, name: str, follow: bool, raw: bool) -> None:
    """Show what the agent wrote."""
    from agentlab.cli.output import Output
    from agentlab.client.watch import JobFollower

    screen = screen_of(context)
    output = Output(screen, raw=raw)
    with screen.connection() as connection:
        job_id = connection.call("jobs.get", job=name)["id"]
        if not follow:
            offset = 0
            while data := connection.call("jobs.output", job=job_id, offset=offset):
                output.write(data, offset)
                offset += len(data)
            output.end()
            return
        for news in JobFollower(connection, job_id).news():
            if news.kind == "output":
                output.write(news.value, 0)
            elif screen.json:
                screen.emit({"type": news.kind, "value": news.value})
        output.end()


@job.command("cancel")
@NAMED
@click.option("--no-wait", is_flag=True, help="Return at once.")
@click.pass_context
def cancel(context: click.Context, name: str, no_wait: bool) -> None:
    """Stop a job.  The work that is there is brought back first."""
    screen = screen_of(context)
    with screen.connection() as connection:
        row = connection.call("jobs.cancel", job=name)
        while not no_wait and row["ended_at"] is None:
            row = connection.call("jobs.get", job=row["id"], wait_s=30)
    if screen.json:
        screen.emit(row)
    else:
        screen.line(f"{row['id']} {_state(row)}")


@job.command("wait")
@click.argument("names", metavar="JOB...", nargs=-1, required=True, shell_complete=complete.jobs)
@click.option("--timeout", type=DURATION, help="Give up after this long; exit code 124.")
@click.pass_context
def wait(context: click.Context, names: tuple[str, ...], timeout: float | None) -> int:
    """Wait until jobs have ended.  Exit code 0 if all succeeded, 20 if one did not, 124 after --timeout."""
    from agentlab.base.clock import SystemClock

    screen, clock = screen_of(context), SystemClock()
    deadline = None if timeout is None else clock.monotonic() + timeout
    rows = []
    with screen.connection() as connection:
        for name in names:
            row = connection.call("jobs.get", job=name)
            while row["ended_at"] is None:
                left = 30.0 if deadline is None else min(30.0, deadline - clock.monotonic())
                if left <= 0:
                    break
                row = connection.call("jobs.get", job=row["id"], wait_s=left)
            rows.append(row)
            if not screen.json:
                screen.line(f"{row['id']} {_state(row)}")
    if screen.json:
        screen.emit(rows)
    if any(row["ended_at"] is None for row in rows):
        return 124
    return 0 if all(row["state"] == "succeeded" for row in rows) else 20


def _state(row: Any) -> str:
    if row["state"] == "queued" and row["queue_position"]:
        return f"queued ({row['queue_position']})"
    if row["state"] == "running" and row["phase"]:
        return f"running ({cell(row['phase'])})"
    return str(row["state"])
