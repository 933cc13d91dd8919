"""The file that holds the token of a cluster: nobody else's is overwritten, and nobody else may read it."""

from __future__ import annotations

import os
from pathlib import Path

from agentlab.backends.proxmox.transport import Token
from agentlab.base.files import write_atomic
from agentlab.daemon.cluster import TOKEN_BYTES_MAX, parse_token
from agentlab.errors import PermissionMissing

FILE_NAME = "proxmox.token"  # beside the settings
MODE = 0o600


def read(path: Path) -> Token | None:
    """The token in the file; None if there is no file, or nothing that is a token.  PermissionMissing."""
    try:
        with path.open("rb") as file:
            return parse_token(file.read(TOKEN_BYTES_MAX).decode())
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error


def require_place(path: Path) -> None:
    """Before a secret is made that is told only once: whether it can be kept.  PermissionMissing if not."""
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise _refused(path, f"nothing can be written into {folder}")
    if path.is_dir():
        raise _refused(path, "it is a directory")


def write(path: Path, token: Token) -> None:
    """Keep the token, durable on return.  PermissionMissing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{token.id}={token.secret.reveal()}\n".encode(), MODE)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error


def _refused(path: Path, cause: str) -> PermissionMissing:
    return PermissionMissing(
        path=path, cause=cause, what_to_do="Run it as the daemon's user (root for the system's), or give --token-file."
    )
