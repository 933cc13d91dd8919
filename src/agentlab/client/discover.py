"""Which daemon a client talks to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from agentlab.base.places import DIRECTORY_VARIABLE, places
from agentlab.errors import AgentLabError, DaemonNotRunning, PermissionMissing

SOCKET_VARIABLE = "AGENTLAB_SOCKET"


def socket_path(environ: Mapping[str, str], uid: int) -> Path:
    """$AGENTLAB_SOCKET; else that below $AGENTLAB_DIR; else the user's own daemon's if there is one; else the system's.

    Root's own daemon is the system's.
    """
    if named := environ.get(SOCKET_VARIABLE):
        return Path(named).absolute()
    system = places({}, 0).socket
    if environ.get(DIRECTORY_VARIABLE):
        return places(environ, uid).socket
    try:
        own = places(environ, uid).socket
    except ValueError:  # no HOME: there can be no daemon of the user's own
        return system
    return own if own.exists() or not system.exists() else system


def connect_error(path: Path, error: OSError) -> AgentLabError:
    """Why nobody answers at `path`, for people."""
    if isinstance(error, PermissionError):
        return PermissionMissing(path=path, cause=error.strerror or str(error), what_to_do=_how_to_join(path))
    if isinstance(error, FileNotFoundError):
        return DaemonNotRunning(socket=path, cause="there is no such socket")
    if isinstance(error, ConnectionRefusedError):
        return DaemonNotRunning(socket=path, cause="the socket is there, but nobody listens at it")
    return DaemonNotRunning(socket=path, cause=error.strerror or str(error))


def _how_to_join(path: Path) -> str:
    try:
        group = path.stat().st_gid
    except OSError:
        return f"Ask the owner of {path.parent} for access, or run the command as that user."
    if group == 0:
        return f"Run the command as root; {path} belongs to root alone (setting `socket_group` opens it to a group)."
    import grp

    try:
        name = grp.getgrgid(group).gr_name
    except KeyError:
        name = str(group)
    return (
        f"Join the group that may use it, then log in again: sudo usermod -aG {name} {os.environ.get('USER', 'NAME')}"
    )
