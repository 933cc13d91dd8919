"""agentlab job run."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from agentlab.cli import complete
from agentlab.cli.commands.sandbox_exec import environment
from agentlab.cli.progress import Progress
from agentlab.cli.render import cell
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Command, screen_of
from agentlab.cli.values import DURATION
from agentlab.errors import JobEnded, TaskInvalid

TASK_BYTES_MAX = 1 << 20  # the daemon's limit, checked here before anything is sent


@click.command("run", cls=Command)
@click.option("--repo", metavar="URL|PATH", help="The repository; a local one is sent as a bundle.  [an empty one]")
@click.option("--ref", help="Branch, tag or commit.  [what is checked out]")
@click.option("--task", required=True, metavar="TEXT|@FILE|-", help="What to do; `-` reads standard input.")
@click.option("--profile", shell_complete=complete.names("profiles.list"), help="Defaults.  [yolo-ephemeral]")
@click.option("--agent", shell_complete=complete.names("agents.list"), help="Who does it.  [as the profile says]")
@click.option("--backend")
@click.option("--ttl", type=DURATION, help="How long the sandbox may live: 4h.")
@click.option("--timeout", type=DURATION, help="How long the agent may run: 90m.")
@click.option("--keepalive/--no-keepalive", default=None, help="Keep the sandbox after the job.")
@click.option("--env", multiple=True, metavar="NAME=VALUE|NAME", help="Sealed at once; NAME alone takes it from here.")
@click.option("--artifact", multiple=True, metavar="GLOB", help="Files to bring back; may be repeated.")
@click.option("--include-uncommitted", is_flag=True, help="Send the work tree's changes as one more commit.")
@click.option("--apply-to", type=click.Path(path_type=Path), metavar="CLONE", help="Put the work there as a branch.")
@click.option("--detach", is_flag=True, help="Return at once; the job runs in the background.")
@click.pass_context
def run(context: click.Context, /, detach: bool, apply_to: Path | None, **options: Any) -> int:
    """Run a job: a sandbox is made, the agent works in it, and the work comes back."""
    from agentlab.cli.follow import Detached, follow, leave

    screen = screen_of(context)
    task = read_task(options["task"])
    variables = environment(options["env"])
    with screen.connection() as connection:
        repo = _repository(screen, connection, options["repo"], options["ref"], options["include_uncommitted"])
        row = connection.call(
            "jobs.create",
            task=task,
            repo=repo,
            profile=options["profile"],
            agent=options["agent"],
            backend=options["backend"],
            ttl_s=options["ttl"],
            timeout_s=options["timeout"],
            keepalive=options["keepalive"],
            env=variables or None,
            artifact_globs=list(options["artifact"]) or None,
        )
        if detach:
            _tell_detached(screen, row)
            return 0
        if not screen.json:
            screen.note(f"{row['id']}: {row['agent']} on {cell(row['repo']['origin']) if repo else 'no repository'}")
        try:
            row = follow(screen, connection, row["id"])
        except Detached:
            return leave(screen, row["id"])
        _tell_result(screen, connection, row)
        if apply_to is not None and _has_work(row):
            from agentlab.cli.commands.job_result import apply_job

            apply_job(screen, connection, row, apply_to, None, False)
    if row["state"] != "succeeded":
        raise _ended(row)
    return 0


def read_task(given: str) -> str:
    """The task's text: as given, from a file, or from standard input.  Raises TaskInvalid."""
    if given == "-":
        raw = sys.stdin.buffer.read(TASK_BYTES_MAX + 1)
    elif given.startswith("@"):
        try:
            with Path(given[1:]).open("rb") as file:
                raw = file.read(TASK_BYTES_MAX + 1)
        except OSError as error:
            raise TaskInvalid(cause=f"{given[1:]}: {error.strerror}") from None
    else:
        raw = given.encode(errors="surrogateescape")
    if len(raw) > TASK_BYTES_MAX:
        raise TaskInvalid(cause=f"it is longer than TASK_BYTES_MAX = {TASK_BYTES_MAX} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise TaskInvalid(cause=f"it is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}") from None
    if not text.strip():
        raise TaskInvalid(cause="it is empty")
    return text


