"""Opening: migrations with copies, and refusal of what is not ours."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from agentlab import errors
from agentlab.store import meta
from agentlab.store.connection import APPLICATION_ID
from agentlab.store.database import Database
from agentlab.store.migrate import SHIPPED, kept_copies, migrations

pytestmark = pytest.mark.anyio


def scripts(folder: Path, **more: str) -> Path:
    """The shipped migrations and more."""
    shutil.copytree(SHIPPED, folder)
    for name, script in more.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(script)
    return folder


async def one_value(path: Path, **how: Path) -> None:
    database = Database.open(path, **how)
    await database.write(lambda tx: meta.put(tx, "key", "value"))
    await database.close()


def test_the_shipped_migrations_are_numbered_without_a_gap() -> None:
    assert list(migrations()) == list(range(1, len(migrations()) + 1))


async def test_a_new_file_gets_the_newest_schema_and_no_copy(path: Path) -> None:
    await one_value(path)

    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (max(migrations()),)
        assert raw.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert kept_copies(path) == []


async def test_before_a_migration_a_private_copy_with_all_rows_is_kept(path: Path, tmp_path: Path) -> None:
    await one_value(path)
    number = max(migrations()) + 1
    newer = scripts(tmp_path / "newer", **{f"m{number:04d}_more": "CREATE TABLE more (x INTEGER) STRICT;"})

    database = Database.open(path, migrations=newer)

    assert database.read(lambda tx: meta.get(tx, "key")) == "value"
    assert database.read(lambda tx: tx.pragma("user_version")) == number
    (copy,) = kept_copies(path)
    assert copy.name == f"agentlab.db.before-{number}"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with sqlite3.connect(copy) as raw:
        assert raw.execute("SELECT value FROM meta").fetchall() == [("value",)]
        assert raw.execute("PRAGMA user_version").fetchone() == (number - 1,)
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    await database.close()


async def test_the_copy_holds_what_a_killed_daemon_left_in_the_journal(path: Path, tmp_path: Path) -> None:
    database = Database.open(path)
    await database.write(lambda tx: meta.put(tx, "key", "value"))
    crashed = tmp_path / "crashed"
    shutil.copytree(path.parent, crashed)
    await database.close()
    number = max(migrations()) + 1
    newer = scripts(tmp_path / "newer", **{f"m{number:04d}_more": "CREATE TABLE more (x INTEGER) STRICT;"})

    await Database.open(crashed / path.name, migrations=newer).close()

    with sqlite3.connect(kept_copies(crashed / path.name)[0]) as raw:
        assert raw.execute("SELECT value FROM meta").fetchall() == [("value",)]


async def test_the_last_three_copies_are_kept(path: Path, tmp_path: Path) -> None:
    await one_value(path)
    first = max(migrations()) + 1
    more = {f"m{n:04d}_more": f"CREATE TABLE more_{n} (x INTEGER) STRICT;" for n in range(first, first + 5)}

    await Database.open(path, migrations=scripts(tmp_path / "newer", **more)).close()

    assert [each.name for each in kept_copies(path)] == [
        f"agentlab.db.before-{n}" for n in (first + 4, first + 3, first + 2)
    ]
    assert sorted(os.listdir(path.parent)) == sorted(["agentlab.db", *(each.name for each in kept_copies(path))])


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(path: Path, tmp_path: Path) -> None:
    await one_value(path)
    number = max(migrations()) + 1
    broken = "CREATE TABLE more (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1);"

    with pytest.raises(Exception, match="nowhere"):
        Database.open(path, migrations=scripts(tmp_path / "newer", **{f"m{number:04d}_more": broken}))

    database = Database.open(path)
    assert database.read(lambda tx: meta.get(tx, "key")) == "value"
    assert database.read(lambda tx: tx.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'more'").get) == 0
    await database.close()


async def test_a_newer_schema_is_refused_and_the_copies_are_named(path: Path, tmp_path: Path) -> None:
    await one_value(path)
    number = max(migrations()) + 1
    newer = scripts(tmp_path / "newer", **{f"m{number:04d}_more": "CREATE TABLE more (x INTEGER) STRICT;"})
    await one_value(path, migrations=newer)

    with pytest.raises(errors.SchemaTooNew) as caught:
        Database.open(path)

    assert caught.value.facts["found"] == number
    assert f"agentlab.db.before-{number}" in caught.value.advice


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is a letter to my aunt\n" * 400)

    with pytest.raises(errors.StoreUnreadable, match="not a SQLite database"):
        Database.open(path)

    assert path.read_bytes() == b"this is a letter to my aunt\n" * 400


async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE letters (text TEXT)")
    before = path.read_bytes()

    with pytest.raises(errors.StoreUnreadable, match="another program"):
        Database.open(path)

    assert path.read_bytes() == before


async def test_a_truncated_database_is_refused(path: Path) -> None:
    await one_value(path)
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(errors.StoreUnreadable, match="damaged"):
        Database.open(path)


async def test_a_database_with_an_overwritten_page_is_refused(path: Path) -> None:
    await one_value(path)
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4096))

    with pytest.raises(errors.StoreUnreadable, match="damaged"):
        Database.open(path)


async def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.parent.mkdir()
    path.touch(mode=0o600)

    await one_value(path)


async def test_a_link_may_lead_to_the_directory(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "link").symlink_to(path.parent)

    await one_value(tmp_path / "link" / path.name)

    assert path.is_file()


async def test_a_link_in_the_place_of_the_database_is_refused(path: Path, tmp_path: Path) -> None:
    await one_value(tmp_path / "elsewhere" / "other.db")
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere" / "other.db")

    with pytest.raises(errors.StoreUnreadable, match="cannot be opened"):
        Database.open(path)
