"""What is special about VMs on the agent bridge: the tap is theirs, comes before its policy and goes when they end."""

from __future__ import annotations

import array
import asyncio
import fcntl
import hashlib
import json
import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from tests.e2e.network_rig import Rig, arrives, ask, frames_of, opened, reached, sniffing

from agentlab.base import process
from agentlab.model.network import NetworkMode, Port, Tap, Unplugged
from agentlab.network.interface import NetworkError
from agentlab.testing.frames import Forger, marker
from agentlab.testing.netlab import NetLab, Place
from agentlab.testing.taps import HeldTap, guest_behind

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
    pytest.mark.parametrize("rig", ["VM beside VM"], indirect=True),
]

BULK = bytes(range(256)) * 4096 * 8  # 8 MiB
GARBAGE_HEADERS = 300


@pytest.fixture
def port(rig: Rig) -> Port:
    """Of a third sandbox, which is not attached."""
    return rig.network.port("sb-3", 3, NetworkMode.NAT)


@pytest.fixture
async def tap(rig: Rig, port: Port) -> AsyncIterator[HeldTap]:
    """That of a VM which has not run yet."""
    tap = HeldTap(port.link)
    yield tap
    tap.close()


# A VM comes and goes


async def test_a_vm_that_ended_is_half_there_until_it_is_detached(rig: Rig, port: Port, tap: HeldTap) -> None:
    await rig.network.attach(port, Tap(tap.index))
    tap.close()

    found, stands = await rig.network.list(), await rig.network.verify(port)
    await rig.network.detach("sb-3")

    assert (found["sb-3"], stands) == (None, False)
    assert set(await rig.network.list()) == {"sb-1", "sb-2"}
    assert await rig.network.check()


async def test_a_vm_that_is_started_again_has_its_network_again(rig: Rig, port: Port, tap: HeldTap) -> None:
    await rig.network.attach(port, Tap(tap.index))
    tap.close()
    again = HeldTap(port.link)
    rig.undo.callback(again.close)
    place = await rig.undo.enter_async_context(guest_behind(rig.lab, again, port))

    await rig.network.attach(port, Tap(again.index))

    assert await rig.network.verify(port)
    assert await reached(rig, place, NetLab.INTERNET[0], 80) == "open 192.168.50.2"


async def test_a_vm_that_runs_on_after_it_was_detached_reaches_nothing(rig: Rig) -> None:
    await rig.network.detach("sb-1")

    answers = await ask(rig, rig.first, [*NetLab.INTERNET, *NetLab.HOST, str(rig.first_port.gateway)])

    assert opened(answers) == []
    assert await _shown(rig.first_port.link, "flags", "master", "ifalias") == [["BROADCAST", "MULTICAST"], None, None]


async def test_a_vm_that_was_detached_can_be_attached_again(rig: Rig) -> None:
    index = (await _shown(rig.first_port.link, "ifindex"))[0]
    await rig.network.detach("sb-1")

    await rig.network.attach(rig.first_port, Tap(index))

    assert await reached(rig, rig.first, NetLab.INTERNET[0], 80) == "open 192.168.50.2"


async def test_a_tap_that_was_made_to_outlive_its_vm_is_removed(rig: Rig, port: Port, tap: HeldTap) -> None:
    await rig.network.attach(port, Tap(tap.index))
    tap.persist()
    tap.close()

    await rig.network.detach("sb-3")

    assert await _shown(port.link) is None


async def test_a_vm_that_ends_while_it_is_attached_leaves_nothing(rig: Rig, port: Port) -> None:
    for delay_s in (0, 0.001, 0.004, 0.008):
        tap = HeldTap(port.link)
        attaching = asyncio.ensure_future(rig.network.attach(port, Tap(tap.index)))
        await asyncio.sleep(delay_s)
        tap.close()
        await asyncio.wait((attaching,))
        with suppress(NetworkError):
            attaching.result()
        await rig.network.detach("sb-3")

    assert await _shown(port.link) is None
    assert set(await rig.network.list()) == {"sb-1", "sb-2"}
    assert await rig.network.check()


async def test_a_tap_is_cut_off_when_the_network_is_removed(rig: Rig) -> None:
    await rig.network.close(remove=True)

    assert await _shown(rig.first_port.link, "flags", "master", "ifalias") == [["BROADCAST", "MULTICAST"], None, None]


