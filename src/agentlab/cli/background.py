"""A daemon in the background, for people who do not want to manage one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlab.base.clock import SystemClock, pause
from agentlab.base.files import make_directory
from agentlab.base.places import Places, places
from agentlab.base.process import detach
from agentlab.base.text import printable
from agentlab.client.discover import SOCKET_VARIABLE, socket_path
from agentlab.client.sync import Connection
from agentlab.errors import AgentLabError, DaemonNotRunning, LimitReached, PermissionMissing, PreflightFailed

if TYPE_CHECKING:
    from agentlab.cli.screen import Screen

LOG_NAME = "agentlabd.log"
LOG_BYTES_MAX = 16 << 20  # beyond it, the log is put aside at the next start
LOG_TAIL_LINES = 20
LOOK_S = 0.05


def start(socket: str | None, folder: Path | None, config: Path | None, wait_s: float) -> dict[str, Any]:
    """Start a daemon and wait until it serves.

    Raises PreflightFailed with the tail of its log if it ends, or does not serve within `wait_s`.
    """
    where = _places(folder)
    path = Path(socket) if socket is not None else where.socket
    with Connection(path) as connection:
        if (pid := _serving(connection)) is not None:
            return {"pid": pid, "socket": str(path), "log": "", "already": True}
        log = _open_log(where.state)
        began = SystemClock().monotonic()
        with log.open("ab") as output:
            place = output.tell()
            child = detach(_command(folder, config), output.fileno(), _environment())
        while SystemClock().monotonic() - began < wait_s:
            if (pid := _serving(connection)) is not None:
                return {"pid": pid, "socket": str(path), "log": str(log), "already": False}
            if child.poll() is not None:
                raise _ended(f"it ended with status {child.returncode}", log, place)
            pause(LOOK_S)
    raise _ended(f"it does not serve at {path} after {wait_s:g} s; it goes on (process {child.pid})", log, place)


def stop(screen: Screen, folder: Path | None, destroy: bool, wait_s: float) -> dict[str, Any]:
    """Ask the daemon to stop, and wait until its process has ended.  DaemonNotRunning, PermissionMissing."""
    socket = screen.socket or (str(_places(folder).socket) if folder is not None else None)
    with Connection(socket) as connection:
        if destroy:
            _destroy_all(screen, connection, wait_s)
        facts = connection.call("daemon.status", retry=False)["facts"]
        path = connection.path
    pid = int(facts["pid"])
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise PermissionMissing(
            path=f"process {pid}", cause="it belongs to another user", what_to_do="Stop it as that user, or as root."
        ) from error
    except ProcessLookupError as error:
        raise DaemonNotRunning(socket=path, cause=f"its process {pid} is not to be seen from here") from error
    began = SystemClock().monotonic()
    while _alive(pid):
        if SystemClock().monotonic() - began > wait_s:
            raise LimitReached(
                limit_name="--wait",
                limit=wait_s,
                cause=f"process {pid} was told to stop and still finishes its requests",
                what_to_do=f"Wait for it, or look into its log; `kill -9 {pid}` loses no work either.",
            )
        pause(LOOK_S)
    jobs = facts.get("jobs", {})
    return {
        "pid": pid,
        "sandboxes": sum(facts.get("sandboxes", {}).values()),
        "jobs": sum(count for state, count in jobs.items() if state != "queued"),
    }


def _places(folder: Path | None) -> Places:
    try:
        found = places(os.environ, os.getuid(), folder)
    except ValueError as error:
        raise PreflightFailed(cause=str(error), what_to_do="Give a folder: agentlab up --dir DIR") from None
    if folder is None and (named := os.environ.get(SOCKET_VARIABLE)) and Path(named) != found.socket:
        own = socket_path(os.environ, os.getuid())
        raise PreflightFailed(
            cause=f"{SOCKET_VARIABLE} names {own}, but a daemon started here would listen at {found.socket}",
            what_to_do=f"Unset {SOCKET_VARIABLE}, or give a folder: --dir DIR",
        )
    return found


def _serving(connection: Connection) -> int | None:
    try:
        facts = connection.call("daemon.status", retry=False)["facts"]
    except DaemonNotRunning:
        return None
    return int(facts["pid"])


def program() -> list[str]:
    """The daemon's program, of this installation."""
    beside = Path(sys.executable).with_name("agentlabd")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "agentlab.daemon.main"]


def _command(folder: Path | None, config: Path | None) -> list[str]:
    words = program()
    if folder is not None:
        words += ["--dir", str(folder.absolute())]
    if config is not None:
        words += ["--config", str(config.absolute())]
    return words


def _environment() -> dict[str, str]:
    """The environment without what is meant for us alone: keys in it belong to jobs that ask for them by --env."""
    kept = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LOGNAME")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or name.startswith(("XDG_", "AGENTLAB_", "PYTHON", "SSL_", "GIT_SSL_", "no_proxy", "NO_PROXY"))
        or name.lower().endswith("_proxy")
    }  # fmt: skip


def _open_log(state: Path) -> Path:
    try:
        make_directory(state)
        log = state / LOG_NAME
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
        log.touch(mode=0o600)
    except OSError as error:
        raise PermissionMissing(
            path=error.filename or state,
            cause=error.strerror or str(error),
            what_to_do="Run it as a user who may write there, or choose a folder: agentlab up --dir DIR",
        ) from error
    return log


def _ended(cause: str, log: Path, place: int) -> AgentLabError:
    with log.open("rb") as file:
        file.seek(place)
        lines = printable(file.read()[-32768:].decode(errors="replace")).strip().splitlines()[-LOG_TAIL_LINES:]
    tail = "\n".join(f"  {line}" for line in lines)
    return PreflightFailed(
        cause=f"{cause}.  Its last words:\n{tail}" if tail else f"{cause}, without a word",
        what_to_do=f"Correct what it names and start it again; the log is {log}",
    )


def _destroy_all(screen: Screen, connection: Connection, wait_s: float) -> None:
    for row in connection.call("jobs.list", state=["queued", "starting", "running", "collecting"], limit=1000)["items"]:
        connection.call("jobs.cancel", job=row["id"])
    rows = connection.call("sandboxes.list", limit=1000)["items"]
    if rows and not screen.json:
        screen.note(f"  destroying {len(rows)} {'sandbox' if len(rows) == 1 else 'sandboxes'} …")
    for row in rows:
        connection.call("sandboxes.destroy", sandbox=row["id"])
    began = SystemClock().monotonic()
    for row in rows:
        while row["state"] != "destroyed":
            left = wait_s - (SystemClock().monotonic() - began)
            if left <= 0:
                raise LimitReached(
                    limit_name="--wait",
                    limit=wait_s,
                    cause=f"sandbox {row['id']} is still {row['state']}",
                    what_to_do=f"`agentlab sandbox show {row['id']}` tells what it waits for.",
                )
            row = connection.call("sandboxes.get", sandbox=row["id"], wait_s=min(left, 30.0))


def _alive(pid: int) -> bool:
    try:
        # The state after the name: a zombie waits only for its parent.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
