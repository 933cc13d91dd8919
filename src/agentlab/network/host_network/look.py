"""A look at the host, or at the files below a folder: what is there of the agent bridge, and what is there beside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from agentlab.base import process
from agentlab.base.text import one_line
from agentlab.network import host, sysctl
from agentlab.network.host_network import files, rules
from agentlab.network.host_network.files import File
from agentlab.network.host_network.obstacles import Survey
from agentlab.network.host_network.spec import TABLE, TAILSCALE, Obstacle, Rule, Spec, routing
from agentlab.network.host_network.state import Link, Observed, Record, parse_record
from agentlab.network.interface import NetworkError
from agentlab.network.nft import Nft

FILE_BYTES_MAX = 1 << 20  # of a file that is read whole
TIMEOUT_S = 20.0
SYSTEM = Path("/")

_SYSTEMD = Path("/run/systemd/system")


def below(root: Path, path: Path) -> Path:
    """Where a file of the system lies that has its root at `root`."""
    return root / path.relative_to("/")


def read_record(root: Path) -> Record | None:
    """What was written down when the bridge was made; None if nothing was.  NetworkError if it cannot be read."""
    text = _text(below(root, files.RECORD))
    try:
        return None if text is None else parse_record(text)
    except ValueError as error:
        raise NetworkError(
            f"{files.RECORD} cannot be understood: {error}",
            "Restore it, or remove it: then `--undo` goes by what it sees.",
        ) from error


async def observe(root: Path, spec: Spec, *, compare: bool = True) -> Observed:
    """What is there of this bridge; without `compare`, rules are not said to be right.

    NetworkError if it cannot be told, or if this machine does not take the rules that are to be compared.
    """
    parents = {parent for path in (*files.FILES, files.RECORD, files.ENABLED) for parent in path.parents}
    still = Observed(
        files={path: file for path in (*files.FILES, files.RECORD) if (file := _file(below(root, path))) is not None},
        enabled=below(root, files.ENABLED).is_symlink(),
        directories=frozenset(each for each in parents if below(root, each).is_dir()),
        record=read_record(root),
        live=root == SYSTEM,
    )
    return still if not still.live else await _observe_live(spec, still, compare)


async def survey(root: Path, spec: Spec) -> Survey:
    """What else is there.  NetworkError if it cannot be told."""
    interfaces = _text(below(root, Path("/etc/network/interfaces")))
    others = {str(each): _text(each) or "" for each in _files_beside(root)}
    if root != SYSTEM:
        return Survey(interfaces=interfaces, others=others, live=False)
    routes, links, chains = await asyncio.gather(_routes(), host.ask_ip("addr"), host.chains())
    found = host.digest(routes, links, host.read_nameservers(), spec.bridge)
    names = frozenset(str(each["ifname"]) for each in links)
    elsewhere = [each for each in (spec.guest, spec.nameserver) if each is not None and each not in spec.subnet]
    return Survey(
        interfaces=interfaces,
        others=others,
        missing=tuple(_missing()),
        taken=found.taken,
        links=names,
        ways={each: way for each in elsewhere if (way := way_to(each, routes)) is not None},
        closed=tuple(host.parse_closed_chains(chains, "forward", TABLE)),
        tailscale=any(each.startswith(TAILSCALE) for each in names),
    )


async def default_uplink() -> str | None:
    """The interface of the host's own default route, whatever a VPN has put before it."""
    found = [each for each in await _routes() if "table" not in each and each.get("dst") == "default"]
    found.sort(key=lambda each: int(each.get("metric", 0)))
    return next((str(each["dev"]) for each in found if "dev" in each), None)


async def public_on_link(bridge: str) -> tuple[IPv4Network, ...]:
    """The networks that the host is directly on and that count as internet otherwise."""
    routes = await _routes()
    return tuple(each for each in host.digest(routes, (), (), bridge).on_link if each.is_global)


async def tells_bridges(bridge: str) -> bool:
    """Whether the kernel can tell a frame by the bridge that it passes; tried in a namespace of its own."""
    try:
        await Nft(TABLE).canonical(rules.probe(bridge))
    except NetworkError:
        return False
    return True


def way_to(address: IPv4Address, routes: Iterable[Mapping[str, Any]]) -> str | None:
    """By which interface the main table leads to an address, from what `ip -j route` printed."""
    found = []
    for each in routes:
        if "table" in each or "dev" not in each:
            continue
        network = IPv4Network("0.0.0.0/0" if each["dst"] == "default" else each["dst"], strict=False)
        if address in network:
            found.append((-network.prefixlen, int(each.get("metric", 0)), str(each["dev"])))
    return min(found)[2] if found else None


