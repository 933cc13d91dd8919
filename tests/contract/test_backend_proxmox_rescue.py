"""A machine that does not come home: what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentlab.backends.interface import Refused
from agentlab.base.clock import SystemClock
from agentlab.testing.proxmox.guests import GuestMachine
from agentlab.testing.proxmox.simulated_guests import SimulatedGuests
from agentlab.testing.proxmox_rig import proxmox_rig

pytestmark = pytest.mark.anyio


def speaks(_machine: GuestMachine, command: list[str], _given: bytes) -> tuple[int, bytes, bytes]:
    assert command[:2] == ["/bin/sh", "-c"]
    return 0, b"agentlab-guest.service: failed\n\x1b[31mno route to 127.0.0.1\x1b[0m\n", b""


async def refusal(folder: Path, guests: SimulatedGuests) -> str:
    async with proxmox_rig(folder, guests=guests, plan={"boot_s_max": 0.3}) as rig:
        spec: Any = rig.spec()
        await rig.backend.create(spec)
        await rig.backend.arm(spec)
        with pytest.raises(Refused) as caught:
            await rig.backend.start(spec.mark)
        return caught.value.cause


async def test_a_guest_that_does_not_call_home_is_told_with_its_agents_words(tmp_path: Path) -> None:
    cause = await refusal(tmp_path, SimulatedGuests(clock=SystemClock(), run=speaks))

    assert "did not call home within 0.3 s" in cause
    assert "is running; its agent says: agentlab-guest.service: failed no route to 127.0.0.1" in cause
    assert "\x1b" not in cause


async def test_without_an_agent_that_is_said(tmp_path: Path) -> None:
    cause = await refusal(tmp_path, SimulatedGuests(clock=SystemClock(), boots=lambda _: False))

    assert "is running; its agent says nothing" in cause
