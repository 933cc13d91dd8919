"""What the tests with real packets share: a network in a lab, with two sandboxes of either kind on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from agentlab.base import process
from agentlab.model.network import LinkEnd, Namespace, Port, Tap
from agentlab.network import addresses, ruleset
from agentlab.network.bridge import BridgeNetwork
from agentlab.testing.frames import Forger, marker
from agentlab.testing.netlab import NetLab, Place
from agentlab.testing.taps import HeldTap, guest_behind

REACH_TRIES_MAX = 10

Answers = dict[str, tuple[str, str, str]]
Newcomer = Callable[["Rig", Port], Awaitable[tuple[Place, LinkEnd]]]


@dataclass(frozen=True, kw_only=True)
class Rig:
    """An open network on the lab's host, with two sandboxes attached."""

    lab: NetLab
    network: BridgeNetwork
    installation: str
    state_dir: Path
    first: Place
    second: Place
    first_port: Port
    second_port: Port
    kind: str  # of the first, and of newcomers
    undo: AsyncExitStack

    @property
    def base(self) -> ruleset.Base:
        return ruleset.Base(installation=self.installation, subnet=addresses.DEFAULT_SUBNET)

    @property
    def bridge(self) -> str:
        return addresses.bridge_name(self.installation)

    @property
    def forger(self) -> Forger:
        return Forger(
            own=self.first_port,
            other=self.second_port,
            gateway_mac=addresses.bridge_mac(self.installation),
            internet=IPv4Address(NetLab.INTERNET[0]),
            broadcast=addresses.DEFAULT_SUBNET.broadcast_address,
        )

    async def newcomer(self, port: Port) -> tuple[Place, LinkEnd]:
        """Another sandbox, not attached yet."""
        return await KINDS[self.kind](self.lab, self.undo, port)

    async def flush(self) -> None:
        await process.run(("nft", "flush", "ruleset"))

    async def unwall(self, *others: Port) -> None:
        """No rules, and ports that talk to each other as on any bridge."""
        await self.flush()
        for port in (self.first_port, self.second_port, *others):
            options = "isolated off flood on mcast_flood on"
            await process.run(("ip", "link", "set", port.link, "type", "bridge_slave", *options.split()))


async def container(lab: NetLab, undo: AsyncExitStack, port: Port) -> tuple[Place, LinkEnd]:
    """A network namespace."""
    place = await lab.new_sandbox()
    return place, Namespace(place.pid)


async def virtual_machine(lab: NetLab, undo: AsyncExitStack, port: Port) -> tuple[Place, LinkEnd]:
    """A tap with a guest behind it."""
    tap = HeldTap(port.link)
    undo.callback(tap.close)
    place = await undo.enter_async_context(guest_behind(lab, tap, port))
    return place, Tap(tap.index)


KINDS = {"container": container, "VM": virtual_machine}


async def ask(rig: Rig, place: Place, targets: Sequence[str]) -> Answers:
    """TCP, UDP and ICMP answers of all targets, asked at once."""
    asked = [
        asyncio.gather(
            asyncio.to_thread(rig.lab.tcp, place, each, 80),
            asyncio.to_thread(rig.lab.udp, place, each),
            asyncio.to_thread(rig.lab.ping, place, each),
        )
        for each in targets
    ]
    return {each: (said[0], said[1], said[2]) for each, said in zip(targets, await asyncio.gather(*asked), strict=True)}


def opened(answers: Answers) -> list[str]:
    """The addresses that gave any answer."""
    return [address for address, said in answers.items() if any(each.startswith("open") for each in said)]


async def tcp(rig: Rig, place: Place, address: str, port: int) -> str:
    """What NetLab.tcp says, without stopping the loop."""
    return await asyncio.to_thread(rig.lab.tcp, place, address, port)


async def reached(rig: Rig, place: Place, address: str, port: int) -> str:
    """The same where an answer has to come: on a busy machine it may need more than one try, a refusal is final."""
    for _ in range(REACH_TRIES_MAX):
        if (said := await tcp(rig, place, address, port)) != "silent":
            return said
    return "silent"


async def link(name: str) -> str | None:
    """What `ip` shows of a link; None if there is none."""
    ended = await process.run(("ip", "link", "show", name), check=False)
    return ended.out.decode() if ended.status == 0 else None


async def cut_off(name: str) -> bool:
    """Whether no link of this name is up, on a bridge or marked; a VM that runs keeps its tap."""
    shown = await link(name)
    return shown is None or not any(word in shown for word in (",UP", "master", "alias"))


async def send_frames(rig: Rig, frames: Iterable[bytes]) -> None:
    """Out of the first sandbox, byte for byte."""

    def send() -> None:
        with rig.lab.socket(rig.first, socket.SOCK_RAW, socket.AF_PACKET) as raw:
            rig.lab.run_in(rig.first, lambda: raw.bind(("eth0", 0)))
            for frame in frames:
                raw.send(frame)

    await asyncio.to_thread(send)
    await asyncio.sleep(0.1)


async def where(
    rig: Rig, forged: dict[str, bytes], send: Callable[[Iterable[bytes]], Awaitable[None]]
) -> dict[str, set[str]]:
    """Where each frame was seen that was seen at all: in the world, at the second sandbox, or on the bridge."""
    with (
        sniffing(rig.lab, rig.lab.world, "lan0") as world,
        sniffing(rig.lab, rig.second, "eth0") as neighbour,
        sniffing(rig.lab, rig.lab.host, rig.bridge) as bridge,
    ):
        await send(forged.values())
        await asyncio.sleep(0.1)
        places = {"world": frames_of(world), "neighbour": frames_of(neighbour), "bridge": frames_of(bridge)}
    found = {
        name: {place for place, seen in places.items() if any(marker(sent) in each for each in seen)}
        for name, sent in forged.items()
    }
    return {name: places for name, places in found.items() if places}


def sniffing(lab: NetLab, place: Place, interface: str) -> socket.socket:
    """Everything that passes an interface."""
    sniffer = lab.socket(place, socket.SOCK_RAW, socket.AF_PACKET, socket.htons(3))
    lab.run_in(place, lambda: sniffer.bind((interface, 3)))
    sniffer.setblocking(False)
    return sniffer


def frames_of(sniffer: socket.socket) -> list[bytes]:
    """What has passed since it was last asked."""
    found = []
    while True:
        try:
            found.append(sniffer.recv(1 << 17))
        except BlockingIOError:
            return found


async def arrives(sniffer: socket.socket, marker: bytes) -> bool:
    """Whether a frame with `marker` comes; a busy machine may need a while to resolve addresses first."""
    for _ in range(100):
        if any(marker in each for each in frames_of(sniffer)):
            return True
        await asyncio.sleep(0.05)
    return False