# A tap that is not what it should be


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("ip link set {link} alias somebody", "somebody"),
        ("ip link set {link} up", "in use"),
        ("ip link set {link} alias agentlab_{installation}_sb-2", "agentlab"),
        ("ip link set {link} name other0", "other0"),
    ],
)
async def test_a_tap_that_somebody_uses_is_refused_and_left_alone(
    rig: Rig, port: Port, tap: HeldTap, change: str, cause: str
) -> None:
    command = change.format(link=port.link, installation=rig.installation)
    await process.run([word.replace("_", " ") for word in command.split()])
    before = await _all_links()

    with pytest.raises(NetworkError, match=cause):
        await rig.network.attach(port, Tap(tap.index))

    assert await _all_links() == before
    assert "sb-3" not in await rig.network.list()


async def test_a_tap_on_another_bridge_is_refused_and_left_alone(rig: Rig, port: Port, tap: HeldTap) -> None:
    await process.run(("ip", "link", "add", "other0", "type", "bridge"))
    await process.run(("ip", "link", "set", port.link, "master", "other0"))
    before = await _all_links()

    with pytest.raises(NetworkError, match="another bridge"):
        await rig.network.attach(port, Tap(tap.index))

    assert await _all_links() == before
    await process.run(("ip", "link", "del", "other0"))


async def test_an_interface_that_is_no_tap_is_refused_and_left_alone(rig: Rig, port: Port) -> None:
    await process.run(("ip", "link", "add", port.link, "type", "veth", "peer", "name", "other0"))
    before = await _all_links()

    with pytest.raises(NetworkError, match=port.link):
        await rig.network.attach(port, Tap(socket.if_nametoindex(port.link)))

    assert await _all_links() == before
    await process.run(("ip", "link", "del", port.link))


async def test_another_sandboxes_tap_is_refused_and_stays_attached(rig: Rig, port: Port) -> None:
    index = (await _shown(rig.first_port.link, "ifindex"))[0]

    with pytest.raises(NetworkError, match=rig.first_port.link):
        await rig.network.attach(port, Tap(index))

    assert await rig.network.verify(rig.first_port)


async def test_a_vm_without_a_device_is_not_given_one_in_mode_off(rig: Rig) -> None:
    off = rig.network.port("sb-3", 3, NetworkMode.OFF)

    await rig.network.attach(off, Unplugged())

    assert await rig.network.verify(off)
    assert await _shown(off.link) is None


async def test_a_vm_in_mode_off_whose_tap_exists_is_refused(rig: Rig, port: Port, tap: HeldTap) -> None:
    with pytest.raises(NetworkError, match=port.link):
        await rig.network.attach(rig.network.port("sb-3", 3, NetworkMode.OFF), Unplugged())


# What passes through it


async def test_the_host_says_nothing_to_a_guest_on_its_own(rig: Rig, port: Port, tap: HeldTap) -> None:
    place = await rig.undo.enter_async_context(guest_behind(rig.lab, tap, port))

    with sniffing(rig.lab, place, "eth0") as heard:
        await rig.network.attach(port, Tap(tap.index))
        await asyncio.sleep(2)

        assert frames_of(heard) == []


@pytest.mark.parametrize("offload", [True, False], ids=["large segments", "single frames"])
async def test_what_is_sent_and_received_in_bulk_is_whole(rig: Rig, port: Port, offload: bool) -> None:
    tap = HeldTap(port.link, offload=offload)
    rig.undo.callback(tap.close)
    place = await rig.undo.enter_async_context(guest_behind(rig.lab, tap, port))
    await rig.network.attach(port, Tap(tap.index))
    # From here on checksums are computed before the wire, so that a wrong one shows.
    _compute_checksums(rig.lab)

    with sniffing(rig.lab, rig.lab.host, port.link) as passing, sniffing(rig.lab, rig.lab.world, "lan0") as wire:
        digest = await asyncio.to_thread(_echo_digest, rig.lab, place)
        longest = max(len(each) for each in frames_of(passing))
        sent = [each for each in frames_of(wire) if each[26:30] == socket.inet_aton(NetLab.HOST[0])]

    assert digest == hashlib.sha256(BULK).hexdigest()
    assert longest > 1514
    assert {_tcp_checksum_right(each) for each in sent} == {True}


