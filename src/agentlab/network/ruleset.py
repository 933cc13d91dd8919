"""Policy and addresses → nftables text, and nftables text → what of it stands.  Pure.

Two tables of the installation share the work, because the bridge family knows frames but no connections, and the
inet family the reverse: `bridge` binds every frame to its port's addresses, `inet` decides where packets may go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from agentlab.model.network import BLOCKED_NETWORKS, Port
from agentlab.network import addresses

# What one sandbox may hold open, and how fast it may open more: the host's connection table is shared by all.
CONNECTIONS_PER_SANDBOX_MAX = 4096
CONNECTIONS_PER_SECOND_MAX = 250
CONNECTIONS_BURST_MAX = 1000
SANDBOXES_COUNTED_MAX = 65535

_SANDBOX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ELEMENTS = re.compile(r"\n[ \t]*elements = \{(.*?)\}", re.DOTALL)
_SET = re.compile(r"set (\w+) \{.*?\n\t\}", re.DOTALL)
_PORT = re.compile(r'"([^"]+)" \. ([0-9a-f:]{17}) \. ([0-9.]+)(?: comment "([^"]*)")?')
_PAIR = re.compile(r'([0-9a-f:]{17}) \. ([0-9.]+)(?: comment "([^"]*)")?')


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What the rules that all sandboxes share depend on."""

    installation: str
    subnet: IPv4Network
    on_link: tuple[IPv4Network, ...] = ()  # networks that the host is directly on, public ones included
    connections_max: int = CONNECTIONS_PER_SANDBOX_MAX
    openings_per_s_max: int = CONNECTIONS_PER_SECOND_MAX
    openings_burst_max: int = CONNECTIONS_BURST_MAX

    @property
    def table(self) -> str:
        """The name of our tables; nobody else's begin so."""
        return f"agentlab_{self.installation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What one port is bound to, as the kernel's sets hold it."""

    mac: str
    address: IPv4Address
    sandbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What stands in the kernel: the shared rules as text without the sets' members, and the members."""

    text: str
    ports: Mapping[str, Binding] = field(default_factory=dict)  # by link: the bridge table's members
    sandboxes: frozenset[Binding] = frozenset()  # the inet table's members

    def holds(self, port: Port) -> bool:
        """Whether both tables bind this port to exactly its own addresses."""
        binding = binding_of(port)
        return self.ports.get(port.link) == binding and binding in self.sandboxes


def binding_of(port: Port) -> Binding:
    """What the sets must hold for this port."""
    return Binding(mac=port.mac, address=port.address, sandbox=port.sandbox)


def render(base: Base, ports: Iterable[Port] = ()) -> str:
    """Both tables, complete, replacing what stands in one transaction."""
    text = _render_inet(base) + _render_bridge(base)
    members = "".join(add_port(base, port) for port in ports)
    head = "".join(f"table {each}\ndelete table {each}\n" for each in (f"inet {base.table}", f"bridge {base.table}"))
    return head + text + members


def add_port(base: Base, port: Port) -> str:
    """Bind a port; may be repeated.  A binding of the same addresses to another name stays: see `rename_port`."""
    if _SANDBOX.fullmatch(port.sandbox) is None:
        raise ValueError(f"{port.sandbox!r} cannot be written into a rule")
    comment = f' comment "{port.sandbox}"'
    return "".join(f"add element {where} {{ {key}{comment} }}\n" for where, key in _members(base, port))


def rename_port(base: Base, port: Port) -> str:
    """Bind a port whatever stood for its addresses before.  Slower than `add_port`: the kernel waits for readers."""
    return remove_port(base, port) + add_port(base, port)


def remove_port(base: Base, port: Port) -> str:
    """Unbind a port; may be repeated, because each member is added before it is deleted."""
    return "".join(
        f"add element {where} {{ {key} }}\ndelete element {where} {{ {key} }}\n" for where, key in _members(base, port)
    )


def remove_all(base: Base) -> str:
    """Take both tables away; may be repeated."""
    return "".join(f"table {each}\ndelete table {each}\n" for each in (f"inet {base.table}", f"bridge {base.table}"))


def parse_echo(base_table: str, text: str) -> Listing:
    """Read what `nft --echo` printed: the members that the kernel says it added, in a listing without rules."""
    lines = text.splitlines()
    ports = "\n".join(each for each in lines if each.startswith(f"add element bridge {base_table} ports "))
    pairs = "\n".join(each for each in lines if each.startswith(f"add element inet {base_table} sandboxes "))
    return Listing(text="", ports=_read_ports(ports), sandboxes=_read_pairs(pairs))


def parse_listing(inet: str, bridge: str) -> Listing:
    """Read what `nft --stateless list table` printed for both tables."""
    text = "\n".join(_without_members(each) for each in (inet, bridge))
    ports, pairs = _members_text(bridge, "ports"), _members_text(inet, "sandboxes")
    return Listing(text=text, ports=_read_ports(ports), sandboxes=_read_pairs(pairs))


def blocked(base: Base) -> list[IPv4Network]:
    """Where no sandbox may go: what is not the public internet, and the networks that the host itself is on."""
    return sorted(collapse_addresses([*BLOCKED_NETWORKS, *base.on_link]))


def _members(base: Base, port: Port) -> tuple[tuple[str, str], tuple[str, str]]:
    pair = f"{port.mac} . {port.address}"
    return (f"bridge {base.table} ports", f'"{port.link}" . {pair}'), (f"inet {base.table} sandboxes", pair)


