"""What the tests of the store share: a real database file for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.unit.store.store_rows import fresh

from agentlab.store.connection import Tx
from agentlab.store.database import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's database lies."""
    return tmp_path / "state" / "agentlab.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    """An open database with its writer thread."""
    opened = Database.open(path)
    yield opened
    await opened.close()


@pytest.fixture
def tx(path: Path) -> Iterator[Tx]:
    """An open transaction on a real file, for tests of one noun's functions; committed at the end of the test."""
    path.parent.mkdir()
    with fresh(path) as transaction:
        yield transaction
