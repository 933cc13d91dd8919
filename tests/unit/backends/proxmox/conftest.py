"""Certificates, made once for all tests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from tests.unit.backends.proxmox.api_server import Identity, self_signed, signed


@dataclass(frozen=True)
class Identities:
    """`node` and `renewed` have signed themselves; the authority has signed `member` and `expired`."""

    node: Identity
    renewed: Identity
    authority: Identity
    member: Identity
    expired: Identity


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    folder = tmp_path_factory.mktemp("identities")

    async def make() -> Identities:
        authority = await self_signed(folder, "authority")
        return Identities(
            node=await self_signed(folder, "pve1.example"),
            renewed=await self_signed(folder, "pve1-renewed.example"),
            authority=authority,
            member=await signed(folder, "pve2.example", authority),
            expired=await signed(folder, "pve3.example", authority, expired=True),
        )

    return asyncio.run(make())
