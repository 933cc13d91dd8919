"""SQLite connections as the store wants them, with SQLite's failures translated once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from agentlab import errors
from agentlab.base.files import free_bytes, sync_directory
from agentlab.base.units import format_bytes

Tx = apsw.Connection  # what every function of the store takes: an open transaction

APPLICATION_ID = 0x41474C42  # "AGLB" in the file's header
BUSY_TIMEOUT_MS = 5_000
STATEMENTS_CACHED_MAX = 256
WAL_BYTES_KEPT_MAX = 64 << 20
SPACE_NEEDED_BYTES = 16 << 20  # what an error that says "disk full" asks for: a checkpoint's worth


def connect(path: Path, *, read_only: bool, durable: bool = True) -> Tx:
    """An open connection with every setting that the store relies on.

    A reader is `query_only`; it still opens the file for writing, because a reader in WAL mode keeps its mark in the
    -shm file.  `:memory:` stands for a database that all connections of this process to the same path share.
    Raises StoreUnreadable or DiskFull.
    """
    with translated(path):
        if is_memory(path):
            connection = apsw.Connection(f"file:/{path.name}?vfs=memdb", flags=_FLAGS | apsw.SQLITE_OPEN_URI)
        else:
            connection = apsw.Connection(str(path), flags=_FLAGS, statementcachesize=STATEMENTS_CACHED_MAX)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
        connection.pragma("trusted_schema", 0)
        connection.pragma("synchronous", "FULL" if durable else "OFF")
        connection.pragma("journal_size_limit", WAL_BYTES_KEPT_MAX)
        connection.pragma("temp_store", "MEMORY")
        if read_only:
            connection.pragma("query_only", 1)
        return connection


def is_memory(path: Path) -> bool:
    """Whether `path` stands for a database without a file: its name begins with `:memory:`."""
    return path.name.startswith(":memory:")


def create_private(path: Path) -> None:
    """An empty file that only its owner can read, made before SQLite would make it with the umask's mode.

    What is there already stays.  Raises PermissionMissing, DiskFull or StoreUnreadable.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
        sync_directory(path.parent)
    except FileExistsError:
        return
    except PermissionError as error:
        raise errors.PermissionMissing(
            path=error.filename,
            cause=error.strerror,
            what_to_do="Run the daemon as the user that owns this directory, or name another with `state_dir`.",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path) from error
        raise errors.StoreUnreadable(path=path, cause=error.strerror or str(error)) from error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's failures that a user can meet into errors with a cause and a remedy; others pass through."""
    try:
        yield
    except apsw.Error as error:
        raise translate(path, error) from error


def translate(path: Path, error: apsw.Error) -> Exception:
    """The user's error for `error`, or `error` itself where it is a defect of ours."""
    if isinstance(error, apsw.FullError):
        return _disk_full(path)
    if isinstance(error, apsw.IOError):
        # A quota or a full journal shows as an I/O error; with room left, saying "disk full" would be a lie.
        if not is_memory(path) and free_bytes(path.parent) < SPACE_NEEDED_BYTES:
            return _disk_full(path)
        return errors.StoreUnreadable(path=path, cause=f"the disk failed: {error}")
    if isinstance(error, apsw.CantOpenError):
        return errors.StoreUnreadable(path=path, cause=f"it cannot be opened: {_obstacle(path) or error}")
    for kind, cause in _CAUSES:
        if isinstance(error, kind):
            return errors.StoreUnreadable(path=path, cause=cause.format(error=error))
    return error


def _obstacle(path: Path) -> str:
    """What the operating system says about opening `path` for writing, since SQLite does not; empty if it can be."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _disk_full(path: Path) -> errors.DiskFull:
    folder = next((each for each in path.parents if each.is_dir()), Path("/"))
    free = "none" if is_memory(path) else format_bytes(free_bytes(folder))
    return errors.DiskFull(path=path, free=free, needed=format_bytes(SPACE_NEEDED_BYTES))


_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_NOFOLLOW
_CAUSES: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.NotADBError, "the file is not a SQLite database"),
    (apsw.CorruptError, "it is damaged ({error})"),
    (apsw.FormatError, "it is damaged ({error})"),
    (apsw.PermissionsError, "access was refused ({error})"),
    (apsw.ReadOnlyError, "it is read-only ({error})"),
    (apsw.BusyError, f"another program has held it locked for {BUSY_TIMEOUT_MS // 1000} s"),
    (apsw.LockedError, "another connection holds it locked"),
)
