"""The network of sandboxes on a cluster: addresses of ours, walls of the cluster's own firewall."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

from agentlab.backends.interface import BackendError
from agentlab.backends.proxmox.card import Cards
from agentlab.backends.proxmox.plan import Addresses
from agentlab.model.finding import Finding
from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.network import Card, LinkEnd, NetworkMode, Port
from agentlab.network import addresses
from agentlab.network.interface import NetworkError


def cluster_port(installation: InstallationId, plan: Addresses, sandbox: str, slot: int, mode: NetworkMode) -> Port:
    """The addresses that belong to this slot.  NetworkError beyond the last."""
    try:
        address = plan.of(slot)
    except ValueError as error:
        raise NetworkError(str(error), "Widen `backends.proxmox.network.addresses`, or destroy sandboxes.") from error
    return Port(
        sandbox=sandbox,
        link=addresses.link_name(installation, slot),
        mac=addresses.mac(installation, slot),
        address=address,
        gateway=plan.gateway,
        prefix_length=plan.network.prefixlen,
        mode=mode,
    )


class ClusterNetwork:
    """See `Network`.  Nothing of it is on this machine."""

    def __init__(self, cards: Cards, plan: Addresses, installation: InstallationId) -> None:
        self._cards, self._plan, self._installation = cards, plan, installation

    async def probe(self) -> Sequence[Finding]:
        """What the cluster must have for it is looked at together with the rest of the cluster."""
        return ()

    async def open(self) -> IPv4Network:
        """There is nothing to open."""
        return self._plan.network

    def port(self, sandbox: str, slot: int, mode: NetworkMode) -> Port:
        """See `cluster_port`."""
        return cluster_port(self._installation, self._plan, sandbox, slot, mode)

    @property
    def slots(self) -> int:
        """One for each address."""
        return len(self._plan)

    @property
    def resolver(self) -> IPv4Address:
        """As it was set."""
        return self._plan.nameserver

    async def expect(self, port: Port) -> None:
        """Nothing can be made ready before the VM is there."""

    async def attach(self, port: Port, end: LinkEnd) -> None:
        """Under its policy, which was read back."""
        if not isinstance(end, Card):
            raise NetworkError(f"{end} is not a network card of a VM on the cluster")
        async with _as_network():
            await self._cards.attach(port, end.vmid)

    async def verify(self, port: Port) -> bool:
        """Whether its policy reads back."""
        async with _as_network():
            return await self._cards.verify(port)

    async def detach(self, sandbox: str) -> None:
        """Its card is unplugged if it may be in use."""
        async with _as_network():
            await self._cards.detach(SandboxId(sandbox))

    async def list(self) -> Mapping[str, Port | None]:
        """By our own records: the rules of a VM go with it."""
        async with _as_network():
            return dict.fromkeys(await self._cards.attached(), None)

    async def check(self) -> bool:
        """There are no rules of ours beside those of each VM."""
        return True

    async def close(self, *, remove: bool) -> None:
        """There is nothing to close."""


@asynccontextmanager
async def _as_network() -> AsyncIterator[None]:
    try:
        yield
    except BackendError as error:
        made = NetworkError(error.cause, error.remedy)
        made.retryable = error.retryable
        raise made from error
    except (OSError, ValueError) as error:
        raise NetworkError(f"the record of its VM: {error}") from error