def _read_ports(text: str) -> dict[str, Binding]:
    return {
        match[1]: Binding(mac=match[2], address=IPv4Address(match[3]), sandbox=match[4] or "")
        for match in _PORT.finditer(text)
    }


def _read_pairs(text: str) -> frozenset[Binding]:
    return frozenset(
        Binding(mac=match[1], address=IPv4Address(match[2]), sandbox=match[3] or "") for match in _PAIR.finditer(text)
    )


def _without_members(text: str) -> str:
    def strip(match: re.Match[str]) -> str:
        return match[0] if match[1] == "blocked" else _ELEMENTS.sub("", match[0])

    return "\n".join(line.rstrip() for line in _SET.sub(strip, text).strip().splitlines())


def _members_text(text: str, name: str) -> str:
    for match in _SET.finditer(text):
        if match[1] == name and (found := _ELEMENTS.search(match[0])):
            return found[1]
    return ""


def _render_bridge(base: Base) -> str:
    prefix, gateway = addresses.link_prefix(base.installation), addresses.gateway(base.subnet)
    gateway_mac = addresses.bridge_mac(base.installation)
    # Frames to 01:80:c2:00:00:0x skip `prerouting` yet would be learned from: `input` judges them too.
    return f"""\
table bridge {base.table} {{
	set ports {{
		type ifname . ether_addr . ipv4_addr
	}}

	chain leaving {{
		ether type ip ether daddr {gateway_mac} iifname . ether saddr . ip saddr @ports accept
		ether type arp ether daddr != {{ {gateway_mac}, ff:ff:ff:ff:ff:ff }} drop
		ether type arp arp daddr ip != {gateway} drop
		ether type arp iifname . arp saddr ether . arp saddr ip != @ports drop
		ether type arp iifname . ether saddr . arp saddr ip @ports accept
		drop
	}}

	chain arriving {{
		ether type ip oifname . ether daddr . ip daddr @ports accept
		ether type arp arp saddr ip {gateway} accept
		drop
	}}

	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname "{prefix}*" jump leaving
	}}

	chain input {{
		type filter hook input priority -300; policy accept;
		iifname "{prefix}*" jump leaving
	}}

	chain forward {{
		type filter hook forward priority -300; policy accept;
		iifname "{prefix}*" drop
		oifname "{prefix}*" drop
	}}

	chain output {{
		type filter hook output priority -300; policy accept;
		oifname "{prefix}*" jump arriving
	}}
}}
"""


def _render_inet(base: Base) -> str:
    bridge, prefix = addresses.bridge_name(base.installation), addresses.link_prefix(base.installation)
    elements = ", ".join(str(each) for each in blocked(base))
    return f"""\
table inet {base.table} {{
	set blocked {{
		type ipv4_addr
		flags interval
		elements = {{ {elements} }}
	}}

	set sandboxes {{
		type ether_addr . ipv4_addr
	}}

	set connections {{
		type ipv4_addr
		size {SANDBOXES_COUNTED_MAX}
		flags dynamic
	}}

	set openings {{
		type ipv4_addr
		size {SANDBOXES_COUNTED_MAX}
		flags dynamic,timeout
		timeout 1m
	}}

{_render_verdicts(base, bridge)}
	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname "{bridge}" jump claimed
		iifname "{prefix}*" drop
		iifname != {{ "lo", "{bridge}" }} ip saddr {base.subnet} drop
		iifname != {{ "lo", "{bridge}" }} ip daddr {base.subnet} drop
	}}

	chain input {{
		type filter hook input priority -10; policy accept;
		iifname "{bridge}" jump to_host
		iifname "{prefix}*" drop
	}}

	chain forward {{
		type filter hook forward priority -10; policy accept;
		iifname "{bridge}" jump outward
		oifname "{bridge}" jump inward
		iifname "{prefix}*" drop
		oifname "{prefix}*" drop
	}}

	chain output {{
		type filter hook output priority -10; policy accept;
		oifname "{bridge}" meta nfproto ipv6 drop
		oifname "{bridge}" icmp type redirect drop
	}}

	chain postrouting {{
		type nat hook postrouting priority 100; policy accept;
		ip saddr {base.subnet} oifname != "{bridge}" masquerade
	}}
}}
"""


def _render_verdicts(base: Base, bridge: str) -> str:
    gateway, last = addresses.gateway(base.subnet), base.subnet.broadcast_address
    # `outward` looks at the address after a DNAT by anyone else, and at the one that the sandbox wrote.
    return f"""\
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		meta nfproto ipv4 reject with icmp admin-prohibited
		drop
	}}

	chain counted {{
		ct state new add @connections {{ ip saddr ct count over {base.connections_max} }} jump refuse
		ct state new update @openings {{ ip saddr limit rate over {base.openings_per_s_max}/second \
burst {base.openings_burst_max} packets }} jump refuse
		accept
	}}

	chain claimed {{
		ip daddr {{ {last}, 224.0.0.0/4, 255.255.255.255 }} drop
		meta nfproto ipv4 ether saddr . ip saddr @sandboxes accept
		drop
	}}

	chain to_host {{
		ct state invalid drop
		ip daddr {gateway} udp dport 53 jump counted
		ip daddr {gateway} tcp dport 53 jump counted
		jump refuse
	}}

	chain outward {{
		oifname "{bridge}" jump refuse
		ct state invalid drop
		ip daddr @blocked jump refuse
		ct original ip daddr @blocked jump refuse
		meta l4proto != {{ icmp, tcp, udp }} jump refuse
		jump counted
	}}

	chain inward {{
		ct direction reply ct state established accept
		meta l4proto icmp ct state related accept
		drop
	}}
"""
