"""What is done to links in one go, for the bridge or for one port.  Blocking: every call in a thread of its own."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from agentlab.model.network import LinkEnd, Namespace, Port, Tap, Unplugged
from agentlab.network import addresses, inet, links, namespace, sysctl
from agentlab.network.links import Link
from agentlab.network.rtnetlink import RouteSocket

MTU_MIN, MTU_MAX = 1280, 1500


class Foreign(Exception):
    """A link bears the name that ours would have, but not our mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The names and addresses that all links of this installation share."""

    installation: str
    subnet: IPv4Network
    mtu: int = MTU_MAX

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return addresses.bridge_name(self.installation)

    def stand(self, *, up: bool) -> bool:
        """Make the bridge be as it must, with its settings; whether it was so already.  Foreign; OSError."""
        with RouteSocket() as route:
            link = self._bridge(route)
            right = link is not None and link.up
            if link is None:
                mark = links.bridge_mark(self.installation)
                links.make_bridge(route, self.bridge, mark, self._mac, addresses.gateway(self.subnet), self.subnet)
                link = self._bridge(route)
                assert link is not None
            if link.mac != self._mac:
                links.set_mac(route, self.bridge, self._mac)
                right = False
            right &= self._address_right(route, link)
            # Settings precede `up`: an IPv6 address of its own would appear in between.
            for name, value in sysctl.differing(sysctl.of_bridge(self.bridge)).items():
                sysctl.write(name, value)
                right = False
            if up != link.up:
                links.set_up(route, self.bridge, up=up)
            return right

    def silence(self) -> None:
        """Take the bridge down, so that nothing flows whatever the rules are.  Quiet if it is absent."""
        with RouteSocket() as route:
            if self._bridge(route) is not None:
                links.set_up(route, self.bridge, up=False)

    def standing_subnet(self) -> IPv4Network | None:
        """The subnet of the bridge that stands, if one of ours does."""
        with RouteSocket() as route:
            link = self._bridge(route)
            held = inet.addresses_of(route, link.index) if link is not None else set()
        nets = [IPv4Network(f"{address}/{length}", strict=False) for address, length in held]
        return nets[0] if len(nets) == 1 else None

    def bearer(self, port: Port, end: LinkEnd | None = None) -> Link | None:
        """The link of the port's name.  Foreign if it bears another's mark, another sandbox's included.

        A tap is unmarked until it is joined; `end` None: it is not known yet whether that is what will be joined.
        """
        with RouteSocket() as route:
            link = links.find(route, port.link)
        fresh = link is not None and link.tap and not link.alias and not isinstance(end, Namespace)
        if link is not None and link.alias != self._mark(port) and not fresh:
            raise Foreign(f"the link {port.link} exists and is marked {link.alias!r}, not {self._mark(port)!r}")
        return link

    def join(self, port: Port, end: LinkEnd) -> None:
        """Make the port lead to `end`, our side down.

        Foreign; OSError; FileNotFoundError if the end is gone; ValueError if it does not fit.
        """
        match end:
            case Namespace(pid):
                self._plug(port, pid)
            case Tap(index):
                self._take(port, index)
            case Unplugged():
                raise ValueError(f"the VM has no network device, but its sandbox shall have mode `{port.mode}`")

    def require_alone(self, port: Port, end: LinkEnd) -> None:
        """Mode `off`: the sandbox has no interface but loopback, which is brought up.  Foreign; OSError."""
        match end:
            case Namespace(pid):
                _require_alone(pid)
            case Tap():
                raise Foreign("the sandbox shall have no network, but its VM has a network device")
            case Unplugged():
                with RouteSocket() as route:
                    if links.find(route, port.link) is not None:
                        raise Foreign(f"the sandbox shall have no network, but there is a link {port.link}")

    def _plug(self, port: Port, pid: int) -> None:
        """Make the port's link, our end down, its other end furnished inside the namespace of process `pid`.

        What stands is kept if it joins the same two places, and replaced otherwise.  Foreign; OSError; ValueError if
        `pid` is in our own namespace.
        """
        with namespace.opened(pid) as descriptor, RouteSocket() as route:
            bridge = self._standing_bridge(route)
            ours = links.find(route, port.link)
            namespace.enter(descriptor)
            with RouteSocket() as inside:
                theirs = links.find(inside, links.INSIDE)
                joined = (
                    ours and theirs and (ours.peer, theirs.peer, theirs.mac) == (theirs.index, ours.index, port.mac)
                )
                if not joined:
                    if ours is not None:
                        links.remove(route, ours)
                        theirs = None if theirs is None or theirs.peer == ours.index else theirs
                    if theirs is not None:
                        raise Foreign(f"the sandbox has an interface {links.INSIDE} that we did not make")
                    links.make_pair(route, port, self._mark(port), bridge, descriptor, self.mtu)
                for name, value in sysctl.differing(_INSIDE_SETTINGS).items():
                    sysctl.write(name, value)
                links.furnish(inside, port, self._mac)
                if others := links.strangers(inside, frozenset({"lo", links.INSIDE})):
                    raise Foreign(f"the sandbox has interfaces that we did not make: {', '.join(others)}")

    def _take(self, port: Port, index: int) -> None:
        """Put the tap of this index on the bridge.  Foreign if it is not the port's; FileNotFoundError if it is gone.

        What is up already was brought up by us, or by somebody who had no business to.
        """
        with RouteSocket() as route:
            bridge, tap = self._standing_bridge(route), links.find_index(route, index)
            if tap is None:
                raise FileNotFoundError(f"the tap {port.link} is gone")
            ours = tap.alias == self._mark(port)
            if tap.name != port.link or not tap.tap:
                raise Foreign(f"interface {index} is {tap.name}, and not the tap {port.link}")
            if not ours and (tap.alias or tap.up):
                raise Foreign(f"the tap {port.link} is in use: {'up' if tap.up else 'down'}, marked {tap.alias!r}")
            if tap.master not in (0, bridge.index):
                raise Foreign(f"the tap {port.link} is on another bridge")
            links.adopt(route, port, self._mark(port), tap, bridge, self.mtu)

    def lift(self, port: Port) -> None:
        """Bring our end up and read it back.  Foreign if the kernel then shows something else than was asked for.

        FileNotFoundError if it is gone, such as the tap of a VM that has ended.
        """
        # The host would greet the guest in IPv6 from an address of its own on the port.
        for name, value in sysctl.differing(sysctl.without_ipv6(port.link)).items():
            sysctl.write(name, value)
        with RouteSocket() as route:
            link = links.find(route, port.link)
            if link is None:
                raise FileNotFoundError(f"the link {port.link} is gone")
            if link.alias != self._mark(port):
                raise Foreign(f"the link {port.link} is not the one that was joined")
            links.set_up(route, port.link, up=True)
            if not self._right(route, port):
                raise Foreign(f"the link {port.link} is not as it was made")

    def right(self, port: Port) -> bool:
        """Whether the port's link stands, up, ours, isolated on our bridge, and the bridge stands too."""
        with RouteSocket() as route:
            return self._right(route, port)

    def unplug(self, name: str, sandbox: str) -> None:
        """Remove the link if it bears this sandbox's mark; quiet if there is none.  The other end goes with it.

        A tap is its VM's, which may still run: it is cut off, and vanishes with the VM.
        """
        with RouteSocket() as route:
            link = links.find(route, name)
            if link is None or links.sandbox_of(link.alias, self.installation) != sandbox:
                return
            if link.tap:
                links.release(route, link)
            else:
                links.remove(route, link)

    def plugged(self) -> list[tuple[str, Link]]:
        """All links that bear our mark, each with the sandbox that it names."""
        with RouteSocket() as route:
            found = links.all_links(route)
        named = [(links.sandbox_of(each.alias, self.installation), each) for each in found]
        return [(sandbox, each) for sandbox, each in named if sandbox is not None]

    def remove_bridge(self) -> None:
        """Take the bridge away; quiet if it is absent, Foreign if it is not ours."""
        with RouteSocket() as route:
            if (link := self._bridge(route)) is not None:
                links.remove(route, link)

    @property
    def _mac(self) -> str:
        return addresses.bridge_mac(self.installation)

    def _mark(self, port: Port) -> str:
        return links.port_mark(self.installation, port.sandbox)

    def _bridge(self, route: RouteSocket) -> Link | None:
        link = links.find(route, self.bridge)
        if link is not None and (link.alias != links.bridge_mark(self.installation) or link.kind != "bridge"):
            raise Foreign(f"a link {self.bridge} exists that we did not make")
        return link

    def _standing_bridge(self, route: RouteSocket) -> Link:
        bridge = self._bridge(route)
        if bridge is None:
            raise Foreign(f"the bridge {self.bridge} is gone")
        return bridge

    def _address_right(self, route: RouteSocket, link: Link) -> bool:
        wanted = (addresses.gateway(self.subnet), self.subnet.prefixlen)
        held = inet.addresses_of(route, link.index)
        for address, prefix_length in held - {wanted}:
            inet.drop_address(route, link.index, address, prefix_length)
        if wanted not in held:
            inet.add_address(route, link.index, *wanted)
        return held == {wanted}

    def _right(self, route: RouteSocket, port: Port) -> bool:
        bridge, link = self._bridge(route), links.find(route, port.link)
        return (
            bridge is not None
            and link is not None
            and bridge.up
            and link.up
            and link.alias == self._mark(port)
            and link.master == bridge.index
            and link.isolated
            and not link.learning
            and not link.flooded
        )


def _require_alone(pid: int) -> None:
    """Mode `off`: nothing but loopback is in the namespace of `pid`; that is brought up.  Foreign; OSError."""
    with namespace.opened(pid) as descriptor:
        namespace.enter(descriptor)
        with RouteSocket() as inside:
            if others := links.strangers(inside, frozenset({"lo"})):
                raise Foreign(f"the sandbox shall have no network, but has {', '.join(others)}")
            links.set_up(inside, "lo", up=True)


_INSIDE_SETTINGS = sysctl.without_ipv6("all") | sysctl.without_ipv6("default")
