"""P6 with real packets: what a sandbox can reach, what it cannot, and that nothing flows when the policy fails.

Every "cannot" has its control: with the rules gone, the very same packet does get an answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.e2e.network_rig import Rig, ask, cut_off, frames_of, link, opened, reached, sniffing, tcp

from agentlab.base import process
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.model.network import Namespace, NetworkMode, Port
from agentlab.network import addresses, ruleset
from agentlab.network.bridge import BridgeNetwork
from agentlab.network.interface import NetworkError
from agentlab.testing.netlab import NetLab, Place

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
]

CLOSED = (*NetLab.LAN, *NetLab.TAILNET, *NetLab.METADATA, *NetLab.PRIVATE, *NetLab.NEIGHBOUR)
HOST_PORTS = (22, 80, 8006, 7)
CONTAINERS = pytest.mark.parametrize("rig", ["container beside container"], indirect=True)


# What must work


@pytest.mark.parametrize("address", NetLab.INTERNET)
async def test_the_internet_is_reached_from_behind_the_hosts_address(rig: Rig, address: str) -> None:
    answers = await ask(rig, rig.first, [address])

    assert answers == {address: ("open 192.168.50.2", "open 192.168.50.2", "open")}


async def test_names_resolve_over_udp_and_tcp(rig: Rig) -> None:
    over_udp = await _resolve(rig, "web.netlab.test")
    over_tcp = await _resolve(rig, "web.netlab.test", tcp=True)

    assert over_udp == over_tcp == (False, 0, ["1.1.1.10"])


async def test_an_answer_too_long_for_a_datagram_is_truncated_and_comes_over_tcp(rig: Rig) -> None:
    truncated, _, none = await _resolve(rig, "many.netlab.test")
    _, _, all_of_them = await _resolve(rig, "many.netlab.test", tcp=True)

    assert (truncated, none) == (True, [])
    assert len(all_of_them) == 100


async def test_an_unknown_name_is_unknown(rig: Rig) -> None:
    assert await _resolve(rig, "nothing.netlab.test") == (False, 3, [])


@pytest.mark.parametrize("name", ["intranet.netlab.test", "rebind.netlab.test"])
async def test_a_name_that_points_to_a_closed_address_has_none(rig: Rig, name: str) -> None:
    assert await _resolve(rig, name) == (False, 0, [])


# What must not


async def test_nothing_but_the_internet_is_reached(rig: Rig) -> None:
    answers = await ask(rig, rig.first, CLOSED)

    assert opened(answers) == []
    assert {over_tcp for over_tcp, _, _ in answers.values()} == {"refused Connection refused"}


async def test_the_same_packets_arrive_once_the_rules_are_gone(rig: Rig) -> None:
    await rig.flush()

    answers = await ask(rig, rig.first, CLOSED)

    assert [each for each in CLOSED if "open" not in "".join(answers[each])] == []


async def test_no_address_of_the_host_is_reached(rig: Rig) -> None:
    own = (*NetLab.HOST, str(rig.first_port.gateway))
    answers = await ask(rig, rig.first, own)
    said = {(each, port): await tcp(rig, rig.first, each, port) for each in own for port in (*HOST_PORTS, 53)}

    assert opened(answers) == []
    assert [key for key, answer in said.items() if answer.startswith("open")] == []


async def test_the_hosts_addresses_are_open_once_the_rules_are_gone(rig: Rig) -> None:
    await rig.flush()
    own = (*NetLab.HOST, str(rig.first_port.gateway))

    said = {(each, port): await tcp(rig, rig.first, each, port) for each in own for port in HOST_PORTS}

    assert [key for key, answer in said.items() if not answer.startswith("open")] == []


async def test_the_other_sandbox_is_not_reached(rig: Rig) -> None:
    with _listening(rig, rig.second):
        direct = await tcp(rig, rig.first, str(rig.second_port.address), 80)
        await _by_gateway(rig, rig.first, rig.second_port)
        hairpin = await tcp(rig, rig.first, str(rig.second_port.address), 80)
        ping = await asyncio.to_thread(rig.lab.ping, rig.first, str(rig.second_port.address))

    assert "open" not in direct + hairpin + ping


async def test_the_other_sandbox_is_reached_through_the_gateway_once_the_rules_are_gone(rig: Rig) -> None:
    with _listening(rig, rig.second):
        await _by_gateway(rig, rig.first, rig.second_port)
        await _by_gateway(rig, rig.second, rig.first_port)
        await rig.flush()
        said = await asyncio.to_thread(rig.lab.ping, rig.first, str(rig.second_port.address))

    assert said == "open"


async def test_neither_the_world_nor_the_lan_reaches_a_sandbox(rig: Rig) -> None:
    address = str(rig.first_port.address)
    with _listening(rig, rig.first):
        blocked = await tcp(rig, rig.lab.world, address, 80)
        gateway = await tcp(rig, rig.lab.world, str(rig.first_port.gateway), 53)
        await rig.flush()
        control = await asyncio.to_thread(rig.lab.ping, rig.lab.world, address)

    assert (blocked, gateway, control) == ("silent", "silent", "open")


async def test_tunnels_that_are_neither_tcp_udp_nor_icmp_do_not_leave(rig: Rig) -> None:
    def send() -> str:
        with rig.lab.socket(rig.first, socket.SOCK_RAW, protocol=41) as tunnel:  # IPv6 in IPv4
            tunnel.connect((NetLab.INTERNET[0], 0))
            tunnel.send(b"\x60" + bytes(39))
            try:
                tunnel.send(b"\x60" + bytes(39))
                tunnel.recv(100)
            except OSError as error:
                return type(error).__name__
        return "answered"

    with sniffing(rig.lab, rig.lab.world, "lan0") as seen:
        await asyncio.to_thread(send)

        assert [each for each in frames_of(seen) if _protocol(each) == 41] == []


async def test_source_routed_packets_do_not_leave(rig: Rig) -> None:
    def send() -> None:
        with rig.lab.socket(rig.first, socket.SOCK_DGRAM) as sender:
            loose = bytes((131, 7, 4)) + socket.inet_aton("192.168.50.9") + b"\0"
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, loose)
            for target in (NetLab.INTERNET[0], "192.168.50.9"):
                try:
                    sender.sendto(b"routed", (target, 7))
                except OSError:
                    pass

    with sniffing(rig.lab, rig.lab.world, "lan0") as seen:
        await asyncio.to_thread(send)

        assert [each for each in frames_of(seen) if b"routed" in each] == []


# When things go wrong


async def test_connections_beyond_the_limit_are_refused_at_once(rig: Rig) -> None:
    base, ports = replace(rig.base, connections_max=20), (rig.first_port, rig.second_port)
    await process.run(("nft", "-f", "-"), stdin=ruleset.render(base, ports).encode())
    held = [rig.lab.socket(rig.first, socket.SOCK_STREAM) for _ in range(30)]

    outcomes = [each.connect_ex((NetLab.INTERNET[0], 80)) for each in held]
    other = await tcp(rig, rig.second, NetLab.INTERNET[0], 80)

    for each in held:
        each.close()
    assert outcomes == [0] * 20 + [errno.ECONNREFUSED] * 10
    assert other == "open 192.168.50.2"


async def test_connections_opened_too_fast_are_refused_at_once(rig: Rig) -> None:
    base, ports = replace(rig.base, openings_per_s_max=1, openings_burst_max=20), (rig.first_port, rig.second_port)
    await process.run(("nft", "-f", "-"), stdin=ruleset.render(base, ports).encode())

    outcomes = [await tcp(rig, rig.first, NetLab.INTERNET[0], 80) for _ in range(30)]
    other = await tcp(rig, rig.second, NetLab.INTERNET[0], 80)

    assert outcomes[:20] == ["open 192.168.50.2"] * 20
    assert outcomes.count("refused Connection refused") >= 8
    assert other == "open 192.168.50.2"


async def test_flushed_rules_are_noticed_and_the_wall_stands_again(rig: Rig) -> None:
    await rig.flush()

    assert not await rig.network.verify(rig.first_port)
    assert not await rig.network.check()

    assert opened(await ask(rig, rig.first, NetLab.LAN)) == []
    assert await reached(rig, rig.first, NetLab.INTERNET[0], 80) == "open 192.168.50.2"
    assert await rig.network.check()


@pytest.mark.parametrize(
    "change",
    [
        "add rule inet {table} outward accept",
        "flush chain inet {table} outward",
        "delete element inet {table} blocked {{ 192.168.0.0/16 }}",
        "flush chain bridge {table} leaving",
        'add element bridge {table} ports {{ "{link}" . 02:00:00:00:00:99 . 10.77.9.9 }}',
    ],
)
async def test_any_change_of_the_rules_is_noticed_and_undone(rig: Rig, change: str) -> None:
    command = change.format(table=rig.base.table, link=rig.first_port.link)
    await process.run(("nft", command))

    noticed = not await rig.network.check()

    assert noticed
    assert await rig.network.check()
    assert await rig.network.verify(rig.first_port)


@pytest.mark.parametrize(
    "change",
    [
        "ip link set {link} down",
        "ip link set {link} nomaster",
        "ip link set {link} type bridge_slave isolated off",
        "ip link set {link} type bridge_slave learning on",
        "ip link set {bridge} down",
    ],
)
async def test_any_change_of_the_link_is_noticed(rig: Rig, change: str) -> None:
    command = change.format(link=rig.first_port.link, bridge=rig.bridge)
    await process.run(command.split())

    assert not await rig.network.verify(rig.first_port)


async def test_a_link_torn_from_the_bridge_reaches_nothing(rig: Rig) -> None:
    await process.run(("ip", "link", "set", rig.first_port.link, "nomaster"))
    await process.run(("ip", "addr", "add", f"{rig.first_port.gateway}/32", "dev", rig.first_port.link))

    assert opened(await ask(rig, rig.first, [*NetLab.HOST, *NetLab.LAN, *NetLab.INTERNET])) == []


async def test_when_nft_fails_attaching_fails_and_nothing_flows(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "nft"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'nft is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    port = rig.network.port("sb-3", 3, NetworkMode.NAT)
    third, end = await rig.newcomer(port)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")

        with pytest.raises(NetworkError, match="nft is broken"):
            await rig.network.attach(port, end)

    assert opened(await ask(rig, third, [*NetLab.INTERNET, *NetLab.LAN])) == []
    assert await cut_off(port.link)
    assert "sb-3" not in await rig.network.list()


async def test_when_nft_says_yes_and_does_nothing_attaching_fails_and_nothing_flows(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = process.which("nft")
    liar = tmp_path / "bin" / "nft"
    liar.parent.mkdir()
    liar.write_text(f'#!/bin/sh\ncase "$*" in *--file*) cat >/dev/null;; *) exec {real} "$@";; esac\n')
    liar.chmod(0o755)
    port = rig.network.port("sb-3", 3, NetworkMode.NAT)
    third, end = await rig.newcomer(port)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{liar.parent}:{os.environ['PATH']}")

        with pytest.raises(NetworkError, match="not what was rendered"):
            await rig.network.attach(port, end)

    assert opened(await ask(rig, third, [*NetLab.INTERNET, *NetLab.LAN])) == []
    assert await cut_off(port.link)


async def test_when_the_rules_cannot_be_repaired_all_traffic_stops(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = process.which("nft")
    refuser = tmp_path / "bin" / "nft"
    refuser.parent.mkdir()
    refuser.write_text(f'#!/bin/sh\ncase "$*" in *--file*) exit 1;; *) exec {real} "$@";; esac\n')
    refuser.chmod(0o755)
    await rig.flush()
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{refuser.parent}:{os.environ['PATH']}")

        with pytest.raises(NetworkError):
            await rig.network.check()

        assert opened(await ask(rig, rig.first, [*NetLab.LAN, *NetLab.INTERNET, *NetLab.HOST])) == []
    assert not await rig.network.check()
    assert await reached(rig, rig.first, NetLab.INTERNET[0], 80) == "open 192.168.50.2"


async def test_a_cancelled_attach_leaves_no_link(rig: Rig) -> None:
    port = rig.network.port("sb-3", 3, NetworkMode.NAT)
    _, end = await rig.newcomer(port)

    for delay_s in (0, 0.001, 0.004, 0.008):
        attaching = asyncio.ensure_future(rig.network.attach(port, end))
        await asyncio.sleep(delay_s)
        attaching.cancel()
        await asyncio.wait((attaching,))
        await rig.network.detach("sb-3")
        assert await cut_off(port.link)

    assert set(await rig.network.list()) == {"sb-1", "sb-2"}


@CONTAINERS
async def test_the_hosts_own_namespace_is_never_touched(rig: Rig) -> None:
    before = await rig.lab.on(rig.lab.host, "ip", "-br", "addr")

    with pytest.raises(NetworkError, match="own network namespace"):
        await rig.network.attach(rig.network.port("sb-3", 3, NetworkMode.NAT), Namespace(os.getpid()))

    assert await rig.lab.on(rig.lab.host, "ip", "-br", "addr") == before


@CONTAINERS
async def test_a_namespace_with_another_way_out_is_refused(rig: Rig) -> None:
    for mode in NetworkMode:
        third = await rig.lab.new_sandbox()
        await rig.lab.on(third, "ip", "link", "add", "side0", "type", "veth", "peer", "name", "side1")

        with pytest.raises(NetworkError, match="side0"):
            await rig.network.attach(rig.network.port("sb-3", 3, mode), Namespace(third.pid))

    assert set(await rig.network.list()) == {"sb-1", "sb-2"}


@CONTAINERS
async def test_mode_off_has_loopback_and_nothing_else(rig: Rig) -> None:
    third = await rig.lab.new_sandbox()

    await rig.network.attach(rig.network.port("sb-3", 3, NetworkMode.OFF), Namespace(third.pid))

    names = (await rig.lab.on(third, "ip", "-br", "link")).split()
    assert names[0] == "lo"
    assert (await rig.lab.on(third, "ip", "-br", "link")).count("\n") == 1
    assert opened(await ask(rig, third, [*NetLab.INTERNET, *NetLab.LAN])) == []


@CONTAINERS
async def test_a_link_of_that_name_that_is_not_ours_is_left_alone(rig: Rig) -> None:
    port = rig.network.port("sb-3", 3, NetworkMode.NAT)
    await process.run(("ip", "link", "add", port.link, "type", "veth", "peer", "name", "foreign0"))
    third = await rig.lab.new_sandbox()

    with pytest.raises(NetworkError, match=port.link):
        await rig.network.attach(port, Namespace(third.pid))
    await rig.network.detach("sb-3")

    assert await link(port.link) is not None
    await process.run(("ip", "link", "del", port.link))


async def test_a_sandbox_that_died_is_seen_as_half_there_and_detached(rig: Rig) -> None:
    await process.run(("ip", "link", "del", rig.first_port.link))

    found = await rig.network.list()
    await rig.network.detach("sb-1")

    assert found["sb-1"] is None
    assert set(await rig.network.list()) == {"sb-2"}


# From start to end


async def test_a_crashed_daemons_successor_adopts_what_stands(rig: Rig) -> None:
    with rig.lab.socket(rig.first, socket.SOCK_STREAM) as held:
        held.connect((NetLab.INTERNET[0], 80))
        await rig.network.close(remove=False)  # its process is gone, but nothing was cleaned up
        successor = BridgeNetwork(rig.installation, rig.state_dir, None, SystemClock(), [NetLab.NAME_SERVER])

        subnet = await successor.open()

        held.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert (await asyncio.to_thread(held.recv, 4096)).startswith(b"HTTP/1.1 200")
    assert subnet == addresses.DEFAULT_SUBNET
    assert dict(await successor.list()) == {"sb-1": rig.first_port, "sb-2": rig.second_port}
    await successor.detach("sb-1")
    assert set(await successor.list()) == {"sb-2"}
    await successor.close(remove=False)


async def test_a_bridge_left_half_made_is_completed(netlab: NetLab, on_netlab: None, tmp_path: Path) -> None:
    installation = SystemEntropy().word(8)
    bridge = addresses.bridge_name(installation)
    await process.run(("ip", "link", "add", bridge, "type", "bridge"))
    await process.run(("ip", "link", "set", bridge, "alias", f"agentlab {installation}"))
    network = BridgeNetwork(installation, tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])

    await network.open()

    assert await network.check()
    await network.close(remove=True)


async def test_a_bridge_that_is_not_ours_is_refused(netlab: NetLab, on_netlab: None, tmp_path: Path) -> None:
    installation = SystemEntropy().word(8)
    await process.run(("ip", "link", "add", addresses.bridge_name(installation), "type", "bridge"))
    network = BridgeNetwork(installation, tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])

    with pytest.raises(NetworkError, match="did not make"):
        await network.open()


async def test_removal_leaves_the_host_as_it_was(netlab: NetLab, on_netlab: None, tmp_path: Path) -> None:
    before = await _host_state(netlab)
    network = BridgeNetwork(SystemEntropy().word(8), tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])
    await network.open()
    await network.attach(network.port("sb-1", 1, NetworkMode.NAT), Namespace((await netlab.new_sandbox()).pid))
    during = await _host_state(netlab)

    await network.close(remove=True)

    assert during != before
    assert await _host_state(netlab) == before
    assert list(tmp_path.iterdir()) == []


async def test_forwarding_that_was_on_before_stays_on(netlab: NetLab, on_netlab: None, tmp_path: Path) -> None:
    await process.run(("sysctl", "-qw", "net.ipv4.ip_forward=1"))
    network = BridgeNetwork(SystemEntropy().word(8), tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])
    await network.open()

    await network.close(remove=True)

    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"


async def test_a_clash_of_the_default_subnet_chooses_another(netlab: NetLab, on_netlab: None, tmp_path: Path) -> None:
    await process.run(("ip", "route", "add", "10.77.3.0/24", "via", "192.168.50.1"))
    network = BridgeNetwork(SystemEntropy().word(8), tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])

    chosen = await network.open()
    again = await network.open()

    assert chosen == again == addresses.CANDIDATE_SUBNETS[1]
    await network.close(remove=True)


async def test_a_clash_of_the_configured_subnet_is_refused_with_the_route(
    netlab: NetLab, on_netlab: None, tmp_path: Path
) -> None:
    configured = IPv4Network("192.168.0.0/16")
    network = BridgeNetwork(SystemEntropy().word(8), tmp_path, configured, SystemClock(), [NetLab.NAME_SERVER])

    with pytest.raises(NetworkError, match=r"192\.168\.50\.0/24 dev up0|192\.168\.50\.\d+") as caught:
        await network.open()

    assert "network.subnet" in caught.value.remedy
    assert await link(addresses.bridge_name(network._installation)) is None


async def test_a_name_server_on_every_address_is_named_as_the_cause(
    netlab: NetLab, on_netlab: None, tmp_path: Path
) -> None:
    network = BridgeNetwork(SystemEntropy().word(8), tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])
    with netlab.socket(netlab.host, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 53))

        with pytest.raises(NetworkError, match="port 53") as caught:
            await network.open()

    assert "ss -lnup" in caught.value.remedy
    await network.close(remove=True)


async def test_others_dropping_chains_are_findings_with_a_remedy(
    netlab: NetLab, on_netlab: None, tmp_path: Path
) -> None:
    docker = "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }"
    await process.run(("nft", docker))
    network = BridgeNetwork(SystemEntropy().word(8), tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])

    found = {each.name: each for each in await network.probe()}

    finding = found["other filters (forward)"]
    assert (finding.ok, finding.fatal) == (False, False)
    assert "iptables -I DOCKER-USER" in finding.remedy
    assert found["other filters (input)"].ok


@pytest.mark.parametrize("value", ["0", "1"])
async def test_bridged_frames_in_the_ip_hooks_change_nothing(rig: Rig, value: str) -> None:
    if not Path("/proc/sys/net/bridge").exists():
        pytest.skip("this kernel has no br_netfilter")
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text(value)

    assert await reached(rig, rig.first, NetLab.INTERNET[0], 80) == "open 192.168.50.2"
    assert opened(await ask(rig, rig.first, [*NetLab.LAN, *NetLab.HOST])) == []


async def test_fifty_sandboxes_at_once_are_all_attached(rig: Rig) -> None:
    ports = [rig.network.port(f"sb-{slot}", slot, NetworkMode.NAT) for slot in range(3, 53)]
    sandboxes = [await rig.newcomer(port) for port in ports]

    await asyncio.gather(*(rig.network.attach(port, end) for port, (_, end) in zip(ports, sandboxes, strict=True)))

    found = await rig.network.list()
    assert all(found[port.sandbox] == port for port in ports)
    assert await reached(rig, sandboxes[-1][0], NetLab.INTERNET[0], 80) == "open 192.168.50.2"
    await asyncio.gather(*(rig.network.detach(port.sandbox) for port in ports))
    assert set(await rig.network.list()) == {"sb-1", "sb-2"}


# Tools of these tests


async def _resolve(rig: Rig, name: str, *, tcp: bool = False) -> tuple[bool, int, list[str]]:
    """Whether truncated, response code, addresses."""
    labels = b"".join(bytes((len(each),)) + each.encode() for each in name.split("."))
    query = struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)

    def ask() -> bytes:
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        with rig.lab.socket(rig.first, kind) as asker:
            asker.settimeout(5)
            asker.connect((str(rig.network.resolver), 53))
            if not tcp:
                asker.send(query)
                return asker.recv(65535)
            asker.sendall(len(query).to_bytes(2, "big") + query)
            stream = asker.makefile("rb")
            return stream.read(int.from_bytes(stream.read(2), "big"))

    reply = await asyncio.to_thread(ask)
    id_, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert id_ == 0x1234
    records = reply[len(query) :]
    found = [socket.inet_ntoa(records[index * 16 + 12 : index * 16 + 16]) for index in range(count)]
    return bool(flags & 0x0200), flags & 15, found


def _listening(rig: Rig, place: Place) -> socket.socket:
    server = rig.lab.socket(place, socket.SOCK_STREAM)
    server.bind(("0.0.0.0", 80))
    server.listen()
    return server


async def _by_gateway(rig: Rig, place: Place, other: Port) -> None:
    """Send packets for the other sandbox through the gateway rather than across the bridge."""
    await rig.lab.on(place, "ip", "route", "add", f"{other.address}/32", "via", str(other.gateway))


async def _host_state(lab: NetLab) -> dict[str, str]:
    """What AgentLab could have changed on the host."""
    return {
        "links": await lab.on(lab.host, "ip", "-br", "link"),
        "addresses": await lab.on(lab.host, "ip", "-4", "-br", "addr"),
        "routes": await lab.on(lab.host, "ip", "-4", "route", "show", "table", "all"),
        "rules": await lab.on(lab.host, "nft", "list", "ruleset"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def _protocol(frame: bytes) -> int | None:
    return frame[23] if frame[12:14] == b"\x08\x00" else None
