"""`agentlabd setup host-network`: shows what it will do to this host, does it, and reads it back."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from agentlab.base.text import printable
from agentlab.errors import HostNetworkFailed, HostNetworkRefused, PermissionMissing
from agentlab.network import addresses, host
from agentlab.network.host_network import carry, files, look, obstacles, plan
from agentlab.network.host_network.look import SYSTEM
from agentlab.network.host_network.plan import Step, Write
from agentlab.network.host_network.spec import (
    Obstacle,
    Spec,
    objections,
)
from agentlab.network.host_network.state import Observed
from agentlab.network.interface import NetworkError
from agentlab.wire.setup import HOST_NETWORK, HOST_NETWORK_DOC, parameters

T = TypeVar("T")
AUTO = "auto"
FIRST_GUEST = 10  # the first address that is suggested for sandboxes; those before it are left to people
EXAMPLE_NAMESERVER = "9.9.9.9"  # where the host itself has none that guests reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    bridge: str
    subnet: IPv4Network
    uplink: str
    guest_port: int
    guest_address: IPv4Address | None
    nameserver: IPv4Address | None
    dry_run: bool
    yes: bool
    root: Path
    json: bool

    @property
    def live(self) -> bool:
        """Whether it is about this running system, not about files below a folder."""
        return self.root == SYSTEM


def _host_network(**given: Any) -> None:
    wish = _wish(given)
    if wish.json and not (wish.yes or wish.dry_run):
        raise click.UsageError("With --json nobody is asked: give --yes, or --dry-run.")
    asyncio.run(_take_away(wish) if given["undo"] else _set_up(wish))


host_network = click.Command(
    "host-network",
    params=[*parameters(HOST_NETWORK), click.Option(["--json"], is_flag=True, help="Print JSON: for programs.")],
    callback=_host_network,
    help=HOST_NETWORK_DOC,
)


def _wish(given: Mapping[str, Any]) -> Wish:
    """What the options mean.  Raises click.BadParameter naming the option."""
    return Wish(
        bridge=given["bridge"],
        subnet=_read("--subnet", IPv4Network, given["subnet"]),
        uplink=given["uplink"],
        guest_port=_port(given["guest_port"]),
        guest_address=_read("--guest-address", IPv4Address, given["guest_address"]),
        nameserver=_read("--nameserver", IPv4Address, given["nameserver"]),
        dry_run=given["dry_run"],
        yes=given["yes"],
        root=SYSTEM if given["root"] is None else Path(given["root"]).absolute(),
        json=given["json"],
    )


def _read(option: str, kind: Callable[[str], T], text: str | None) -> Any:
    try:
        return None if text is None else kind(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise click.BadParameter(f"{text!r} is not a port: 1 to 65535", param_hint="--guest-port")
    return int(text)


async def _set_up(wish: Wish) -> None:
    _need_root(wish)
    try:
        spec = await _spec(wish)
        observed, survey = await asyncio.gather(look.observe(wish.root, spec), look.survey(wish.root, spec))
    except NetworkError as error:
        raise _unseen(error) from error
    _refuse("made", obstacles.obstacles(spec, observed, survey))
    steps = plan.set_up(spec, observed)
    remarks = obstacles.remarks(spec, observed, survey)
    await _do(wish, steps, "the agent bridge is as it should be; there is nothing to do")
    if not wish.dry_run and (left := plan.set_up(spec, await _look_again(wish, spec))):
        raise _did_not_hold(left)
    _tell(wish, steps, remarks, _settings(spec, wish))


async def _take_away(wish: Wish) -> None:
    _need_root(wish)
    try:
        kept = look.read_record(wish.root)
        spec = Spec(
            bridge=kept.bridge if kept else wish.bridge,
            subnet=kept.subnet if kept else wish.subnet,
            uplink=kept.uplink if kept else wish.uplink,
            guest=addresses.gateway(kept.subnet if kept else wish.subnet),
            guest_port=wish.guest_port,
        )
        observed = await look.observe(wish.root, spec, compare=False)
    except NetworkError as error:
        raise _unseen(error) from error
    _refuse("taken away", obstacles.busy(spec, observed))
    steps = plan.undo(spec, observed)
    foreign = [path for path in observed.files if path != files.RECORD and not plan.is_ours(observed, path)]
    await _do(wish, steps, "nothing of an agent bridge is here; there is nothing to undo")
    if not wish.dry_run and (left := plan.undo(spec, await _look_again(wish, spec, compare=False))):
        raise _did_not_hold(left)
    _tell(wish, steps, [f"{path} was not written by AgentLab, and stays." for path in foreign], {})


async def _spec(wish: Wish) -> Spec:
    uplink: str | None = wish.uplink
    if uplink == AUTO:
        uplink = await look.default_uplink() if wish.live else None
    if uplink is None:
        why = "this host has no default route" if wish.live else f"the way to the internet is not known in {wish.root}"
        _refuse("made", [Obstacle(cause=why, remedy="Name the interface that leads to the internet: --uplink vmbr0")])
        raise AssertionError
    draft = Spec(
        bridge=wish.bridge,
        subnet=wish.subnet,
        uplink=uplink,
        guest=wish.guest_address or addresses.gateway(wish.subnet),
        guest_port=wish.guest_port,
        nameserver=wish.nameserver,
    )
    _refuse("made", objections(draft))
    if not wish.live:
        return draft
    on_link, by_bridge = await asyncio.gather(look.public_on_link(wish.bridge), look.tells_bridges(wish.bridge))
    return replace(draft, on_link=on_link, by_bridge=by_bridge)


async def _do(wish: Wish, steps: list[Step], nothing: str) -> None:
    if not wish.json:
        for each in steps:
            _show(each)
        if not steps:
            click.echo(nothing)
    if not steps or wish.dry_run:
        return
    if not wish.yes:
        click.confirm(f"Carry out these {len(steps)} steps?", abort=True)
    try:
        await carry.carry_out(steps, wish.root, lambda each: None if wish.json else click.echo(f"… {each}"))
    except carry.StepFailed as failed:
        raise HostNetworkFailed(
            step=f"To {failed.step}",
            cause=failed.cause,
            what_to_do="Correct that and run it again, or take away what there is with --undo.",
        ) from failed


async def _look_again(wish: Wish, spec: Spec, *, compare: bool = True) -> Observed:
    try:
        return await look.observe(wish.root, spec, compare=compare)
    except NetworkError as error:
        raise _unseen(error) from error


def _show(step: Step) -> None:
    click.echo(f"- {step}")
    if isinstance(step, Write):
        click.echo("".join(f"    {line}\n" if line else "\n" for line in step.file.content.splitlines()))


def _tell(wish: Wish, steps: list[Step], remarks: list[str], settings: dict[str, Any]) -> None:
    """What came of it: one value for programs, or sentences and the daemon's settings for people."""
    if wish.json:
        value = {
            "changed": bool(steps) and not wish.dry_run,
            "dry_run": wish.dry_run,
            "steps": [str(each) for each in steps],
            "files": {str(each.path): each.file.content for each in steps if isinstance(each, Write)},
            "remarks": remarks,
            "settings": settings,
        }
        click.echo(json.dumps(value, separators=(",", ":")))
        return
    if steps:
        click.echo("nothing was changed: --dry-run" if wish.dry_run else "done, and read back")
    for each in remarks:
        click.echo(f"note: {printable(each)}", err=True)
    if settings:
        click.echo("\nThe daemon's settings that go with it:\n")
        click.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)