def _repository(screen: Screen, connection: Any, given: str | None, ref: str | None, uncommitted: bool) -> Any:
    if given is None:
        if ref is not None or uncommitted:
            raise click.UsageError("--ref and --include-uncommitted need --repo.")
        return None
    if is_url(given):
        if uncommitted:
            raise click.UsageError("--include-uncommitted needs a local repository.")
        return {"url": given, "ref": ref, "origin": without_credentials(given)}
    from agentlab.base.units import format_bytes
    from agentlab.client.repository import pack

    progress = Progress(screen)
    with tempfile.TemporaryDirectory(prefix="agentlab-pack-") as scratch:
        progress.passing("  … packing the repository")
        packed = pack(Path(given).expanduser(), ref, uncommitted, Path(scratch))
        progress.passing(f"  … sending {format_bytes(packed.bytes_count)}")
        with packed.file.open("rb") as file:
            connection.upload(packed.digest, file, packed.bytes_count)
        added = f", with {packed.uncommitted} uncommitted files" if packed.uncommitted else ""
        what = f"{packed.branch} at {packed.commit[:12]}{added}, {format_bytes(packed.bytes_count)}"
        progress.line(f"  {screen.paint('✓', 'green', sys.stderr)} sent {what}")
    return {"bundle": packed.digest, "origin": packed.origin}


def is_url(text: str) -> bool:
    """Whether git would fetch this over a network: scheme://…, or host:path as ssh has it."""
    if "://" in text:
        return True
    head, colon, _ = text.partition(":")
    return bool(colon) and "/" not in head and not Path(text).exists()


def without_credentials(url: str) -> str:
    """The URL as it may be shown."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _has_work(row: Any) -> bool:
    result = row["result"] or {}
    return bool(result.get("head_commit") and result["head_commit"] != result.get("base_commit"))


def _tell_detached(screen: Screen, row: Any) -> None:
    if screen.json:
        screen.emit(row)
        return
    screen.line(row["id"])
    screen.note(f"Watch: agentlab job logs -f {row['id']}   Stop: agentlab job cancel {row['id']}")


def _tell_result(screen: Screen, connection: Any, row: Any) -> None:
    if screen.json:
        screen.emit(row)
        return
    from agentlab.cli.render import between, counted

    result = row["result"] or {}
    color = "green" if row["state"] == "succeeded" else "red"
    took = between(row["started_at"], row["ended_at"])
    status = f", exit status {result['exit_status']}" if result.get("exit_status") is not None else ""
    screen.note(f"\n{screen.paint(row['state'], color, sys.stderr)} after {took}{status}")
    if result.get("summary"):
        screen.note(f"  {cell(result['summary'])}")
    for skipped in result.get("skipped", []):
        screen.note(f"  not brought back: {cell(skipped)}")
    files = [each for each in connection.call("jobs.artifacts", job=row["id"])["items"] if each["kind"] == "file"]
    if _has_work(row):
        screen.note(f"\n  agentlab job diff {row['id']}\n  agentlab job apply {row['id']} --to CLONE")
    else:
        screen.note("  no commits came back")
    if files:
        screen.note(f"  agentlab job download {row['id']}     ({counted(len(files), 'artifact')})")


def _ended(row: Any) -> JobEnded:
    failure, result = row["failure"], row["result"] or {}
    cause = failure["cause"] if failure else result.get("summary") or "the agent did not succeed"
    status = result.get("exit_status")
    if not failure and status is not None:
        cause = f"the agent ended with exit status {status}"
    remedy = failure["remedy"] if failure else f"`agentlab job logs {row['id']}` shows what it wrote."
    return JobEnded(job=row["id"], state=row["state"].replace("_", " "), cause=cause, what_to_do=remedy)
