"""P6 with forged frames: a guest that writes any frame it likes reaches nobody under another's name.

Every "cannot" has its control: with the walls gone, the very same frames do arrive.
"""

from __future__ import annotations

import os

import pytest
from tests.e2e.network_rig import Rig, arrives, frames_of, reached, send_frames, sniffing, tcp, where

from agentlab.base import process
from agentlab.testing.frames import LLDP, frame, mac_bytes, marker
from agentlab.testing.netlab import NetLab

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
    pytest.mark.parametrize(
        "rig",
        ["container beside container", "VM beside VM", "VM beside container", "container beside VM"],
        indirect=True,
    ),
]


async def test_an_honest_frame_does_arrive(rig: Rig) -> None:
    honest = rig.forger.honest()

    with sniffing(rig.lab, rig.lab.world, "lan0") as world:
        await send_frames(rig, [honest])

        assert await arrives(world, marker(honest))


async def test_frames_with_foreign_addresses_go_nowhere(rig: Rig) -> None:
    forged = rig.forger.addresses()

    assert await _where(rig, forged) == {}


async def test_frames_that_claim_to_be_a_service_go_nowhere(rig: Rig) -> None:
    forged = rig.forger.services()

    assert await _where(rig, forged) == {}


async def test_honest_frames_to_closed_places_end_at_the_host(rig: Rig) -> None:
    forged = rig.forger.routed()

    assert set().union(*(await _where(rig, forged)).values()) == {"bridge"}


async def test_the_same_frames_arrive_once_the_walls_are_gone(rig: Rig) -> None:
    forged = rig.forger.addresses() | rig.forger.services()
    await rig.unwall()

    arrived = await _where(rig, forged)

    assert forged.keys() - arrived.keys() == {"LLDP"}  # which is for the port itself: see below


async def test_arp_cannot_claim_anothers_address(rig: Rig) -> None:
    # The host forgets what it was told for certain, so that a lie would be believed.
    await process.run(("ip", "neigh", "flush", "dev", rig.bridge, "nud", "all"))

    with sniffing(rig.lab, rig.second, "eth0") as neighbour:
        await send_frames(rig, rig.forger.claims())
        heard = _arp_of(rig, frames_of(neighbour))

    assert heard == []
    assert str(rig.second_port.address) not in await _believed(rig)
    assert await reached(rig, rig.second, NetLab.INTERNET[0], 80) == "open 192.168.50.2"


async def test_arp_does_claim_anothers_address_once_the_walls_are_gone(rig: Rig) -> None:
    await process.run(("ip", "neigh", "flush", "dev", rig.bridge, "nud", "all"))
    await process.run(("sysctl", "-qw", f"net.ipv4.conf.{rig.bridge}.arp_accept=1"))
    await rig.unwall()

    with sniffing(rig.lab, rig.second, "eth0") as neighbour:
        await send_frames(rig, rig.forger.claims())
        heard = _arp_of(rig, frames_of(neighbour))

    assert heard != []
    assert f"{rig.second_port.address} lladdr {rig.first_port.mac}" in await _believed(rig)


async def test_link_local_frames_teach_the_bridge_nothing(rig: Rig) -> None:
    poison = [frame("01:80:c2:00:00:0e", rig.second_port.mac, LLDP, b"\x02\x07\x04lldp")] * 5

    await send_frames(rig, poison)

    assert await _learned(rig) == {rig.second_port.link}
    assert await reached(rig, rig.second, NetLab.INTERNET[0], 80) == "open 192.168.50.2"


async def test_link_local_frames_do_teach_a_bridge_without_walls(rig: Rig) -> None:
    await rig.unwall()
    await process.run(("bridge", "link", "set", "dev", rig.first_port.link, "learning", "on"))
    await process.run(("bridge", "fdb", "del", rig.second_port.mac, "dev", rig.second_port.link, "master"))

    await send_frames(rig, [frame("01:80:c2:00:00:0e", rig.second_port.mac, LLDP, b"\x02\x07\x04lldp")])

    assert await _learned(rig) == {rig.first_port.link}


async def test_even_a_bridge_that_learns_does_not_move_a_sandbox(rig: Rig) -> None:
    await rig.unwall()
    await process.run(("bridge", "link", "set", "dev", rig.first_port.link, "learning", "on"))

    await send_frames(rig, rig.forger.addresses().values())

    assert await _learned(rig) == {rig.second_port.link}


async def test_ipv6_is_closed_in_every_direction(rig: Rig) -> None:
    inside = await rig.lab.on(rig.first, "ip", "-6", "addr")
    bridge = await rig.lab.on(rig.lab.host, "ip", "-6", "addr", "show", "dev", rig.bridge)
    port = await rig.lab.on(rig.lab.host, "ip", "-6", "addr", "show", "dev", rig.first_port.link)

    assert inside + bridge + port == ""


async def test_a_guest_hears_nothing_that_is_not_for_it(rig: Rig) -> None:
    with sniffing(rig.lab, rig.first, "eth0") as heard:
        await tcp(rig, rig.second, NetLab.INTERNET[0], 80)
        await tcp(rig, rig.first, NetLab.INTERNET[0], 80)
        sources = {each[:6]: each[6:12] for each in frames_of(heard) if each[6:12] != mac_bytes(rig.first_port.mac)}

    assert sources == {mac_bytes(rig.first_port.mac): mac_bytes(rig.forger.gateway_mac)}


async def _where(rig: Rig, forged: dict[str, bytes]) -> dict[str, set[str]]:
    return await where(rig, forged, lambda frames: send_frames(rig, frames))


def _arp_of(rig: Rig, seen: list[bytes]) -> list[bytes]:
    """ARP that the first sandbox has sent."""
    return [each for each in seen if each[12:14] == b"\x08\x06" and each[6:12] == mac_bytes(rig.first_port.mac)]


async def _believed(rig: Rig) -> str:
    """Where the host believes addresses to live."""
    return (await process.run(("ip", "neigh", "show", "dev", rig.bridge))).out.decode()


async def _learned(rig: Rig) -> set[str]:
    """At which ports the bridge believes the second sandbox's MAC to live."""
    table = (await process.run(("bridge", "fdb", "show", "br", rig.bridge))).out.decode()
    return {line.split()[2] for line in table.splitlines() if line.startswith(rig.second_port.mac)}
