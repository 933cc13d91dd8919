"""A served API, for these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentlab.testing.served import Served, serving


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A daemon that makes sandboxes in the fake backend."""
    async with serving(tmp_path) as found:
        yield found


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[Served]:
    """A daemon that records what is wanted and carries out nothing."""
    async with serving(tmp_path, reconcile=False) as found:
        yield found
