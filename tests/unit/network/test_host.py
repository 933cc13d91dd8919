"""Facts about the host, from what its tools print."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from agentlab.network import host
from agentlab.network.addresses import DEFAULT_SUBNET, first_clash

ROUTES: list[dict[str, Any]] = [
    {"dst": "default", "gateway": "5.6.7.1", "dev": "eth0", "flags": []},
    {"dst": "5.6.7.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "prefsrc": "5.6.7.8"},
    {"dst": "172.17.0.0/16", "dev": "docker0", "scope": "link", "prefsrc": "172.17.0.1"},
    {"dst": "10.77.9.0/24", "gateway": "172.17.0.9", "dev": "docker0"},
    {"type": "blackhole", "dst": "10.77.0.0/17", "dev": "lo"},
    {"type": "local", "dst": "5.6.7.8", "dev": "eth0", "table": "local", "scope": "host"},
    {"type": "broadcast", "dst": "5.6.7.255", "dev": "eth0", "table": "local", "scope": "link"},
    {"dst": "10.77.0.0/16", "dev": "alx3k2abcd", "scope": "link"},
    {"dst": "0.0.0.0/1", "dev": "tun0", "scope": "link"},
    {"dst": "128.0.0.0/1", "dev": "tun0", "scope": "link"},
]
LINKS: list[dict[str, Any]] = [
    {"ifname": "eth0", "mtu": 1450, "addr_info": [{"family": "inet", "local": "5.6.7.8", "prefixlen": 24}]},
    {"ifname": "wg0", "mtu": 1420, "addr_info": [{"family": "inet", "local": "172.29.0.5", "prefixlen": 32}]},
    {"ifname": "alx3k2abcd", "mtu": 1500, "addr_info": [{"family": "inet", "local": "10.77.0.1", "prefixlen": 16}]},
]


def test_a_more_specific_route_clashes_and_is_named() -> None:
    found = host.digest(ROUTES, LINKS, [], "alx3k2abcd")

    clash = first_clash(DEFAULT_SUBNET, found.taken)

    assert clash is not None
    assert clash.what == "route 10.77.9.0/24 dev docker0"


def test_our_own_bridge_black_holes_and_default_routes_are_no_clash() -> None:
    routes = [each for each in ROUTES if each["dst"] != "10.77.9.0/24"]

    assert first_clash(DEFAULT_SUBNET, host.digest(routes, LINKS, [], "alx3k2abcd").taken) is None


def test_an_address_without_a_route_clashes() -> None:
    clash = first_clash(IPv4Network("172.29.0.0/16"), host.digest([], LINKS, [], "alx3k2abcd").taken)

    assert clash is not None
    assert clash.what == "address 172.29.0.5/32 dev wg0"


def test_a_name_server_behind_the_default_route_clashes_because_its_names_would_be_lost() -> None:
    found = host.digest([], [], ["10.77.0.53", "127.0.0.53"], "alx3k2abcd")

    clash = first_clash(DEFAULT_SUBNET, found.taken)

    assert clash is not None
    assert clash.what == "name server 10.77.0.53"


def test_networks_that_the_host_is_on_are_told_and_its_way_out_is_not() -> None:
    assert host.digest(ROUTES, LINKS, [], "alx3k2abcd").on_link == (
        IPv4Network("5.6.7.0/24"),
        IPv4Network("172.17.0.0/16"),
    )


def test_the_mtu_is_that_of_the_way_out() -> None:
    assert host.digest(ROUTES, LINKS, [], "alx3k2abcd").mtu == 1450
    assert host.digest([], [], [], "alx3k2abcd").mtu == 1500


def test_name_servers_are_read_in_order_and_rubbish_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 9.9.9.9\nsearch example\nnameserver 1.2.3.4\nnameserver\nnameserver x\nnameserver ::1\n"
    )

    assert host.read_nameservers(file) == ["1.2.3.4", "::1"]
    assert host.read_nameservers(tmp_path / "absent") == []


def test_only_others_ipv4_chains_that_drop_by_default_are_told() -> None:
    listing = """\
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain INPUT {
		type filter hook input priority filter; policy accept;
	}
}
table ip6 filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
table inet agentlab_x3k2abcd {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy drop;
	}
}
"""

    assert host.parse_closed_chains(listing, "forward", "agentlab_x3k2abcd") == ["ip filter"]
    assert host.parse_closed_chains(listing, "input", "agentlab_x3k2abcd") == ["inet firewalld"]