def _settings(spec: Spec, wish: Wish) -> dict[str, Any]:
    """What agentlabd.yaml has to say so that sandboxes are on this bridge."""
    served = [each for each in (spec.guest, spec.nameserver) if each is not None and each in spec.subnet]
    first = max(
        (spec.subnet[FIRST_GUEST] if spec.subnet.num_addresses > 32 else spec.gateway + 1),
        max(served, default=spec.gateway) + 1,
    )
    names = spec.nameserver or (obstacles.public_nameserver(host.read_nameservers()) if wish.live else None)
    network = {
        "subnet": str(spec.subnet),
        "addresses": f"{first}-{spec.subnet.broadcast_address - 1}",
        "gateway": str(spec.gateway),
        "nameserver": str(names or EXAMPLE_NAMESERVER),
    }
    values = {"bridge": spec.bridge, "network": network, "guest_address": f"{spec.guest}:{spec.guest_port}"}
    return {"backends": {"proxmox": values}}


def _need_root(wish: Wish) -> None:
    if wish.live and os.geteuid() != 0:
        raise PermissionMissing(
            path="this host's network",
            cause="only root may change it, or read its rules",
            what_to_do="Run it as root: sudo agentlab setup host-network",
        )


def _refuse(what: str, found: Iterable[Obstacle]) -> None:
    """All that stands in the way, at once."""
    if known := list(dict.fromkeys(found)):
        raise HostNetworkRefused(
            what=what,
            cause="; ".join(each.cause for each in known),
            what_to_do="  ".join(dict.fromkeys(each.remedy for each in known)),
        )


def _unseen(error: NetworkError) -> HostNetworkFailed:
    return HostNetworkFailed(step="To look at this host", cause=error.cause, what_to_do=error.remedy)


def _did_not_hold(left: list[Step]) -> HostNetworkFailed:
    return HostNetworkFailed(
        step="To read it back",
        cause=f"these would have to be done again: {'; '.join(str(each) for each in left)}",
        what_to_do="Something else on this host works against it; find out what, and run it again.",
    )
