"""Spec → nftables text: what guests on the agent bridge may reach, the host itself among it.  Pure.

The host and the internet are the business of the family inet.  Frames between two ports of the bridge never come
there; the family bridge drops them.  The guests' own addresses are not bound here: that is for each VM's firewall.
"""

from __future__ import annotations

from ipaddress import IPv4Address, collapse_addresses

from agentlab.model.network import BLOCKED_NETWORKS
from agentlab.network.host_network.spec import TABLE, Spec
from agentlab.network.ruleset import (
    CONNECTIONS_BURST_MAX,
    CONNECTIONS_PER_SANDBOX_MAX,
    CONNECTIONS_PER_SECOND_MAX,
    SANDBOXES_COUNTED_MAX,
)

DNS_PORT = 53

# Proxmox VE gives a VM with a firewall a bridge of its own, in front of ours, and lets the kernel show its frames as
# packets.  A connection that was seen there would count as known on ours, and would leave with the guest's own address.
# A guest may also send to that bridge's own MAC: what would then be delivered to the host, or routed, is dropped.
FIREWALL_BRIDGES = "fwbr*"
FIREWALL_PORTS = "fwln*"
FIREWALL_ZONE = 1


def render(spec: Spec) -> str:
    """Both tables, complete, replacing what stands of them in one transaction; nobody else's is touched."""
    return remove() + _render_inet(spec) + _render_bridge(spec)


def remove() -> str:
    """Take both tables away; may be repeated."""
    return "".join(f"table {each} {TABLE}\ndelete table {each} {TABLE}\n" for each in ("inet", "bridge"))


def probe(bridge: str) -> str:
    """A table that loads where the kernel can tell a frame by the bridge that it passes."""
    return f"""\
table inet {TABLE} {{
}}
table bridge {TABLE} {{
	chain forward {{
		type filter hook forward priority -300; policy accept;
		meta ibrname "{bridge}" drop
	}}
}}
"""


def _render_inet(spec: Spec) -> str:
    bridge, subnet = spec.bridge, spec.subnet
    elements = ", ".join(str(each) for each in sorted(collapse_addresses([*BLOCKED_NETWORKS, *spec.on_link])))
    return f"""\
table inet {TABLE} {{
	set blocked {{
		type ipv4_addr
		flags interval
		elements = {{ {elements} }}
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

{_render_verdicts(spec)}
	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname "{FIREWALL_BRIDGES}" ip saddr {subnet} ct zone set {FIREWALL_ZONE}
		iifname "{FIREWALL_BRIDGES}" ip daddr {subnet} ct zone set {FIREWALL_ZONE}
		iifname "{bridge}" jump claimed
		iifname "{spec.uplink}" ip saddr {subnet} drop
		iifname "{spec.uplink}" ip daddr {subnet} drop
	}}

	chain input {{
		type filter hook input priority -10; policy accept;
		iifname "{bridge}" jump to_host
		iifname != {{ "lo", "{bridge}" }} ip saddr {subnet} drop
	}}

	chain forward {{
		type filter hook forward priority -10; policy accept;
		iifname "{bridge}" jump outward
		oifname "{bridge}" jump inward
		oifname != "{FIREWALL_BRIDGES}" ip saddr {subnet} drop
	}}

	chain output {{
		type filter hook output priority -10; policy accept;
		oifname "{bridge}" meta nfproto ipv6 drop
		oifname "{bridge}" icmp type redirect drop
	}}

	chain postrouting {{
		type nat hook postrouting priority 100; policy accept;
		ip saddr {subnet} oifname "{spec.uplink}" masquerade
	}}
}}
"""


