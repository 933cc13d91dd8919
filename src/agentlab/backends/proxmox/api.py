"""What everything above the transport needs of it; simulations need not be more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from agentlab.backends.proxmox.encode import Params


class Api(Protocol):
    """`Transport`, as far as most are concerned."""

    async def call(self, method: str, path: str, params: Params | None = None) -> object:
        """The data of an answer, or ProxmoxError."""
        ...

    async def answer(self, method: str, path: str, params: Params | None = None) -> Mapping[str, object]:
        """The whole of an answer, or ProxmoxError."""
        ...