async def test_forged_frames_do_not_hide_behind_a_header_of_virtio(rig: Rig, port: Port, tap: HeldTap) -> None:
    await rig.network.attach(port, Tap(tap.index))
    forged = _as_third(rig, port).addresses()
    headers = [_header(kind, flags) for kind in (0, 1, 3, 5, 0x81) for flags in (0, 1, 2, 4)]

    with sniffing(rig.lab, rig.lab.world, "lan0") as world, sniffing(rig.lab, rig.second, "eth0") as neighbour:
        for frame in forged.values():
            _throw(tap, frame, headers)
        await asyncio.sleep(0.2)
        seen = frames_of(world) + frames_of(neighbour)

    assert [name for name, frame in forged.items() if any(marker(frame) in each for each in seen)] == []


async def test_headers_that_make_no_sense_harm_nobody(rig: Rig, port: Port, tap: HeldTap) -> None:
    await rig.network.attach(port, Tap(tap.index))
    garbage, honest = random.Random(5), _as_third(rig, port).honest()

    _throw(tap, honest, [garbage.randbytes(10) for _ in range(GARBAGE_HEADERS)])

    with sniffing(rig.lab, rig.lab.world, "lan0") as world:
        tap.send(honest)
        assert await arrives(world, marker(honest))
    assert await reached(rig, rig.second, NetLab.INTERNET[0], 80) == "open 192.168.50.2"
    assert await rig.network.check()


# Tools of these tests


def _as_third(rig: Rig, port: Port) -> Forger:
    first = rig.forger
    return Forger(
        own=port,
        other=rig.second_port,
        gateway_mac=first.gateway_mac,
        internet=first.internet,
        broadcast=first.broadcast,
    )


def _throw(tap: HeldTap, frame: bytes, headers: list[bytes]) -> None:
    for header in headers:
        with suppress(OSError):
            tap.send(frame, header)


def _header(segmentation: int, flags: int) -> bytes:
    """linux/virtio_net.h: flags, segmentation, length of the headers, size of a segment, where the checksum goes."""
    return struct.pack("=BBHHHH", flags, segmentation, 54, 1000, 34, 6)


def _echo_digest(lab: NetLab, place: Place) -> str:
    """Send BULK out to the internet and back again; the digest of what came back."""
    with lab.socket(lab.world, socket.SOCK_STREAM) as listener, lab.socket(place, socket.SOCK_STREAM) as client:
        listener.bind((NetLab.INTERNET[0], 5001))
        listener.listen()
        client.connect((NetLab.INTERNET[0], 5001))
        server, _ = listener.accept()
        with server:
            return hashlib.sha256(_carried(server, client, _carried(client, server, BULK))).hexdigest()


def _carried(source: socket.socket, target: socket.socket, content: bytes) -> bytes:
    """What arrives; sent a part at a time, so that one thread can do both."""
    stream, arrived = target.makefile("rb"), bytearray()
    for offset in range(0, len(content), 1 << 16):
        part = content[offset : offset + (1 << 16)]
        source.sendall(part)
        arrived += stream.read(len(part))
    return bytes(arrived)


def _compute_checksums(lab: NetLab) -> None:
    """The way out of the host neither delays checksums nor takes large segments."""
    value = array.array("B", struct.pack("II", 0x17, 0))  # linux/ethtool.h: ETHTOOL_STXCSUM
    with lab.socket(lab.host, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8946, struct.pack("16sP16x", b"up0", value.buffer_info()[0]))


def _tcp_checksum_right(frame: bytes) -> bool:
    packet = frame[14 : 14 + int.from_bytes(frame[16:18], "big")]
    header = (packet[0] & 15) * 4
    segment = packet[header:]
    pseudo = packet[12:20] + struct.pack("!HH", socket.IPPROTO_TCP, len(segment))
    block = pseudo + segment + b"\0" * (len(segment) % 2)
    total = sum(struct.unpack(f"!{len(block) // 2}H", block))
    return total % 0xFFFF == 0


async def _shown(link: str, *keys: str) -> Any:
    """These properties of a link; None if there is none."""
    ended = await process.run(("ip", "-j", "link", "show", link), check=False)
    return [json.loads(ended.out)[0].get(key) for key in keys] if ended.status == 0 else None


async def _all_links() -> list[Any]:
    """What attaching could have changed."""
    links = json.loads((await process.run(("ip", "-j", "link"))).out)
    return [[each.get(key) for key in ("ifindex", "ifname", "flags", "master", "ifalias", "mtu")] for each in links]