def parse_link(shown: Sequence[Mapping[str, Any]], name: str) -> Link | None:
    """The interface of this name, from what `ip -j -d addr` printed."""
    found = next((each for each in shown if each.get("ifname") == name), None)
    if found is None:
        return None
    ours = [each for each in found.get("addr_info", ()) if each.get("family") == "inet"]
    return Link(
        kind=str(found.get("linkinfo", {}).get("info_kind", "")),
        alias=str(found.get("ifalias", "")),
        mac=str(found.get("address", "")),
        up="UP" in found.get("flags", ()),
        addresses=tuple(f"{each['local']}/{each['prefixlen']}" for each in ours),
        ports=tuple(sorted(str(each["ifname"]) for each in shown if each.get("master") == name)),
    )


def parse_routing(shown: Iterable[Mapping[str, Any]], wanted: Iterable[Rule]) -> frozenset[Rule]:
    """Those of our rules that stand, from what `ip -j rule` printed."""
    standing = set()
    for each in shown:
        to = f"{each.get('dst')}/{each.get('dstlen', 32)}"
        selector = ("to", to) if "dst" in each else ("iif", str(each.get("iif")))
        action = ("unreachable",) if each.get("action") == "unreachable" else ("lookup", str(each.get("table")))
        standing.add((each.get("priority"), selector, action))
    return frozenset(each for each in wanted if (each.priority, each.selector, each.action) in standing)


async def _observe_live(spec: Spec, still: Observed, compare: bool) -> Observed:
    nft = Nft(TABLE)
    links, shown, tables, listing = await asyncio.gather(
        host.ask_ip("-d", "addr"), host.ask_ip("-4", "rule"), _tables(), nft.listing()
    )
    rendered = await nft.canonical(rules.render(spec)) if compare and listing is not None else None
    names = [*files.settings(spec), *(still.record.before if still.record is not None else ())]
    systemd = _SYSTEMD.is_dir()
    return Observed(
        files=still.files,
        enabled=still.enabled,
        directories=still.directories,
        record=still.record,
        link=parse_link(links, spec.bridge),
        table=any(each in (f"table inet {TABLE}", f"table bridge {TABLE}") for each in tables),
        rules=listing is not None and rendered is not None and listing.text == rendered.text,
        routing=parse_routing(shown, routing(spec)),
        settings={name: value for name in names if (value := sysctl.read(name)) is not None},
        forwards_all=sysctl.read(sysctl.FORWARDING) == "1",
        systemd=systemd,
        active=systemd and await _active(),
    )


async def _tables() -> list[str]:
    try:
        ended = await process.run((process.which("nft") or "nft", "list", "tables"), timeout_s=TIMEOUT_S)
    except process.ProgramFailed as failure:
        raise NetworkError(
            f"the rules cannot be read: {one_line(str(failure))}", "Install nftables; be root."
        ) from failure
    return [line.strip() for line in ended.out.decode(errors="replace").splitlines()]


async def _active() -> bool:
    argv = (process.which("systemctl") or "systemctl", "is-active", "--quiet", files.UNIT_NAME)
    try:
        return (await process.run(argv, timeout_s=TIMEOUT_S, check=False)).status == 0
    except process.ProgramFailed as failure:
        raise NetworkError(f"systemd cannot be asked: {failure}", "See `systemctl status`.") from failure


async def _routes() -> list[dict[str, Any]]:
    return await host.ask_ip("-4", "route", "show", "table", "all")


def _missing() -> Iterable[Obstacle]:
    # The classic ifupdown makes bridges by the scripts of bridge-utils, ifupdown2 by itself.
    if process.which("ifreload") is None and (process.which("ifup") is None or process.which("brctl") is None):
        yield Obstacle(
            cause="nothing here would make the bridge when the host starts",
            remedy="Install Debian's package ifupdown2 (on Proxmox VE it is there), or ifupdown with bridge-utils.",
        )


def _files_beside(root: Path) -> list[Path]:
    folder = below(root, files.INTERFACES.parent)
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [each for each in found if each.name != files.INTERFACES.name and each.is_file()]


def _file(path: Path) -> File | None:
    text = _text(path)
    return None if text is None else File(content=text, mode=path.stat().st_mode & 0o7777)


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NetworkError(f"{path} cannot be read: {error.strerror}", "Run it as root.") from error
