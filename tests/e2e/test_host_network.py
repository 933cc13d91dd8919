"""`agentlab setup host-network` with real packets, on a host in a lab.

Every "cannot" has its control: with the rules gone, the very same packet does get an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from tests.e2e.host_rig import BRIDGE, GATEWAY, GUESTS, HostRig, host_rig
from tests.e2e.network_rig import frames_of, sniffing

from agentlab.base import process
from agentlab.testing.netlab import NetLab, Place

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
]

CLOSED = (*NetLab.LAN, *NetLab.TAILNET, *NetLab.METADATA, *NetLab.PRIVATE, *NetLab.NEIGHBOUR)
HOST_PORTS = (22, 8006, 3128, 111, 80)
GUEST_PORT = 8811
TRIES_MAX = 10

# What Tailscale does to a host that uses an exit node and accepts the routes of others.
TAILNET = """\
link set ts0 down
link set ts0 name tailscale0
link set tailscale0 up
rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
rule add pref 5270 lookup 52
route add 100.64.0.0/10 dev tailscale0 table 52
"""
TAILNET_RULES = """\
table ip filter {
	chain ts-forward {
		iifname "tailscale0" meta mark set meta mark & 0xff00ffff | 0x40000
		meta mark & 0xff0000 == 0x40000 accept
		ip saddr 100.64.0.0/10 oifname "tailscale0" drop
		oifname "tailscale0" accept
	}
	chain FORWARD {
		type filter hook forward priority 0; policy accept;
		jump ts-forward
	}
}
table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority 100; policy accept;
		meta mark & 0xff0000 == 0x40000 masquerade
	}
}
"""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[HostRig]:
    """A host that has not been set up."""
    async with host_rig(tmp_path) as made:
        yield made


async def test_the_internet_and_the_guest_port_are_open_and_nothing_else(rig: HostRig) -> None:
    await rig.made()
    guest = await rig.plug(GUESTS[0], "tap1")

    internet = [await _reached(rig, guest, each, 80) for each in NetLab.INTERNET]
    home = await _reached(rig, guest, GATEWAY, GUEST_PORT)
    closed = await _tcp(rig, guest, [(each, 80) for each in CLOSED])
    pinged = await asyncio.gather(*(asyncio.to_thread(rig.lab.ping, guest, each) for each in (*CLOSED, GATEWAY)))

    assert internet == ["open 192.168.50.2"] * len(NetLab.INTERNET)
    assert home == f"open {GUESTS[0]}"
    assert set(closed.values()) == {"refused Connection refused"}
    assert "open" not in pinged


async def test_a_vm_behind_a_firewall_of_proxmox_ve_has_the_same_network(rig: HostRig) -> None:
    await rig.made()
    # As systemd sets it: else an interface without an address answers for those of all others.
    await rig.on_host("sysctl", "-q", "-w", "net.ipv4.conf.default.rp_filter=2")
    guest = await rig.plug_with_firewall(GUESTS[0], 100)
    other = await rig.plug_with_firewall(GUESTS[1], 101)
    await rig.serve(other, 80)

    internet = await _reached(rig, guest, "1.1.1.10", 80)
    home = await _reached(rig, guest, GATEWAY, GUEST_PORT)
    closed = await _tcp(rig, guest, [("192.168.50.9", 80), (GATEWAY, 8006), (GUESTS[1], 80)])

    assert (internet, home) == ("open 192.168.50.2", f"open {GUESTS[0]}")
    assert _opened(closed) == []


async def test_a_guest_that_sends_to_its_firewalls_own_bridge_gets_nowhere(rig: HostRig) -> None:
    await rig.made()
    await rig.on_host("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    guest = await rig.plug_with_firewall(GUESTS[0], 100)
    shown = json.loads(await rig.on_host("ip", "-j", "link", "show", "fwbr100i0"))
    await rig.lab.on(guest, "ip", "neigh", "add", GATEWAY, "lladdr", shown[0]["address"], "dev", "eth0")
    asked = [("192.168.50.2", 8006), (GATEWAY, 22), ("192.168.50.9", 80), ("1.1.1.10", 80)]

    said = await _tcp(rig, guest, asked)
    await rig.without_rules()
    control = await _tcp(rig, guest, asked)

    assert _opened(said) == []
    assert sorted(_opened(control)) == sorted(asked)


async def test_no_port_of_the_host_but_the_guest_port_is_open_at_any_of_its_addresses(rig: HostRig) -> None:
    await rig.made()
    guest = await rig.plug(GUESTS[0], "tap1")
    elsewhere = [(each, GUEST_PORT) for each in NetLab.HOST]

    own = [(each, port) for each in (GATEWAY, *NetLab.HOST) for port in HOST_PORTS]
    closed = await _tcp(rig, guest, [*own, *elsewhere])

    assert _opened(closed) == []


async def test_all_of_that_is_open_once_the_rules_are_gone(rig: HostRig) -> None:
    await rig.made()
    guest = await rig.plug(GUESTS[0], "tap1")
    await rig.without_rules()

    own = [(each, port) for each in (GATEWAY, *NetLab.HOST) for port in HOST_PORTS]
    asked = [*own, *((each, 80) for each in CLOSED)]
    said = await _tcp(rig, guest, asked)

    assert sorted(_opened(said)) == sorted(asked)


@pytest.mark.parametrize("shown", ["0", "1"], ids=["frames alone", "frames as packets too"])
async def test_guests_reach_each_other_neither_directly_nor_through_the_gateway(rig: HostRig, shown: str) -> None:
    await _show_frames(rig, shown)
    await rig.made()
    first, second = [await rig.plug(address, f"tap{number}") for number, address in enumerate(GUESTS)]
    await rig.serve(second, 80)

    direct = await _tcp(rig, first, [(GUESTS[1], 80)])
    await rig.lab.on(first, "ip", "route", "add", GUESTS[1], "via", GATEWAY)
    hairpin = await _tcp(rig, first, [(GUESTS[1], 80)])
    await rig.lab.on(first, "ip", "route", "del", GUESTS[1])
    await rig.without_rules()
    control = await _reached(rig, first, GUESTS[1], 80)

    assert _opened(direct) == _opened(hairpin) == []
    assert control == f"open {GUESTS[0]}"


async def test_the_way_through_the_gateway_to_another_guest_is_open_once_the_rules_are_gone(rig: HostRig) -> None:
    await rig.made()
    first, second = [await rig.plug(address, f"tap{number}") for number, address in enumerate(GUESTS)]
    await rig.serve(second, 80)
    await rig.lab.on(first, "ip", "route", "add", GUESTS[1], "via", GATEWAY)
    await rig.without_rules()

    assert await _reached(rig, first, GUESTS[1], 80) == f"open {GUESTS[0]}"


async def test_a_guest_with_an_address_of_somebody_else_gets_nowhere(rig: HostRig) -> None:
    await rig.made()
    guest = await rig.plug("10.80.9.9", "tap1")
    await rig.on_host("ip", "route", "add", "10.80.9.9/32", "dev", BRIDGE)

    said = await _tcp(rig, guest, [("1.1.1.10", 80), (GATEWAY, GUEST_PORT)])
    await rig.without_rules()
    control = await _reached(rig, guest, GATEWAY, GUEST_PORT)

    assert _opened(said) == []
    assert control == "open 10.80.9.9"


async def test_neither_the_lan_nor_the_internet_reaches_a_guest(rig: HostRig) -> None:
    await rig.made()
    guest = await rig.plug(GUESTS[0], "tap1")
    await rig.serve(guest, 80)

    said = await _tcp(rig, rig.lab.world, [(GUESTS[0], 80)])
    await rig.without_rules()
    control = await _reached(rig, rig.lab.world, GUESTS[0], 80)

    assert list(said.values()) == ["silent"]
    assert control.startswith("open")


async def test_the_host_itself_reaches_a_guest(rig: HostRig) -> None:
    await rig.made()
    guest = await rig.plug(GUESTS[0], "tap1")
    await rig.serve(guest, 22)

    assert await _reached(rig, rig.lab.host, GUESTS[0], 22) == f"open {GATEWAY}"


# A daemon that is elsewhere


async def test_a_daemon_on_the_lan_is_reached_at_its_port_alone(rig: HostRig) -> None:
    await rig.made("--guest-address", "192.168.50.9", "--guest-port", "7")
    guest = await rig.plug(GUESTS[0], "tap1")

    home = await _reached(rig, guest, "192.168.50.9", 7)
    closed = await _tcp(rig, guest, [("192.168.50.9", 80), ("192.168.50.1", 7), (GATEWAY, 7), (GATEWAY, GUEST_PORT)])

    assert home == "open 192.168.50.2"
    assert _opened(closed) == []


@pytest.mark.parametrize("shown", ["0", "1"], ids=["frames alone", "frames as packets too"])
async def test_a_daemon_on_the_bridge_is_reached_at_its_port_alone(rig: HostRig, shown: str) -> None:
    await _show_frames(rig, shown)
    await rig.made("--guest-address", GUESTS[1])
    first, second = [await rig.plug(address, f"tap{number}") for number, address in enumerate(GUESTS)]
    await rig.serve(second, GUEST_PORT, 80)

    assert await _reached(rig, first, GUESTS[1], GUEST_PORT) == f"open {GUESTS[0]}"
    assert _opened(await _tcp(rig, first, [(GUESTS[1], 80), (GATEWAY, GUEST_PORT)])) == []


async def test_a_name_server_on_the_host_is_reached_if_it_was_named(rig: HostRig) -> None:
    await rig.made("--nameserver", GATEWAY)
    guest = await rig.plug(GUESTS[0], "tap1")
    await rig.serve(rig.lab.host, 53)

    assert await _reached(rig, guest, GATEWAY, 53) == f"open {GUESTS[0]}"
    assert _opened(await _tcp(rig, guest, [("192.168.50.2", 53)])) == []


# Tailscale


async def test_with_an_exit_node_guests_still_leave_by_the_uplink(rig: HostRig) -> None:
    await _tailscale(rig, "route add default dev tailscale0 table 52")
    said = await rig.made()
    guest = await rig.plug(GUESTS[0], "tap1")

    with sniffing(rig.lab, rig.lab.world, "tail0") as tailnet:
        internet = await _reached(rig, guest, "1.1.1.10", 80)
        closed = await _tcp(rig, guest, [(each, 80) for each in NetLab.TAILNET])
        frames = [each for each in frames_of(tailnet) if each[12:14] == b"\x08\x00"]
    await _unroute(rig)
    control = await _tcp(rig, guest, [("1.1.1.10", 80)])

    assert internet == "open 192.168.50.2"
    assert _opened(closed) == []
    assert frames == []
    assert _opened(control) == []  # without our routing it would go into the tailnet, where no rule lets it
    assert "never into the tailnet" in said.err


async def test_with_an_exit_node_replies_come_back_through_an_uplink_that_checks_strictly(rig: HostRig) -> None:
    await _tailscale(rig, "route add default dev tailscale0 table 52")
    await rig.on_host("sysctl", "-q", "-w", "net.ipv4.conf.up0.rp_filter=1")
    await rig.made()
    guest = await rig.plug(GUESTS[0], "tap1")

    strict = await _reached(rig, guest, "1.1.1.10", 80)
    own = await _tcp(rig, rig.lab.host, [("1.1.1.10", 80)])

    assert strict == "open 192.168.50.2"
    assert _opened(own) == [("1.1.1.10", 80)]  # the host's own go as Tailscale wants them


async def test_replies_come_back_when_the_tailnet_claims_the_guests_network(rig: HostRig) -> None:
    await rig.made()
    await _tailscale(rig, "route add 10.80.0.0/24 dev tailscale0 table 52")
    guest = await rig.plug(GUESTS[0], "tap1")

    internet = await _reached(rig, guest, "1.1.1.10", 80)
    home = await _reached(rig, guest, GATEWAY, GUEST_PORT)
    again = await rig.made("--json")
    await _unroute(rig)
    control = await _tcp(rig, guest, [("1.1.1.10", 80), (GATEWAY, GUEST_PORT)])

    assert (internet, home) == ("open 192.168.50.2", f"open {GUESTS[0]}")
    assert again.value["changed"] is False  # that claim is no reason to refuse what stands already
    assert _opened(control) == []


async def test_the_tailnet_is_reached_without_our_rules(rig: HostRig) -> None:
    await rig.made()
    await _tailscale(rig)
    guest = await rig.plug(GUESTS[0], "tap1")

    closed = await _tcp(rig, guest, [("100.64.0.9", 80)])
    await rig.without_rules()
    await rig.on_host("nft", "-f", "-", stdin=TAILNET_RULES)
    await _unroute(rig)
    control = await _reached(rig, guest, "100.64.0.9", 80)

    assert _opened(closed) == []
    assert control == f"open {GUESTS[0]}"


# What it does to the host


async def test_a_dry_run_changes_nothing_and_shows_everything(rig: HostRig) -> None:
    before = await rig.facts()

    said = await rig.setup("--dry-run")

    assert said.status == 0
    assert await rig.facts() == before
    assert rig.written() == ["network/interfaces"]
    assert "iface agbr0 inet static" in said.out
    assert "table inet agentlab_host {" in said.out
    assert "ip rule add pref 1270 to 10.80.0.0/24 lookup main" in said.out
    assert "guest_address: 10.80.0.1:8811" in said.out


async def test_a_second_run_changes_nothing(rig: HostRig) -> None:
    first = await rig.made("--json")
    before, written = await rig.facts(), _contents(rig)

    second = await rig.made("--json")

    assert (first.value["changed"], second.value["changed"], second.value["steps"]) == (True, False, [])
    assert (await rig.facts(), _contents(rig)) == (before, written)


async def test_what_was_lost_is_put_back_by_another_run(rig: HostRig) -> None:
    await rig.made()
    before, written = await rig.facts(), _contents(rig)
    await rig.on_host("nft", "flush ruleset")
    await rig.on_host("ip", "rule", "del", "pref", "1271")
    await rig.on_host("sysctl", "-q", "-w", f"net.ipv4.conf.{BRIDGE}.forwarding=0")
    await rig.on_host("ip", "addr", "flush", "dev", BRIDGE)
    (rig.etc / "network/interfaces.d/agentlab").unlink()

    await rig.made()

    assert (await rig.facts(), _contents(rig)) == (before, written)


async def test_undo_leaves_the_host_as_it_was_and_everything_foreign_untouched(rig: HostRig) -> None:
    await rig.on_host("nft", "-f", "-", stdin="table inet theirs {\n chain input { tcp dport 22 accept\n }\n}\n")
    await rig.on_host("ip", "link", "add", "vmbr7", "type", "bridge")
    await rig.on_host("ip", "addr", "add", "172.20.0.1/24", "dev", "vmbr7")
    await rig.on_host("ip", "rule", "add", "pref", "1270", "to", "172.20.0.0/24", "lookup", "main")
    (rig.etc / "network/interfaces.d").mkdir()
    (rig.etc / "network/interfaces.d/theirs").write_text("iface vmbr7 inet manual\n")
    before, written = await rig.facts(), _contents(rig)

    await rig.made()
    between = await rig.facts()
    await rig.made("--undo")

    assert str(before["rules"]) in str(between["rules"])
    assert between["settings"] != before["settings"]
    assert (await rig.facts(), _contents(rig)) == (before, written)
    assert not (rig.etc / "agentlab").exists()
    assert "nothing to undo" in (await rig.made("--undo")).out


async def test_undo_leaves_the_uplink_forwarding_once_the_host_has_become_a_router(rig: HostRig) -> None:
    await rig.made()
    await rig.on_host("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")

    await rig.made("--undo")

    assert (await rig.on_host("sysctl", "-n", "net.ipv4.conf.up0.forwarding")).strip() == "1"


async def test_undo_is_refused_while_a_guest_is_plugged_in(rig: HostRig) -> None:
    await rig.made()
    await rig.plug(GUESTS[0], "tap1")
    before, written = await rig.facts(), _contents(rig)

    said = await rig.setup("--undo", "--yes")

    assert said.status == 6
    assert "machines are still plugged into agbr0: tap1" in said.err
    assert (await rig.facts(), _contents(rig)) == (before, written)


async def test_a_bridge_of_somebody_else_stays_as_it_is(rig: HostRig) -> None:
    await rig.on_host("ip", "link", "add", BRIDGE, "type", "bridge")
    await rig.on_host("ip", "link", "set", BRIDGE, "alias", "theirs")
    before = await rig.facts()

    made, undone = await rig.setup("--yes", "--json"), await rig.setup("--yes", "--undo")

    assert made.status == 6
    assert json.loads(made.err.splitlines()[-1])["cause"] == (
        "agbr0 exists and is not AgentLab's: bridge with the alias 'theirs'"
    )
    assert undone.status == 0
    assert await rig.facts() == before
    assert rig.written() == ["network/interfaces"]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--subnet", "192.168.50.0/24"], "192.168.50.0/24 is in use: "),
        (["--subnet", "100.64.3.0/24"], "100.64.3.0/24 is within 100.64.0.0/10, where tailnets live"),
        (["--subnet", "9.0.0.0/24"], "9.0.0.0/24 is not a private network"),
        (["--uplink", "vmbr0"], "there is no interface vmbr0"),
        (["--guest-address", "11.0.0.9"], "the daemon's address 11.0.0.9 is reached by pub0"),
        (["--nameserver", "100.100.100.100"], "the name server cannot be at 100.100.100.100"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_what_cannot_work_is_refused_before_anything_changes(rig: HostRig, words: list[str], cause: str) -> None:
    before = await rig.facts()

    said = await rig.setup("--yes", *words)

    assert said.status == 6
    assert cause in said.err
    assert "remedy: " in said.err
    assert await rig.facts() == before
    assert rig.written() == ["network/interfaces"]


async def test_a_host_without_a_default_route_needs_the_uplink_named(rig: HostRig) -> None:
    await rig.on_host("ip", "route", "del", "default")

    unnamed, named = await rig.setup("--yes"), await rig.setup("--yes", "--uplink", "up0")

    assert (unnamed.status, named.status) == (6, 0)
    assert "this host has no default route" in unnamed.err


async def test_without_root_it_says_that_it_needs_root() -> None:
    argv = ("unshare", "--user", sys.executable, "-m", "agentlab.cli.main", "setup", "host-network", "--dry-run")

    ended = await process.run(argv, check=False)

    assert ended.status == 5
    assert b"Run it as root: sudo agentlab setup host-network" in ended.err


async def test_without_consent_nothing_is_changed(rig: HostRig) -> None:
    before = await rig.facts()

    said = await rig.setup()

    assert said.status == 130
    assert await rig.facts() == before


async def _show_frames(rig: HostRig, value: str) -> None:
    """Whether the kernel shows bridged frames to the families of packets as well, where it can (br_netfilter)."""
    await rig.on_host("sysctl", "-q", "-e", "-w", f"net.bridge.bridge-nf-call-iptables={value}")


async def _tailscale(rig: HostRig, *more: str) -> None:
    await rig.on_host("ip", "-batch", "-", stdin=TAILNET + "".join(f"{each}\n" for each in more))
    await rig.on_host("nft", "-f", "-", stdin=TAILNET_RULES)


async def _unroute(rig: HostRig) -> None:
    """Our routing is gone, and only it."""
    for priority in ("1270", "1271", "1272"):
        await rig.on_host("ip", "rule", "del", "pref", priority)


async def _tcp(rig: HostRig, place: Place, targets: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    wanted = list(targets)
    said = await asyncio.gather(*(asyncio.to_thread(rig.lab.tcp, place, *each) for each in wanted))
    return dict(zip(wanted, said, strict=True))


async def _reached(rig: HostRig, place: Place, address: str, port: int) -> str:
    """Where an answer has to come: on a busy machine it may need more than one try, a refusal is final."""
    for _ in range(TRIES_MAX):
        if (said := await asyncio.to_thread(rig.lab.tcp, place, address, port)) != "silent":
            return said
    return "silent"


def _opened(said: dict[tuple[str, int], str]) -> list[tuple[str, int]]:
    return [target for target, answer in said.items() if answer.startswith("open")]


def _contents(rig: HostRig) -> dict[str, str]:
    return {name: (rig.etc / name).read_text() for name in rig.written() if not (rig.etc / name).is_symlink()}
