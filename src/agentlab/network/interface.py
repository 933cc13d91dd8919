"""What the network promises: policy is applied and read back before a guest runs, or the guest does not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from agentlab.model.finding import Finding
from agentlab.model.network import LinkEnd, NetworkMode, Port


class NetworkError(Exception):
    """The policy could not be applied or did not read back; traffic from the sandbox does not flow."""

    code = "network/failed"
    retryable = False

    def __init__(self, cause: str, remedy: str = "Run `agentlab doctor`; see the daemon's log.") -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


class Network(Protocol):
    """The agent bridge and everything that keeps a sandbox in its place.  All calls are idempotent."""

    async def probe(self) -> Sequence[Finding]:
        """Whether this machine can do it; changes nothing."""
        ...

    async def open(self) -> IPv4Network:
        """Bridge, base rule set and resolver stand; returns the subnet that was chosen.  NetworkError if it cannot."""
        ...

    def port(self, sandbox: str, slot: int, mode: NetworkMode) -> Port:
        """The addresses that belong to this slot; pure."""
        ...

    @property
    def slots(self) -> int:
        """How many slots the subnet has: 1 … slots.  Known once `open` has returned."""
        ...

    @property
    def resolver(self) -> IPv4Address:
        """Where guests ask for names."""
        ...

    async def expect(self, port: Port) -> None:
        """A hint that `attach` will be asked for this port soon: what does not need its namespace is made ready.

        `detach` takes it back.  NetworkError changes nothing for `attach`, which does all that is missing.
        """
        ...

    async def attach(self, port: Port, end: LinkEnd) -> None:
        """Join the sandbox's end to the bridge under its policy, and read the policy back.

        A namespace is given its interface, with address and route; a tap is taken as it is, and the guest gives itself
        the port's addresses, which are the only ones that pass.
        Returns only when what the kernel holds equals what was rendered; otherwise NetworkError, and the link is down.
        Mode `off`: there is no interface; verifies that none but loopback exists, or that nothing is plugged.
        """
        ...

    async def verify(self, port: Port) -> bool:
        """Whether link, binding and rule set of this port stand in the kernel as rendered."""
        ...

    async def detach(self, sandbox: str) -> None:
        """Remove the sandbox's link and its rules.  Quiet if absent."""
        ...

    async def list(self) -> Mapping[str, Port | None]:
        """Sandboxes that have a link or rules of ours; None where what is found is only half there."""
        ...

    async def check(self) -> bool:
        """Whether the base rule set reads back as rendered; if not, it is applied again.  False: it was wrong."""
        ...

    async def close(self, *, remove: bool) -> None:
        """Stop the resolver; with `remove`, take away bridge, rules and changed host settings (no sandbox is left)."""
        ...
