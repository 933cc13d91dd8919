"""The real network: one bridge with a gateway address, a relay for names, and a bound, isolated port per sandbox."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy, SystemEntropy
from agentlab.model.finding import Finding
from agentlab.model.network import LinkEnd, NetworkMode, Port
from agentlab.network import addresses, host, probing, record, ruleset, sysctl, wiring
from agentlab.network.interface import NetworkError
from agentlab.network.links import Link
from agentlab.network.namespace import in_own_thread
from agentlab.network.nft import Nft
from agentlab.network.resolver import Resolver
from agentlab.network.ruleset import Base, Listing
from agentlab.network.wiring import Foreign, Wiring

log = logging.getLogger(__name__)

T = TypeVar("T")

UNDO_TIMEOUT_S = 30.0


class BridgeNetwork:
    """`Network` on Linux bridge, veth, tap and nftables.  Works in whatever network namespace the process lives in."""

    def __init__(
        self,
        installation: str,
        state_dir: Path,
        subnet: IPv4Network | None,
        clock: Clock,
        upstreams: Sequence[str] | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        """`subnet` None: the default, or another where that clashes.  `upstreams` None: the host's name servers."""
        self._installation, self._state_dir, self._configured = installation, state_dir, subnet
        self._clock, self._upstreams = clock, upstreams
        self._entropy = entropy or SystemEntropy()
        first = subnet or addresses.DEFAULT_SUBNET
        self._base = Base(installation=installation, subnet=first)
        self._wiring = Wiring(installation=installation, subnet=first)
        self._nft = Nft(self._base.table)
        self._expected: Listing | None = None  # None until open
        self._known: dict[str, Port] = {}  # by link: what was attached; a hint where to look, never the truth
        self._bound: dict[str, Port] = {}  # by link: rules that were read back ahead, before the link was there
        self._attaching: dict[str, Port] = {}  # by link: may be half there without anything being wrong
        self._repairing = asyncio.Lock()
        self._relay: Resolver | None = None

    @property
    def slots(self) -> int:
        """All addresses of the subnet but network, gateway and broadcast."""
        return addresses.capacity(self._base.subnet)

    @property
    def resolver(self) -> IPv4Address:
        """The gateway's address."""
        return addresses.gateway(self._base.subnet)

    def port(self, sandbox: str, slot: int, mode: NetworkMode) -> Port:
        """The addresses of a slot.  NetworkError beyond the subnet's capacity."""
        try:
            return addresses.make_port(self._installation, self._base.subnet, sandbox, slot, mode)
        except ValueError as error:
            raise NetworkError(str(error), "Configure a larger subnet, or destroy some sandboxes.") from error

    async def probe(self) -> Sequence[Finding]:
        """Tools, privilege, kernel features, subnet and other filters of this machine."""
        return await probing.probe(self._nft, self._base, self._configured, self._upstreams)

    async def open(self) -> IPv4Network:
        """Stand up, or adopt what stands; what differs is repaired."""
        async with self._repairing:
            look = await host.look(self._wiring.bridge)
            subnet = await self._choose_subnet(look)
            mtu = max(wiring.MTU_MIN, min(wiring.MTU_MAX, look.mtu))
            self._base = Base(installation=self._installation, subnet=subnet, on_link=look.on_link)
            self._wiring = Wiring(installation=self._installation, subnet=subnet, mtu=mtu)
            self._expected = await self._nft.canonical(ruleset.render(self._base))
            await self._stand()
        if self._relay is None:
            await self._start_relay()
        return subnet

    async def expect(self, port: Port) -> None:
        """The rules, applied and read back: they need no link, and take longer than it."""
        if port.mode is NetworkMode.OFF or self._expected is None:
            return
        wires = self._wiring
        await _translated(in_own_thread(lambda: wires.bearer(port)))
        self._known[port.link] = port
        await self._bind(port)
        self._bound[port.link] = port

    async def attach(self, port: Port, end: LinkEnd) -> None:
        """Link and rules, made at once; our end of the link goes up only after the rules have read back."""
        wires = self._wiring
        if port.mode is NetworkMode.OFF:
            await _translated(in_own_thread(lambda: wires.require_alone(port, end)))
            return
        if self._expected is None:
            raise NetworkError("the network is not open", "Open it first; this is a defect of agentlabd.")
        await _translated(in_own_thread(lambda: wires.bearer(port, end)))
        self._attaching[port.link] = port
        try:
            plugging = _translated(in_own_thread(lambda: wires.join(port, end)))
            for outcome in await asyncio.gather(self._be_bound(port), plugging, return_exceptions=True):
                if outcome is not None:
                    raise outcome
            await _translated(in_own_thread(lambda: wires.lift(port)))
        except BaseException:
            await asyncio.shield(self._undo(port))
            raise
        finally:
            self._attaching.pop(port.link, None)
        self._known[port.link] = port

    async def verify(self, port: Port) -> bool:
        """Reads the kernel: rules, this port's binding, its link.  Mode `off`: no link of ours names the sandbox."""
        wires = self._wiring
        if port.mode is NetworkMode.OFF:
            links = await self._plugged()
            return all(sandbox != port.sandbox for sandbox, _ in links)
        listing, right = await asyncio.gather(
            self._nft.listing(), _translated(in_own_thread(lambda: wires.right(port)))
        )
        return right and self._stands(listing) and listing is not None and listing.holds(port)

    async def detach(self, sandbox: str) -> None:
        """Link and rules go at once: without either, nothing flows."""
        ports = [each for each in self._known.values() if each.sandbox == sandbox]
        if not ports:
            ports = await self._ports_of(sandbox)
        for port in ports:
            self._known.pop(port.link, None)
            await self._remove(port)

    async def list(self) -> Mapping[str, Port | None]:
        """By the marks on links and the names in the sets."""
        listing, plugged = await asyncio.gather(self._nft.listing(), self._plugged())
        found: dict[str, Port | None] = {}
        for sandbox, link in plugged:
            port = self._port_of(link.name, sandbox)
            whole = port is not None and listing is not None and listing.holds(port)
            found[sandbox] = port if whole and sandbox not in found else None
        if listing is not None:
            bindings = {*listing.ports.values(), *listing.sandboxes}
            found |= dict.fromkeys({each.sandbox for each in bindings} - found.keys(), None)
        return found

    async def check(self) -> bool:
        """Compare rules, bridge and settings with what they must be, and repair.

        NetworkError if they cannot be repaired; the bridge is then down, and nothing flows.
        """
        async with self._repairing:
            look = await host.look(self._wiring.bridge)
            stood = await self._standing()
            if look.on_link != self._base.on_link:
                # The host moved to another network: new rules are due, but the old ones were no lapse.
                self._base = replace(self._base, on_link=look.on_link)
                self._expected = await self._nft.canonical(ruleset.render(self._base))
                if self._relay is not None:
                    self._relay.blocked = ruleset.blocked(self._base)
                await self._stand()
                return stood
            return await self._stand() and stood

    async def close(self, *, remove: bool) -> None:
        """Sandboxes keep their network, less names, unless `remove`."""
        if self._relay is not None:
            await self._relay.stop()
            self._relay = None
        if remove:
            async with self._repairing:
                await self._remove_everything()

    async def _choose_subnet(self, look: host.Host) -> IPv4Network:
        if self._configured is not None and (why := addresses.objection(self._configured)) is not None:
            raise NetworkError(why, "Configure `network.subnet` with a range such as 10.77.0.0/16, or leave it out.")
        wires = self._wiring
        standing = await _translated(in_own_thread(wires.standing_subnet))
        remembered = record.load(self._state_dir)
        chosen = self._configured or standing or remembered.subnet or addresses.DEFAULT_SUBNET
        clash = addresses.first_clash(chosen, look.taken)
        if clash is not None and chosen != standing:
            if self._configured is not None:
                raise probing.clash_error(chosen, clash)
            found = addresses.free_subnet(look.taken)
            if found is None:
                raise probing.no_subnet_error(clash)
            chosen = found
        if standing not in (None, chosen) and await self._plugged():
            raise NetworkError(
                f"the bridge has {standing} and sandboxes on it, but the subnet is configured as {chosen}",
                f"Destroy the sandboxes first, or configure {standing} again.",
            )
        if remembered.subnet != chosen:
            record.save(self._state_dir, replace(remembered, subnet=chosen))
        return chosen

    async def _stand(self) -> bool:
        """Make everything shared be as it must; whether it was.  On failure the bridge is down."""
        wires = self._wiring
        try:
            right = await _translated(in_own_thread(self._forward))
            right &= await self._stand_rules()
            return await _translated(in_own_thread(lambda: wires.stand(up=True))) and right
        except NetworkError:
            await _translated(in_own_thread(wires.silence))
            raise

    def _forward(self) -> bool:
        """Let the host route; what it did before is on disk first."""
        before = sysctl.read(sysctl.FORWARDING)
        if before == "1":
            return True
        remembered = record.load(self._state_dir)
        if remembered.forwarding_before is None:
            record.save(self._state_dir, replace(remembered, forwarding_before=before))
        sysctl.write(sysctl.FORWARDING, "1")
        return False

    async def _stand_rules(self) -> bool:
        if await self._standing():
            return True
        ports = await self._plugged_ports()
        self._nft.distrust()
        applied = await self._nft.apply(ruleset.render(self._base, ports))
        listing = await self._nft.listing()
        if not self._stands(listing):
            raise _mismatch()
        self._nft.trust(applied)
        self._bound.clear()  # what has no link yet was not among the ports
        return False

    async def _standing(self) -> bool:
        listing = await self._nft.listing()
        if not self._stands(listing):
            return False
        assert listing is not None
        plugged = await self._plugged_ports()
        return all(listing.holds(each) for each in plugged if each.link not in self._attaching) and all(
            self._consistent(link, binding) for link, binding in listing.ports.items()
        )

    def _stands(self, listing: Listing | None) -> bool:
        return listing is not None and self._expected is not None and listing.text == self._expected.text

    def _consistent(self, link: str, binding: ruleset.Binding) -> bool:
        port = self._port_of(link, binding.sandbox)
        return port is not None and ruleset.binding_of(port) == binding

    async def _plugged_ports(self) -> builtins.list[Port]:
        plugged = await self._plugged()
        found = {link.name: self._port_of(link.name, sandbox) for sandbox, link in plugged}
        return [each for each in (found | self._attaching).values() if each is not None]

    async def _plugged(self) -> builtins.list[tuple[str, Link]]:
        return await _translated(in_own_thread(self._wiring.plugged))

    def _port_of(self, link: str, sandbox: str) -> Port | None:
        slot = addresses.slot_of(link, self._installation)
        if slot is None or not 1 <= slot <= addresses.capacity(self._base.subnet):
            return None
        return addresses.make_port(self._installation, self._base.subnet, sandbox, slot, NetworkMode.NAT)

    async def _be_bound(self, port: Port) -> None:
        """What was read back ahead still holds if the kernel's rules have not changed since, but by our own hand."""
        if self._bound.pop(port.link, None) != port or not await _translated(self._nft.unchanged()):
            await self._bind(port)

    async def _bind(self, port: Port) -> None:
        """The port's members into the sets, and everything read back; what is missing of the rest is repaired once."""
        try:
            if await self._apply_and_see(ruleset.add_port(self._base, port), port):
                return
        except NetworkError as error:
            log.warning("the rules refuse a port and are repaired", extra={"cause": error.cause})
        async with self._repairing:
            await self._stand()
        # The slot's addresses may still be bound to its former sandbox, whose removal failed.
        if not await self._apply_and_see(ruleset.rename_port(self._base, port), port):
            raise _mismatch()

    async def _apply_and_see(self, script: str, port: Port) -> bool:
        applied = await self._nft.apply(script)
        if applied.proves(port):
            return True
        listing = await self._nft.listing()
        if listing is None or not self._stands(listing):
            self._nft.distrust()
            return False
        self._nft.trust(applied)
        self._bound = {link: each for link, each in self._bound.items() if listing.holds(each)}
        return listing.holds(port)

    async def _undo(self, port: Port) -> None:
        """After a failed attach.  What cannot be undone is left down, and `list` shows it."""
        self._known.pop(port.link, None)
        try:
            async with asyncio.timeout(UNDO_TIMEOUT_S):
                await self._remove(port)
        except (NetworkError, TimeoutError) as error:
            log.warning("a failed port could not be removed entirely", extra={"link": port.link, "cause": str(error)})

    async def _remove(self, port: Port) -> None:
        self._bound.pop(port.link, None)
        wires = self._wiring
        unplugging = _translated(in_own_thread(lambda: wires.unplug(port.link, port.sandbox)))
        for outcome in await asyncio.gather(unplugging, self._unbind(port), return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def _unbind(self, port: Port) -> None:
        try:
            await self._nft.apply(ruleset.remove_port(self._base, port))
        except NetworkError:
            listing = await self._nft.listing()
            if listing is not None and port.link in listing.ports:
                raise

    async def _ports_of(self, sandbox: str) -> builtins.list[Port]:
        """Where the kernel still knows a sandbox that this process does not."""
        listing, plugged = await asyncio.gather(self._nft.listing(), self._plugged())
        names = {link.name for each, link in plugged if each == sandbox}
        if listing is not None:
            names |= {link for link, binding in listing.ports.items() if binding.sandbox == sandbox}
            by_address = {each.address for each in listing.sandboxes if each.sandbox == sandbox}
            slots = {int(each) - int(self._base.subnet[1]) for each in by_address}
            names |= {addresses.link_name(self._installation, slot) for slot in slots if slot > 0}
        found = (self._port_of(name, sandbox) for name in sorted(names))
        return [each for each in found if each is not None]

    async def _start_relay(self) -> None:
        relay = Resolver(self.resolver, self._clock, self._entropy, self._upstreams)
        relay.blocked = ruleset.blocked(self._base)
        try:
            await relay.start()
        except OSError as error:
            raise NetworkError(
                f"port 53 of {self.resolver} cannot be used to resolve names: {error.strerror or error}",
                "Another DNS server listens on all addresses; `ss -lnup sport = :53` names it.  Bind it to its own.",
            ) from error
        self._relay = relay

    async def _remove_everything(self) -> None:
        wires = self._wiring
        for sandbox, link in await self._plugged():
            await _translated(in_own_thread(_unplugging(wires, link.name, sandbox)))
        await _translated(in_own_thread(wires.remove_bridge))
        await self._nft.apply(ruleset.remove_all(self._base))
        remembered = record.load(self._state_dir)
        if remembered.forwarding_before is not None:
            await _translated(in_own_thread(_writing(sysctl.FORWARDING, remembered.forwarding_before)))
        record.forget(self._state_dir)
        self._known.clear()
        self._expected = None


def _mismatch() -> NetworkError:
    return NetworkError(
        "what the kernel holds is not what was rendered: something else changes AgentLab's tables",
        "Find what does (`nft monitor`), and keep it away from tables named agentlab_….",
    )


def _unplugging(wires: Wiring, link: str, sandbox: str) -> Callable[[], None]:
    return lambda: wires.unplug(link, sandbox)


def _writing(name: str, value: str) -> Callable[[], None]:
    return lambda: sysctl.write(name, value)


async def _translated(work: Awaitable[T]) -> T:
    """Foreign errors become NetworkError, once, here."""
    try:
        return await work
    except Foreign as error:
        raise NetworkError(str(error), "`ip -details link` shows it.  AgentLab changes only what it made.") from error
    except ValueError as error:
        raise NetworkError(str(error)) from error
    except FileNotFoundError as error:
        raise NetworkError("the sandbox's process is gone", "See why it ended: `agentlab sandbox logs`.") from error
    except OSError as error:
        remedy = "The daemon needs CAP_NET_ADMIN and CAP_SYS_ADMIN; `agentlab doctor` checks the machine."
        raise NetworkError(f"the kernel refused a change of the network: {error.strerror or error}", remedy) from error