def _render_verdicts(spec: Spec) -> str:
    subnet, own = spec.subnet, f"{{ {spec.subnet.network_address}, {spec.gateway}, {spec.subnet.broadcast_address} }}"
    # `outward` looks at the address after a DNAT by anyone else, and at the one that the guest wrote.
    return f"""\
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		meta nfproto ipv4 reject with icmp admin-prohibited
		drop
	}}

	chain counted {{
		ct state new add @connections {{ ip saddr ct count over {CONNECTIONS_PER_SANDBOX_MAX} }} jump refuse
		ct state new update @openings {{ ip saddr limit rate over {CONNECTIONS_PER_SECOND_MAX}/second \
burst {CONNECTIONS_BURST_MAX} packets }} jump refuse
		accept
	}}

	chain claimed {{
		ip daddr {{ {subnet.broadcast_address}, 224.0.0.0/4, 255.255.255.255 }} drop
		ip saddr {own} drop
		ip saddr {subnet} accept
		drop
	}}

	chain to_host {{
		ct state invalid drop
		ct direction reply ct state established accept
		meta l4proto icmp ct state related accept
{_lines(_served_here(spec))}		jump refuse
	}}

	chain outward {{
{_lines(_served_beside_routed(spec))}		oifname "{spec.bridge}" jump refuse
		ct state invalid drop
		oifname != "{spec.uplink}" jump refuse
{_lines(_served_elsewhere(spec))}		ip daddr @blocked jump refuse
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


def _served_here(spec: Spec) -> list[str]:
    """What of the host is open to guests."""
    found = []
    if spec.guest == spec.gateway:
        found.append(f"ip daddr {spec.gateway} tcp dport {spec.guest_port} jump counted")
    if spec.nameserver == spec.gateway:
        found += [f"ip daddr {spec.gateway} {kind} dport {DNS_PORT} jump counted" for kind in ("udp", "tcp")]
    return found


def _served_elsewhere(spec: Spec) -> list[str]:
    """What is open to guests although its address would be blocked; by the address that the guest wrote."""
    found = []
    if spec.guest not in spec.subnet:
        found.append(_pinhole(spec.guest, "tcp", spec.guest_port))
    if spec.nameserver is not None and spec.nameserver not in spec.subnet:
        found += [_pinhole(spec.nameserver, kind, DNS_PORT) for kind in ("udp", "tcp")]
    return found


def _pinhole(address: IPv4Address, kind: str, port: int) -> str:
    return f"ip daddr {address} ct original ip daddr {address} {kind} dport {port} jump counted"


def _render_bridge(spec: Spec) -> str:
    """Between ports, nothing but what goes to a daemon or a name server that is itself on the bridge."""
    if spec.by_bridge:
        selected = [f'meta ibrname "{spec.bridge}" jump between']
    else:
        # By the addresses, which nobody else of this host has, except on the bridges of firewalls, all of whose frames
        # pass a port of this name; what is neither IPv4 nor ARP is then not seen.
        selected = [
            *(f'{end} "{FIREWALL_PORTS}" accept' for end in ("iifname", "oifname")),
            f"ether type ip ip saddr {spec.subnet} ip daddr {spec.subnet} jump between",
            f"ether type arp arp saddr ip {spec.subnet} arp daddr ip {spec.subnet} jump between",
        ]
    return f"""\
table bridge {TABLE} {{
	chain between {{
{_lines(_served_beside(spec))}		drop
	}}

	chain forward {{
		type filter hook forward priority -300; policy accept;
{_lines(selected)}	}}
}}
"""


def _served_beside_routed(spec: Spec) -> list[str]:
    """Where the kernel shows bridged packets to the family inet as well (br_netfilter), they must pass there too."""
    beside = _beside(spec)
    found = [f'oifname "{spec.bridge}" ip daddr {address} {kind} dport {port} accept' for address, kind, port in beside]
    if beside:
        found.append(f'oifname "{spec.bridge}" ct direction reply ct state established accept')
    return found


def _served_beside(spec: Spec) -> list[str]:
    beside = _beside(spec)
    found = []
    for address in sorted({each[0] for each in beside}):
        found += [f"ether type arp arp {end} ip {address} accept" for end in ("saddr", "daddr")]
    for address, kind, port in beside:
        found += [
            f"ether type ip ip daddr {address} {kind} dport {port} accept",
            f"ether type ip ip saddr {address} {kind} sport {port} accept",
        ]
    return found


def _beside(spec: Spec) -> list[tuple[IPv4Address, str, int]]:
    """What other machines on the bridge serve to guests."""
    served = [(spec.guest, "tcp", spec.guest_port)]
    if spec.nameserver is not None:
        served += [(spec.nameserver, kind, DNS_PORT) for kind in ("udp", "tcp")]
    return [each for each in served if each[0] in spec.subnet and each[0] != spec.gateway]


def _lines(rules: list[str]) -> str:
    return "".join(f"\t\t{each}\n" for each in rules)
