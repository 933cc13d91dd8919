"""What the host's own network looks like: which addresses it uses, what it is directly on, what else filters.

The one place that asks `ip`; the parsers are pure.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

from agentlab.base import process
from agentlab.network.addresses import Taken
from agentlab.network.interface import NetworkError

IP_TIMEOUT_S = 10.0
RESOLV_CONF = Path("/etc/resolv.conf")

# A VPN that takes all traffic writes two halves of the internet instead of a default route; both are no clash.
DEFAULT_PREFIX_LENGTH_MAX = 1
_NOWHERE = frozenset({"blackhole", "unreachable", "prohibit", "throw"})
_CHAIN = re.compile(r"type filter hook (\w+) .*policy drop;")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One look at the host."""

    taken: tuple[Taken, ...] = ()
    on_link: tuple[IPv4Network, ...] = ()
    mtu: int = 1500  # of the interface that leads to the internet


async def look(own_bridge: str) -> Host:
    """Read routes, addresses and links, less those of our own bridge.  NetworkError if `ip` cannot be asked."""
    routes, addresses = await asyncio.gather(
        ask_ip("-4", "route", "show", "table", "all"), ask_ip("-4", "addr")
    )  # `ip addr` tells the MTU of every link as well
    nameservers = [each for each in read_nameservers() if ":" not in each]
    return digest(routes, addresses, nameservers, own_bridge)


async def ask_ip(*words: str) -> list[dict[str, Any]]:
    """What `ip -j` prints.  NetworkError if it cannot be asked."""
    argv = (process.which("ip") or "ip", "-j", *words)
    try:
        ended = await process.run(argv, timeout_s=IP_TIMEOUT_S)
        return [each for each in json.loads(ended.out or b"[]") if each]
    except (process.ProgramFailed, json.JSONDecodeError) as failure:
        raise NetworkError(f"the host's network cannot be read: {failure}", "Install iproute2.") from failure


async def own_addresses() -> list[str]:
    """The host's own IPv4 addresses, less those of its loopback.  NetworkError if `ip` cannot be asked."""
    links = await ask_ip("-4", "addr")
    found = [each for link in links for each in link.get("addr_info", ()) if each.get("family") == "inet"]
    return [str(each["local"]) for each in found if not ip_address(str(each["local"])).is_loopback]


def digest(
    routes: Sequence[dict[str, Any]], addresses: Sequence[dict[str, Any]], nameservers: Iterable[str], own_bridge: str
) -> Host:
    """What `ip -j` printed, as facts."""
    others = [each for each in routes if each.get("dev") != own_bridge]
    taken = [each for route in others for each in _taken_by_route(route)]
    links = [each for each in addresses if each.get("ifname") != own_bridge]
    taken += [each for link in links for each in _taken_by_link(link)]
    taken += [
        Taken(network=IPv4Network(each), what=f"name server {each}")
        for each in nameservers
        if not ip_address(each).is_loopback
    ]
    default = next((each.get("dev") for each in others if each.get("dst") == "default"), None)
    return Host(
        taken=tuple(taken),
        on_link=tuple(sorted({net for route in others if (net := _on_link(route)) is not None})),
        mtu=next((int(each["mtu"]) for each in links if each.get("ifname") == default), 1500),
    )


def read_nameservers(path: Path = RESOLV_CONF) -> list[str]:
    """The host's name servers, in order; none if there is no such file."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ip_address(words[1].split("%")[0])
            except ValueError:
                continue
            found.append(words[1])
    return found


async def chains() -> str:
    """What `nft list chains` prints, everybody's; nothing if nft cannot tell."""
    try:
        ended = await process.run(
            (process.which("nft") or "nft", "list", "chains"), timeout_s=IP_TIMEOUT_S, check=False
        )
    except process.ProgramFailed:
        return ""
    return ended.out.decode(errors="replace")


def parse_closed_chains(listing: str, hook: str, own_table: str) -> list[str]:
    """What `nft list chains` printed → tables of others in the IPv4 families whose chain at `hook` drops by default,
    such as Docker's.
    """
    found, table, foreign = list[str](), "", False
    for line in listing.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
            foreign = words[1] in ("ip", "inet") and own_table not in table
        elif foreign and (match := _CHAIN.search(line)) and match[1] == hook:
            found.append(table)
    return found


def _taken_by_route(route: dict[str, Any]) -> Iterable[Taken]:
    if route.get("type") in _NOWHERE:
        return
    what = " ".join(("route", str(route["dst"]), *(("dev", str(route["dev"])) if "dev" in route else ())))
    network = _network(str(route["dst"]))
    if network is not None and network.prefixlen > DEFAULT_PREFIX_LENGTH_MAX and not network.is_multicast:
        yield Taken(network=network, what=what)
    if (via := _network(str(route.get("gateway", "")))) is not None:
        yield Taken(network=via, what=f"{what} via {via.network_address}")


def _taken_by_link(link: dict[str, Any]) -> Iterable[Taken]:
    for each in link.get("addr_info", ()):
        if each.get("family") == "inet":
            network = IPv4Network(f"{each['local']}/{each['prefixlen']}", strict=False)
            yield Taken(network=network, what=f"address {each['local']}/{each['prefixlen']} dev {link['ifname']}")


def _on_link(route: dict[str, Any]) -> IPv4Network | None:
    if route.get("scope") != "link" or "gateway" in route or route.get("type", "unicast") != "unicast":
        return None
    network = _network(str(route["dst"]))
    return network if network is not None and network.prefixlen >= 8 else None


def _network(text: str) -> IPv4Network | None:
    try:
        return IPv4Network(text, strict=False)
    except ValueError:
        return None
