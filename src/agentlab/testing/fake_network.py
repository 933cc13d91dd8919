"""A network in memory, with faults from a seed: calls that are slow, refused, or done and yet answered by an error."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from agentlab.base.entropy import Entropy, SeededEntropy
from agentlab.model.finding import Finding
from agentlab.model.network import LinkEnd, NetworkMode, Port, Tap, Unplugged
from agentlab.network import addresses
from agentlab.network.interface import NetworkError


class FakeNetwork:
    """`Network` without a kernel.  Waits by `asyncio.sleep` only, so it works on virtual time.

    `fault_rate` is the share of calls that are refused before they do anything, and again the share that fail after
    they have done it.  What stands in it survives its users: give the same fake to the next daemon.
    """

    def __init__(
        self,
        *,
        entropy: Entropy | None = None,
        fault_rate: float = 0.0,
        latency_s: float = 0.0,
        installation: str = "fake2345",
        subnet: IPv4Network = addresses.DEFAULT_SUBNET,
    ) -> None:
        """`latency_s` is the mean of a call's duration."""
        self.installation, self.subnet = installation, subnet
        self.fault_rate, self.latency_s = fault_rate, latency_s
        self.ports: dict[str, Port | None] = {}  # what stands, by sandbox; None: half of it
        self.rules_stand = False  # set it to False to be the third party who flushes them
        self.gone: set[LinkEnd] = {Tap(1)}  # ends that are not there; interface 1 is loopback everywhere
        self.trace: list[str] = []
        self._entropy = entropy or SeededEntropy(0)

    @property
    def slots(self) -> int:
        """The capacity of the subnet."""
        return addresses.capacity(self.subnet)

    @property
    def resolver(self) -> IPv4Address:
        """The gateway's address."""
        return addresses.gateway(self.subnet)

    def port(self, sandbox: str, slot: int, mode: NetworkMode) -> Port:
        """The same addresses that the real network gives."""
        try:
            return addresses.make_port(self.installation, self.subnet, sandbox, slot, mode)
        except ValueError as error:
            raise NetworkError(str(error), "Configure a larger subnet, or destroy some sandboxes.") from error

    async def probe(self) -> Sequence[Finding]:
        """One finding, and that a good one."""
        return [Finding(name="packet filter", ok=True, detail="in memory")]

    async def open(self) -> IPv4Network:
        """Rules stand."""
        await self._fate("open", lambda: setattr(self, "rules_stand", True))
        return self.subnet

    async def expect(self, port: Port) -> None:
        """Half of it stands; not while the slot is another's."""
        taken = any(each is not None and each.link == port.link for each in self.ports.values())
        if port.mode is not NetworkMode.OFF and not taken:
            await self._fate(f"expect {port.sandbox}", lambda: self.ports.setdefault(port.sandbox, None))

    async def attach(self, port: Port, end: LinkEnd) -> None:
        """One sandbox per slot, as in the kernel."""
        if isinstance(end, Tap) and port.mode is NetworkMode.OFF:
            raise NetworkError("the sandbox shall have no network, but its VM has a network device")
        if isinstance(end, Unplugged) and port.mode is not NetworkMode.OFF:
            raise NetworkError("the VM has no network device")
        if end in self.gone:
            raise NetworkError("the sandbox's process is gone", "See why it ended: `agentlab sandbox logs`.")
        if port.mode is NetworkMode.OFF:
            await self._fate(f"attach {port.sandbox} off", lambda: None)
            return
        for other in self.ports.values():
            if other is not None and other.link == port.link and other.sandbox != port.sandbox:
                raise NetworkError(f"the link {port.link} exists and belongs to {other.sandbox}")
        if self._entropy.fraction() < self.fault_rate / 2:
            self.ports[port.sandbox] = None
        await self._fate(f"attach {port.sandbox}", lambda: self._put(port))

    async def verify(self, port: Port) -> bool:
        """Whether the port stands, and the rules."""
        await self._fate(f"verify {port.sandbox}", lambda: None)
        if port.mode is NetworkMode.OFF:
            return port.sandbox not in self.ports
        return self.rules_stand and self.ports.get(port.sandbox) == port

    async def detach(self, sandbox: str) -> None:
        """Quiet if absent."""
        await self._fate(f"detach {sandbox}", lambda: self.ports.pop(sandbox, None))

    async def list(self) -> Mapping[str, Port | None]:
        """What stands; without rules nothing is whole."""
        await self._fate("list", lambda: None)
        return dict(self.ports) if self.rules_stand else dict.fromkeys(self.ports, None)

    async def check(self) -> bool:
        """Repairs the rules."""
        stood = builtins.list[bool]()

        def repair() -> None:
            stood.append(self.rules_stand)
            self.rules_stand = True

        await self._fate("check", repair)
        return stood[0]

    async def close(self, *, remove: bool) -> None:
        """With `remove`, nothing stands."""
        if remove:
            self.ports.clear()
            self.rules_stand = False

    def _put(self, port: Port) -> None:
        self.ports[port.sandbox] = port
        self.rules_stand = True  # as the real one repairs what it finds missing

    async def _fate(self, call: str, effect: Callable[[], object]) -> None:
        if self.latency_s:
            await asyncio.sleep(self._entropy.fraction() * 2 * self.latency_s)
        roll = self._entropy.fraction()
        self.trace.append(f"{call} {roll:.6f}")
        if roll < self.fault_rate / 2:
            raise NetworkError(f"{call}: refused (a fault of the simulation)")
        effect()
        if roll > 1 - self.fault_rate / 2:
            raise NetworkError(f"{call}: done, but not confirmed (a fault of the simulation)")
