"""What of a host stands in the way of an agent bridge, and what is worth knowing about it.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from agentlab.network import addresses
from agentlab.network.addresses import Taken
from agentlab.network.host_network import files
from agentlab.network.host_network.plan import is_ours
from agentlab.network.host_network.spec import Obstacle, Spec
from agentlab.network.host_network.state import Observed

_SOURCED = re.compile(r"^\s*source(-directory)?\s+(/etc/network/)?interfaces\.d(/\S*)?\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the host has beside us.  Of a folder that is no running system, only the interfaces' files are known."""

    interfaces: str | None  # /etc/network/interfaces; None if there is none
    others: Mapping[str, str] = field(default_factory=dict)  # what it includes but ours, by path
    live: bool = True
    missing: tuple[Obstacle, ...] = ()  # programs
    taken: tuple[Taken, ...] = ()
    links: frozenset[str] = frozenset()
    ways: Mapping[IPv4Address, str] = field(default_factory=dict)  # by which interface the host reaches it
    closed: tuple[str, ...] = ()  # tables of others that drop forwarded packets by default
    tailscale: bool = False


def obstacles(spec: Spec, observed: Observed, survey: Survey) -> list[Obstacle]:
    """Everything at once; empty if the bridge can be made."""
    found = [*_of_record(spec, observed), *_of_files(spec, observed, survey)]
    if survey.live:
        found += [*survey.missing, *_of_links(spec, observed, survey), *_of_ways(spec, survey)]
    return found


def busy(spec: Spec, observed: Observed) -> list[Obstacle]:
    """Why the bridge cannot be taken away."""
    if observed.link is None or not observed.link.is_ours(spec) or not observed.link.ports:
        return []
    ports = ", ".join(observed.link.ports)
    return [
        Obstacle(
            cause=f"machines are still plugged into {spec.bridge}: {ports}",
            remedy="Stop or destroy them first (`agentlab sandbox list` shows AgentLab's own).",
        )
    ]


def remarks(spec: Spec, observed: Observed, survey: Survey) -> list[str]:
    """Sentences about what works less well than one might think."""
    found = []
    if not spec.by_bridge:
        found.append(
            f"This kernel cannot tell frames by their bridge (nft_meta_bridge): between guests, what is neither IPv4 "
            f"of {spec.subnet} nor its ARP is left to each VM's own firewall."
        )
    if survey.closed:
        found.append(
            f"{', '.join(survey.closed)} drops forwarded packets by default, and a packet needs the consent of every "
            f"table: let it accept what comes from {spec.bridge}, and the replies to it."
        )
    if survey.tailscale:
        found.append(f"Tailscale runs here: guests' packets go by {spec.uplink} and never into the tailnet.")
    if survey.live and not observed.systemd:
        found.append("systemd does not run here: see that something loads the rules when the host starts.")
    return found


def public_nameserver(nameservers: Iterable[str]) -> IPv4Address | None:
    """The first of the host's name servers that guests reach as they reach the internet."""
    known = (IPv4Address(each) for each in nameservers if ":" not in each)
    return next((each for each in known if each.is_global), None)


def _of_record(spec: Spec, observed: Observed) -> Iterable[Obstacle]:
    kept = observed.record
    if kept is not None and not kept.fits(spec):
        yield Obstacle(
            cause=f"this host has the agent bridge {kept.bridge} with {kept.subnet} and uplink {kept.uplink}",
            remedy="Take it away first: agentlab setup host-network --undo",
        )


def _of_files(spec: Spec, observed: Observed, survey: Survey) -> Iterable[Obstacle]:
    for path in observed.files:
        if path != files.RECORD and not is_ours(observed, path):
            yield Obstacle(cause=f"{path} is there and was not written by AgentLab", remedy=f"Move {path} away.")
    if survey.interfaces is None:
        yield Obstacle(
            cause="there is no /etc/network/interfaces: another program configures this host's network",
            remedy="Use ifupdown2, as Proxmox VE does; or make the bridge yourself, see docs/howto/host-network.md.",
        )
    elif _SOURCED.search(survey.interfaces) is None:
        yield Obstacle(
            cause="/etc/network/interfaces does not include the files of interfaces.d",
            remedy="Append this line to it: source /etc/network/interfaces.d/*",
        )
    named = re.compile(rf"^\s*(auto|iface|allow-\S+)\s(.*\s)?{re.escape(spec.bridge)}(\s|$)", re.MULTILINE)
    texts = {"/etc/network/interfaces": survey.interfaces or "", **survey.others}
    for where, text in texts.items():
        if named.search(text):
            yield Obstacle(
                cause=f"{where} defines an interface {spec.bridge}", remedy="Take another name: --bridge agbr1"
            )


def _of_links(spec: Spec, observed: Observed, survey: Survey) -> Iterable[Obstacle]:
    link = observed.link
    if link is not None and not link.is_ours(spec):
        yield Obstacle(
            cause=f"{spec.bridge} exists and is not AgentLab's: {link.kind or 'an interface'} with the alias "
            f"{link.alias!r}",
            remedy="Take another name: --bridge agbr1",
        )
    # Once the bridge is ours, others may claim its addresses; routing by rules of our own does not care.
    clash = addresses.first_clash(spec.subnet, survey.taken)
    if clash is not None and (link is None or spec.address not in link.addresses):
        yield Obstacle(
            cause=f"{spec.subnet} is in use: {clash.what}",
            remedy=f"Take another: --subnet {_free(survey.taken) or 'a private network that nobody here uses'}",
        )
    if spec.uplink not in survey.links:
        shown = ", ".join(sorted(each for each in survey.links if each != "lo")) or "none"
        yield Obstacle(
            cause=f"there is no interface {spec.uplink}", remedy=f"Name the uplink: --uplink …; there are: {shown}"
        )


def _of_ways(spec: Spec, survey: Survey) -> Iterable[Obstacle]:
    """What is let through to the outside leaves by the uplink, or not at all."""
    for who, address in (("the daemon", spec.guest), ("the name server", spec.nameserver)):
        if address is None or address in spec.subnet:
            continue
        way = survey.ways.get(address)
        if way != spec.uplink:
            by = f"is reached by {way}" if way is not None else "cannot be reached"
            yield Obstacle(
                cause=f"{who}'s address {address} {by}, and guests leave by {spec.uplink} alone",
                remedy=f"Give one that is reached by {spec.uplink}, or one within {spec.subnet}.",
            )


def _free(taken: Iterable[Taken]) -> str | None:
    known = tuple(taken)
    candidates = (f"10.{number}.0.0/24" for number in range(80, 256, 5))
    networks = (IPv4Network(each) for each in candidates)
    return next((str(each) for each in networks if addresses.first_clash(each, known) is None), None)
