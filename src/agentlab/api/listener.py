"""The Unix socket that the daemon listens on."""

from __future__ import annotations

import errno
import grp
import os
import socket
from pathlib import Path

from agentlab.errors import AddressInUse, PermissionMissing

BACKLOG = 512
MODE = 0o660
PATH_BYTES_MAX = 107  # sun_path, less its closing NUL


def listen(path: Path, group: str | None = None) -> socket.socket:
    """A listening socket at `path`, open to its owner and `group` only.

    What a dead daemon left there is replaced.  Raises AddressInUse if a daemon answers at it, or if something else lies
    there; PermissionMissing if the folder does not let us.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise AddressInUse(
            what=f"The socket path {path}",
            cause=f"it is longer than {PATH_BYTES_MAX} bytes, which the kernel does not take",
            what_to_do="Choose a shorter directory.",
        )
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Nobody can connect between bind and listen, so that the mode is never wider than meant.
        listener.bind(os.fspath(path))
        path.chmod(MODE)
        if group is not None:
            os.chown(path, -1, _group_id(group, path))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise PermissionMissing(
            path=path, cause=error.strerror or str(error), what_to_do="Give the daemon's user a folder of its own."
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def forget(path: Path, inode: int) -> None:
    """Remove the socket file if it is still the one that we made."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass


def answers(path: Path) -> bool:
    """Whether somebody accepts connections at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            # A full backlog means that somebody listens, slowly.
            return error.errno in (errno.EAGAIN, errno.ETIMEDOUT, errno.EACCES)
    return True


def _clear(path: Path) -> None:
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise AddressInUse(
                what=f"The socket path {path}",
                cause="something lies there that is not a socket",
                what_to_do="Move it away, or choose another socket path.",
            )
        return
    if answers(path):
        raise AddressInUse(
            what=f"The socket {path}",
            cause="another daemon answers at it",
            what_to_do="Use that daemon, or stop it first: `agentlab down`.",
        )
    path.unlink(missing_ok=True)


def _group_id(group: str, path: Path) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise PermissionMissing(
            path=path, cause=f"there is no group {group!r}", what_to_do=f"Make it: groupadd --system {group}"
        ) from None
