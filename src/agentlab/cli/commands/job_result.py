"""agentlab job diff, apply, artifacts and download: what a job brought back."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from agentlab.cli import complete
from agentlab.cli.render import age, cell, counted
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Command, screen_of
from agentlab.errors import PermissionMissing, ResultMissing

COLORS = (("+++", "bold"), ("---", "bold"), ("+", "green"), ("-", "red"), ("@@", "cyan"), ("diff ", "bold"))
NAMED = click.argument("name", metavar="JOB", shell_complete=complete.jobs)


@click.command("diff", cls=Command)
@NAMED
@click.pass_context
def diff(context: click.Context, name: str) -> None:
    """Show the work as a patch.  In a pipe the patch comes as it is: `agentlab job diff JOB | git apply`."""
    screen = screen_of(context)
    with screen.connection() as connection:
        patch: bytes = connection.call("jobs.patch", job=name)
    if screen.json:
        screen.emit({"job": name, "patch": patch.decode(errors="replace")})
    elif sys.stdout.isatty():
        print_patch(screen, patch)
    else:
        sys.stdout.buffer.write(patch)
        sys.stdout.buffer.flush()


def print_patch(screen: Screen, patch: bytes) -> None:
    """A patch for people: coloured, its control sequences taken out."""
    from agentlab.base.text import printable

    for line in printable(patch.decode(errors="replace").replace("\r", "")).split("\n"):
        color = next((color for prefix, color in COLORS if line.startswith(prefix)), None)
        screen.line(screen.paint(line, color) if color else line)


@click.command("apply", cls=Command)
@NAMED
@click.option("--to", "clone", type=click.Path(path_type=Path), default=".", show_default=True, metavar="CLONE")
@click.option("--branch", help="The branch to make.  [agentlab/JOB]")
@click.option("--force", is_flag=True, help="Replace the branch if it exists.")
@click.pass_context
def apply(context: click.Context, name: str, clone: Path, branch: str | None, force: bool) -> None:
    """Put the work into a clone, as a branch.  Nothing is checked out and no hook runs."""
    screen = screen_of(context)
    with screen.connection() as connection:
        row = connection.call("jobs.get", job=name)
        apply_job(screen, connection, row, clone, branch, force)


def apply_job(screen: Screen, connection: Any, row: Any, clone: Path, branch: str | None, force: bool) -> None:
    """Fetch the job's bundle into the clone and tell what to do with it.  Raises ApplyFailed, ResultMissing."""
    from agentlab.client import apply as work

    name = branch or f"agentlab/{row['id']}"
    with tempfile.TemporaryDirectory(prefix="agentlab-apply-") as scratch:
        bundle = Path(scratch) / "result.bundle"
        with bundle.open("xb") as file:
            connection.download("jobs.bundle", file, job=row["id"])
        applied = work.apply(bundle, clone, name, job=row["id"], force=force)
    expected = (row["result"] or {}).get("head_commit")
    if screen.json:
        screen.emit({"job": row["id"], "clone": str(clone), "branch": applied.branch, "commit": applied.commit})
        return
    screen.line(f"branch {applied.branch} at {applied.commit[:12]} in {clone}: {counted(applied.commits, 'commit')}")
    if applied.summary:
        screen.line(f"  {applied.summary}")
    if expected and expected != applied.commit:
        screen.note("  (the job reported another commit; what came in the bundle is what counts)")
    screen.note(f"\n  git -C {clone} diff HEAD...{applied.branch}\n  git -C {clone} merge {applied.branch}")


@click.command("artifacts", cls=Command)
@NAMED
@click.pass_context
def artifacts(context: click.Context, name: str) -> None:
    """List what a job brought back."""
    from agentlab.base.units import format_bytes

    screen = screen_of(context)
    with screen.connection() as connection:
        rows = connection.call("jobs.artifacts", job=name)["items"]
    if screen.json:
        screen.emit(rows)
        return
    screen.table(
        ("NAME", "KIND", "SIZE", "SHA-256", "AGE"),
        [
            (
                cell(row["name"]), row["kind"], format_bytes(row["bytes_count"]), row["digest"][:16],
                age(row["created_at"]),
            )
            for row in rows
        ],
        "This job brought nothing back.",
    )  # fmt: skip


@click.command("download", cls=Command)
@NAMED
@click.argument("names", nargs=-1, metavar="[ARTIFACT]...")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where to.  [a folder named like the job]")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.pass_context
def download(context: click.Context, name: str, names: tuple[str, ...], folder: Path | None, force: bool) -> None:
    """Download artifacts: those named, or all declared ones."""
    screen = screen_of(context)
    done = []
    with screen.connection() as connection:
        row = connection.call("jobs.get", job=name)
        there = connection.call("jobs.artifacts", job=row["id"])["items"]
        missing = [each for each in names if each not in {found["name"] for found in there}]
        if missing:
            raise ResultMissing(job=row["id"], what=missing[0], cause="it did not bring this back")
        wanted = [each for each in there if (each["name"] in names if names else each["kind"] == "file")]
        into = folder or Path(row["id"])
        for each in wanted:
            target = save(connection, row["id"], each["name"], into, force)
            done.append({"name": each["name"], "path": str(target), "bytes_count": each["bytes_count"]})
            if not screen.json:
                screen.line(str(target))
    if screen.json:
        screen.emit(done)
    elif not done:
        screen.note("This job brought no files back.")


def save(connection: Any, job: str, name: str, folder: Path, force: bool) -> Path:
    """One artifact below `folder`.  The guest chose its name: no link is followed, and nothing is left half written."""
    from agentlab.model.artifact import artifact_name_problem

    if (problem := artifact_name_problem(name)) is not None:
        raise ResultMissing(job=job, what=name, cause=f"its name is {problem}")
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    place = folder
    for part in Path(name).parts[:-1]:
        place = place / part
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise _refused(place, "a link or file is in the way")
        place.mkdir(exist_ok=True)
    if target.is_symlink() or (target.exists() and not force):
        raise _refused(target, "it exists")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".agentlab-", delete=False) as file:
            scratch = Path(file.name)
            try:
                connection.download("jobs.artifact", file, job=job, name=name)
                scratch.chmod(0o644 & ~_umask())
                scratch.replace(target)
            except BaseException:
                scratch.unlink(missing_ok=True)
                raise
    except PermissionError as error:
        raise _refused(target, error.strerror or str(error)) from error
    return target


def _refused(path: Path, cause: str) -> PermissionMissing:
    return PermissionMissing(path=path, cause=cause, what_to_do="Choose another folder with --to, or use --force.")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
