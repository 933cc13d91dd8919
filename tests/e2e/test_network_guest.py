"""P6 against a real VM: root in a booted guest forges frames with a packet socket of its own kernel.

Every "cannot" has its control: with the walls gone, the very same frames from the very same guest do arrive.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
from tests.e2e.network_rig import Rig, frames_of, reached, sniffing, where

from agentlab.model.network import NetworkMode, Port, Tap
from agentlab.testing.frames import Forger, mac_bytes
from agentlab.testing.images import shared_image
from agentlab.testing.netlab import NetLab
from agentlab.testing.taps import HeldTap
from agentlab.testing.wild_guest import WildGuest

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="boots a VM, which needs QEMU"),
    pytest.mark.parametrize("rig", ["VM beside VM"], indirect=True),
]

NEUTRAL_MAC = "02:00:00:00:00:01"  # as in prepared memory: the guest gives itself its own
TOOLS = """
import json, socket, subprocess

def forge(frames):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for frame in frames:
            raw.send(bytes.fromhex(frame))

def ask(address, port):
    try:
        with socket.create_connection((address, port), timeout=5) as asker:
            asker.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            return "open " + asker.recv(4096).decode().split()[-1]
    except OSError as error:
        return f"refused {error.strerror}"
"""
HOME = """
links = "link set lo up", "link set eth0 address {mac}", "link set eth0 up"
for words in (*links, "addr add {address}/{length} dev eth0", "route add default via {via}"):
    subprocess.run(["/sbin/ip", *words.split()], check=True)
"""


@pytest.fixture
def port(rig: Rig) -> Port:
    return rig.network.port("sb-3", 3, NetworkMode.NAT)


@pytest.fixture
def forger(rig: Rig, port: Port) -> Forger:
    return replace(rig.forger, own=port)


@pytest.fixture
async def guest(rig: Rig, port: Port) -> AsyncIterator[WildGuest]:
    """A booted VM, attached, at home in its addresses."""
    tap = HeldTap(port.link)
    rig.undo.callback(tap.close)
    async with WildGuest(shared_image(), tap, NEUTRAL_MAC) as guest:
        await rig.network.attach(port, Tap(tap.index))
        home = HOME.format(mac=port.mac, address=port.address, length=port.prefix_length, via=port.gateway)
        assert await guest.run(TOOLS + home) == ""
        yield guest


async def test_an_honest_guest_reaches_the_internet_and_nothing_else(rig: Rig, guest: WildGuest) -> None:
    open_, closed = NetLab.INTERNET[0], (NetLab.LAN[0], NetLab.METADATA[0], NetLab.PRIVATE[0], NetLab.HOST[0])

    reached = await guest.run(f"print(ask({open_!r}, 80))")
    refused = json.loads(await guest.run(f"print(json.dumps([ask(each, 80) for each in {closed!r}]))"))

    assert reached.strip() == "open 192.168.50.2"
    assert refused == ["refused Connection refused"] * len(closed)


async def test_nothing_that_a_guest_forges_arrives(rig: Rig, guest: WildGuest, forger: Forger) -> None:
    arrived = await _where(rig, guest, _forged(forger))

    assert arrived == {}
    assert await reached(rig, rig.second, NetLab.INTERNET[0], 80) == "open 192.168.50.2"
    assert (await guest.run(f"print(ask({NetLab.INTERNET[0]!r}, 80))")).strip() == "open 192.168.50.2"


async def test_what_a_guest_forges_arrives_once_the_walls_are_gone(
    rig: Rig, guest: WildGuest, port: Port, forger: Forger
) -> None:
    await rig.unwall(port)

    arrived = await _where(rig, guest, _forged(forger))

    assert _forged(forger).keys() - arrived.keys() == {"LLDP"}  # which is for the port itself, and goes no further


async def test_a_guest_cannot_claim_anothers_address_by_arp(rig: Rig, guest: WildGuest, forger: Forger) -> None:
    heard = await _heard_claims(rig, guest, forger)

    assert heard == []


async def test_a_guest_does_claim_anothers_address_by_arp_once_the_walls_are_gone(
    rig: Rig, guest: WildGuest, port: Port, forger: Forger
) -> None:
    await rig.unwall(port)

    heard = await _heard_claims(rig, guest, forger)

    assert heard != []


def _forged(forger: Forger) -> dict[str, bytes]:
    return forger.addresses() | forger.services()


async def _where(rig: Rig, guest: WildGuest, forged: dict[str, bytes]) -> dict[str, set[str]]:
    return await where(rig, forged, lambda frames: _send(guest, frames))


async def _send(guest: WildGuest, frames: Iterable[bytes]) -> None:
    assert await guest.run(f"forge({[each.hex() for each in frames]!r})") == ""


async def _heard_claims(rig: Rig, guest: WildGuest, forger: Forger) -> list[bytes]:
    """What of the guest's lies by ARP the second sandbox heard."""
    with sniffing(rig.lab, rig.second, "eth0") as neighbour:
        await _send(guest, forger.claims())
        own = mac_bytes(forger.own.mac)
        return [each for each in frames_of(neighbour) if each[12:14] == b"\x08\x06" and each[6:12] == own]
