"""AgentLab: run AI coding agents unattended in disposable, network-isolated sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentlab.client.sdk import AsyncClient as AsyncClient
    from agentlab.client.sdk import Client as Client

__version__ = "0.1.0"

_LATE = ("AsyncClient", "Client")


def __getattr__(name: str) -> object:
    # On first use: the SDK costs a tenth of a second that the CLI does not have.
    if name in _LATE:
        from agentlab.client import sdk

        return getattr(sdk, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*_LATE, "__version__"))
