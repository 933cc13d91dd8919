"""What all tests share."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of what is tested: how fast examples are made and run is not asserted anywhere.
settings.register_profile("agentlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("agentlab")


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio, and so do its tests."""
    return "asyncio"
