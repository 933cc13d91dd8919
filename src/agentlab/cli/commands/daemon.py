"""agentlab up, down, status, doctor, reload, whoami: the daemon itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agentlab.base.units import format_bytes, format_seconds
from agentlab.cli.render import cell, fields
from agentlab.cli.screen import Screen
from agentlab.cli.shape import Command, screen_of


@click.command("up", cls=Command)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Keep everything of it below this folder.")
@click.option("--config", type=click.Path(path_type=Path), help="Its configuration file.")
@click.option("--wait", "wait_s", type=float, default=120.0, show_default=True, help="Seconds until it must serve.")
@click.pass_context
def up(context: click.Context, folder: Path | None, config: Path | None, wait_s: float) -> None:
    """Start a daemon in the background.  Quiet if one runs already."""
    from agentlab.cli import background

    screen = screen_of(context)
    started = background.start(screen.socket, folder, config, wait_s)
    if screen.json:
        screen.emit(started)
        return
    word = "runs already" if started["already"] else "started"
    screen.line(f"agentlabd {word}: process {started['pid']}, socket {started['socket']}")
    if started["log"]:
        screen.note(f"  log: {started['log']}")
    if folder is not None:
        screen.note(f"  for this shell: export AGENTLAB_DIR={folder.absolute()}")


@click.command("down", cls=Command)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="The one below this folder.")
@click.option("--all", "--destroy", "all_", is_flag=True, help="Destroy all sandboxes first, cancelling jobs.")
@click.option("--wait", "wait_s", type=float, default=90.0, show_default=True, help="Seconds until it must have ended.")
@click.pass_context
def down(context: click.Context, folder: Path | None, all_: bool, wait_s: float) -> None:
    """Stop the daemon.  Sandboxes and the jobs in them go on, and are taken up when it starts again."""
    from agentlab.cli import background

    screen = screen_of(context)
    ended = background.stop(screen, folder, all_, wait_s)
    if screen.json:
        screen.emit(ended)
        return
    screen.line(f"agentlabd stopped (process {ended['pid']})")
    if ended["sandboxes"]:
        jobs = f", with {ended['jobs']} jobs" if ended["jobs"] else ""
        screen.note(f"  {ended['sandboxes']} sandboxes go on{jobs}; `agentlab up` takes them up again,")
        screen.note("  `agentlab down --all` would have destroyed them.")


@click.command("status", cls=Command)
@click.pass_context
def status(context: click.Context) -> None:
    """Show what the daemon is and holds."""
    screen = screen_of(context)
    with screen.connection() as connection:
        answer, path = connection.call("daemon.status"), connection.path
    if screen.json:
        screen.emit(answer)
        return
    facts = answer["facts"]
    for line in fields(
        [
            ("agentlabd", f"{answer['version']}, process {facts.get('pid')}, up {format_seconds(facts['uptime_s'])}"),
            ("socket", path),
            ("state", f"{facts['state_dir']} ({format_bytes(facts['disk_free_bytes'])} free)"),
            ("network", facts["subnet"]),
            ("sandboxes", _counts(facts["sandboxes"])),
            ("jobs", f"{_counts(facts['jobs'])} (at most {facts['jobs_running_max']} at a time)"),
            ("profiles", ", ".join(facts["profiles"])),
            ("templates", ", ".join(f"{each['name']} ({each['state']})" for each in facts["templates"])),
            ("memory", format_bytes(facts["memory_bytes"])),
        ]
    ):
        screen.line(line)
    for backend in facts["backends"]:
        state = "usable" if backend["usable"] else screen.paint("not usable: see `agentlab doctor`", "red")
        facts_of = ", ".join(f"{cell(name)} {cell(value)}" for name, value in sorted(backend["facts"].items()))
        screen.line(f"backend {backend['name']}: {state}{f' ({facts_of})' if facts_of else ''}")
        for sentence in backend["missing_guarantees"]:
            screen.line(screen.paint(f"  weaker here: {cell(sentence)}", "yellow"))


@click.command("doctor", cls=Command)
@click.pass_context
def doctor(context: click.Context) -> int:
    """Look at the machine: what is there, what is missing and how to get it.  Exit code 9 if something is missing."""
    screen = screen_of(context)
    with screen.connection() as connection:
        answer = connection.call("daemon.doctor")
    if screen.json:
        screen.emit(answer)
    else:
        for each in answer["items"]:
            _finding(screen, each)
    return 0 if answer["ok"] else 9


@click.command("reload", cls=Command)
@click.pass_context
def reload(context: click.Context) -> None:
    """Let the daemon read profiles and recipes again.  If one is wrong, the old ones stay."""
    screen = screen_of(context)
    with screen.connection() as connection:
        answer = connection.call("daemon.reload")
    screen.emit(answer) if screen.json else screen.line("profiles and recipes were read again")


@click.command("whoami", cls=Command)
@click.pass_context
def whoami(context: click.Context) -> None:
    """Show whom the daemon takes you for, and what you may do."""
    screen = screen_of(context)
    with screen.connection() as connection:
        answer = connection.call("daemon.whoami")
    if screen.json:
        screen.emit(answer)
    else:
        screen.line(f"{answer['name']}, {answer['role']}: {' '.join(answer['permissions'])}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"


def _finding(screen: Screen, each: Any) -> None:
    mark, color = ("✓", "green") if each["ok"] else ("✗", "red") if each["fatal"] else ("!", "yellow")
    screen.line(f"{screen.paint(mark, color)} {cell(each['name'])}: {cell(each['detail'])}")
    if not each["ok"] and each["remedy"]:
        screen.line(f"    remedy: {each['remedy']}")
