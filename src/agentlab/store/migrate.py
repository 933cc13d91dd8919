"""Bringing a database file to the schema that this version knows, with a copy kept before each change."""

from __future__ import annotations

import os
import re
from pathlib import Path

import apsw

from agentlab import errors
from agentlab.base.files import sync_directory
from agentlab.store.connection import APPLICATION_ID, create_private, is_memory, translated

COPIES_KEPT_MAX = 3
QUICK_CHECK_BYTES_MAX = 16 << 20  # checked page by page at every start up to here; 16 MiB take about 40 ms
SHIPPED = Path(__file__).parent / "migrations"
_NUMBERED = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def migrations(folder: Path = SHIPPED) -> dict[int, Path]:
    """The scripts by number, in order, without a gap."""
    found = {int(match[1]): each for each in sorted(folder.iterdir()) if (match := _NUMBERED.fullmatch(each.name))}
    assert list(found) == list(range(1, len(found) + 1)), f"migrations in {folder} are not numbered without a gap"
    return found


def migrate(connection: apsw.Connection, path: Path, folder: Path = SHIPPED) -> None:
    """Apply what is missing, each script in a transaction of its own, after a durable copy of the file.

    Raises SchemaTooNew, StoreUnreadable (foreign or damaged), DiskFull; the database is then as it was.
    """
    known = migrations(folder)
    with translated(path):
        version = check_ours(connection, path, max(known))
        connection.pragma("foreign_keys", 0)  # a script may rebuild a table; what it leaves is checked below
        for number in range(version + 1, max(known) + 1):
            if number > 1 and not is_memory(path):
                keep_copy(connection, path, number)
            _apply(connection, number, known[number].read_text(encoding="utf-8"), path)
        if not is_memory(path):
            connection.pragma("journal_mode", "wal")
        connection.pragma("foreign_keys", 1)


def check_ours(connection: apsw.Connection, path: Path, known: int) -> int:
    """The schema's number; 0 for an empty file.  Raises StoreUnreadable or SchemaTooNew."""
    version, application = connection.pragma("user_version"), connection.pragma("application_id")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise errors.StoreUnreadable(path=path, cause="it is another program's database (application_id differs)")
    if version > known:
        copies = ", ".join(each.name for each in kept_copies(path)) or "there is none"
        raise errors.SchemaTooNew(path=path, found=version, known=known, copies=copies)
    if not is_memory(path) and path.stat().st_size <= QUICK_CHECK_BYTES_MAX:
        verdict = connection.pragma("quick_check", 1)
        if verdict != "ok":
            raise errors.StoreUnreadable(path=path, cause=f"it is damaged ({verdict})")
    return int(version)


def keep_copy(connection: apsw.Connection, path: Path, number: int) -> Path:
    """A complete, durable copy beside the database, named after the migration it was made before."""
    copy, scratch = path.with_name(f"{path.name}.before-{number}"), path.with_name(f".{path.name}.copy")
    scratch.unlink(missing_ok=True)
    create_private(scratch)
    try:
        target = apsw.Connection(str(scratch))
        try:
            with target.backup("main", connection, "main") as backup:
                backup.step(-1)
            target.pragma("journal_mode", "delete")  # one file that stands alone
        finally:
            target.close()
        descriptor = os.open(scratch, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        scratch.replace(copy)
    finally:
        scratch.unlink(missing_ok=True)
    for old in kept_copies(path)[COPIES_KEPT_MAX:]:
        old.unlink()
    sync_directory(path.parent)
    return copy


def kept_copies(path: Path) -> list[Path]:
    """Copies that were kept before migrations, the newest schema first."""
    found = [(int(each.suffix[8:]), each) for each in path.parent.glob(f"{path.name}.before-*") if _is_copy(each)]
    return [each for _, each in sorted(found, reverse=True)]


def _is_copy(path: Path) -> bool:
    return re.fullmatch(r"\.before-\d+", path.suffix) is not None


def _apply(connection: apsw.Connection, number: int, script: str, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(script)
        broken = connection.execute("PRAGMA foreign_key_check").fetchall()
        assert not broken, f"migration {number} leaves rows that refer to nothing: {broken[:3]} in {path}"
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", number)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
