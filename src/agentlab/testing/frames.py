"""Frames that a hostile guest may send: honest ones, and every kind of lie about who speaks to whom.

Each bears a marker in square brackets that is found again in whatever it becomes on its way.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from agentlab.model.network import Port

BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6, VLAN, SERVICE_VLAN, LLDP, LOCAL_EXPERIMENT = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8, 0x88CC, 0x88B5
_DHCP_SERVER, _DHCP_CLIENT, _ECHO = 67, 68, 7
_ALL_NODES = "ff02::1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forger:
    """A guest at `own` that would like to be, or to reach, the sandbox at `other`."""

    own: Port
    other: Port
    gateway_mac: str
    internet: IPv4Address  # where honest packets may go
    broadcast: IPv4Address  # of the agent subnet

    def honest(self, note: str = "honest") -> bytes:
        """A datagram as the policy allows it."""
        return udp(self.own.mac, self.gateway_mac, self.own.address, self.internet, note=note)

    def addresses(self) -> dict[str, bytes]:
        """IPv4 with addresses, or targets, that are not the sandbox's to use."""
        own, other, gateway_mac, internet = self.own, self.other, self.gateway_mac, self.internet
        return {
            "another's IP": udp(own.mac, gateway_mac, other.address, internet),
            "the LAN's IP": udp(own.mac, gateway_mac, IPv4Address("192.168.50.9"), internet),
            "the gateway's IP": udp(own.mac, gateway_mac, own.gateway, internet),
            "no IP": udp(own.mac, gateway_mac, IPv4Address(0), internet),
            "another's MAC": udp(other.mac, gateway_mac, own.address, internet),
            "another's MAC and IP": udp(other.mac, gateway_mac, other.address, internet),
            "an unknown MAC": udp("02:00:00:00:00:99", gateway_mac, own.address, internet),
            "a fragment with another's IP": udp(own.mac, gateway_mac, other.address, internet, fragment=0x2000),
            "to another's MAC": udp(own.mac, other.mac, own.address, other.address),
            "to an unknown MAC": udp(own.mac, "02:00:00:00:00:99", own.address, internet),
            "to everybody": udp(own.mac, BROADCAST_MAC, own.address, IPv4Address("255.255.255.255")),
            "to the subnet": udp(own.mac, BROADCAST_MAC, own.address, self.broadcast),
            "multicast": udp(own.mac, "01:00:5e:00:00:fb", own.address, IPv4Address("224.0.0.251")),
        }

    def routed(self) -> dict[str, bytes]:
        """Honest on the link, but the host shall not route them."""
        own, gateway_mac = self.own, self.gateway_mac
        return {
            "to another through the gateway": udp(own.mac, gateway_mac, own.address, self.other.address),
            "to loopback": udp(own.mac, gateway_mac, own.address, IPv4Address("127.0.0.1")),
            "to the subnet through the gateway": udp(own.mac, gateway_mac, own.address, self.broadcast),
        }

    def services(self) -> dict[str, bytes]:
        """What a router, a switch or a DHCP server would say, and tags and protocols that nobody asked for."""
        own, other = self.own, self.other
        offer = udp(own.mac, BROADCAST_MAC, own.address, IPv4Address("255.255.255.255"), ports=_SERVER_TO_CLIENT)
        discover = udp(own.mac, BROADCAST_MAC, IPv4Address(0), IPv4Address("255.255.255.255"), ports=_CLIENT_TO_SERVER)
        spanning = b"\x42\x42\x03" + bytes(32) + b"[spanning tree]"
        return {
            "DHCP offer": offer,
            "DHCP offer to another": udp(own.mac, other.mac, own.address, other.address, ports=_SERVER_TO_CLIENT),
            "DHCP discover": discover,
            "VLAN tag": tagged(self.honest("VLAN tag"), 7),
            "priority tag": tagged(self.honest("priority tag"), 0),
            "two tags": tagged(tagged(self.honest("two tags"), 0), 0),
            "service tag": tagged(self.honest("service tag"), 7, SERVICE_VLAN),
            "router advertisement": icmpv6(own.mac, "33:33:00:00:00:01", 134, bytes(12) + b"[router]"),
            "neighbour advertisement": icmpv6(own.mac, other.mac, 136, bytes(20) + b"[neighbour]"),
            "neighbour solicitation": icmpv6(own.mac, "33:33:00:00:00:01", 135, bytes(20) + b"[solicitation]"),
            "IPv6 to the gateway": icmpv6(own.mac, self.gateway_mac, 128, bytes(4) + b"[echo 6]"),
            "spanning tree": frame("01:80:c2:00:00:00", own.mac, len(spanning), spanning),
            "spanning tree of Cisco": frame("01:00:0c:cc:cc:cd", own.mac, len(spanning), spanning),
            "LLDP": frame("01:80:c2:00:00:0e", own.mac, LLDP, b"\x02\x07\x04[lldp]"),
            "a protocol of its own": frame(other.mac, own.mac, LOCAL_EXPERIMENT, b"[experiment]"),
            "a protocol of its own to everybody": frame(BROADCAST_MAC, own.mac, LOCAL_EXPERIMENT, b"[experiment all]"),
        }

    def claims(self) -> list[bytes]:
        """ARP that says that another's address, or the gateway's, is at our MAC; gratuitous ones too."""
        own, other, gateway_mac = self.own, self.other, self.gateway_mac
        return [
            arp(own.mac, gateway_mac, own.mac, other.address, own.gateway, reply=True),
            arp(own.mac, BROADCAST_MAC, own.mac, other.address, own.gateway),
            arp(own.mac, BROADCAST_MAC, own.mac, other.address, other.address),
            arp(own.mac, BROADCAST_MAC, own.mac, other.address, other.address, reply=True),
            arp(own.mac, BROADCAST_MAC, own.mac, own.gateway, own.gateway),
            arp(own.mac, other.mac, own.mac, own.gateway, other.address, reply=True),
            arp(own.mac, gateway_mac, other.mac, other.address, own.gateway, reply=True),
            arp(other.mac, gateway_mac, other.mac, other.address, own.gateway, reply=True),
        ]


def mac_bytes(text: str) -> bytes:
    """A MAC as it stands in a frame."""
    return bytes.fromhex(text.replace(":", ""))


def frame(target: str, source: str, kind: int, body: bytes) -> bytes:
    """An Ethernet frame."""
    return mac_bytes(target) + mac_bytes(source) + struct.pack("!H", kind) + body


_Ports = tuple[int, int]
_TO_ECHO: _Ports = (4000, _ECHO)
_SERVER_TO_CLIENT: _Ports = (_DHCP_SERVER, _DHCP_CLIENT)
_CLIENT_TO_SERVER: _Ports = (_DHCP_CLIENT, _DHCP_SERVER)


def udp(
    source_mac: str,
    target_mac: str,
    source: IPv4Address,
    target: IPv4Address,
    *,
    ports: _Ports = _TO_ECHO,
    fragment: int = 0,
    note: str = "",
) -> bytes:
    """A UDP datagram, to the echo port unless told; its marker tells the four addresses."""
    payload = f"[{source_mac} {target_mac} {source} {target} {ports[1]} {fragment} {note}]".encode()
    datagram = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    length = 20 + len(datagram)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 1, fragment, 64, 17, 0, source.packed, target.packed)
    return frame(target_mac, source_mac, IPV4, head[:10] + checksum(head) + head[12:] + datagram)


def tagged(inner: bytes, vlan: int, kind: int = VLAN) -> bytes:
    """The frame with a VLAN tag before its type."""
    return inner[:12] + struct.pack("!HH", kind, vlan) + inner[12:]


def arp(
    source: str, target: str, sender_mac: str, sender: IPv4Address, wanted: IPv4Address, *, reply: bool = False
) -> bytes:
    """An ARP request or reply; it has no room for a marker."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2 if reply else 1)
    body += mac_bytes(sender_mac) + sender.packed + mac_bytes(target) + wanted.packed
    return frame(target, source, ARP, body)


def icmpv6(source_mac: str, target_mac: str, kind: int, body: bytes) -> bytes:
    """An ICMPv6 message from a link-local address to all nodes, with a right checksum and hop limit."""
    source, target = (socket.inet_pton(socket.AF_INET6, each) for each in ("fe80::1", _ALL_NODES))
    message = struct.pack("!BBH", kind, 0, 0) + body + b"\0" * (len(body) % 2)
    pseudo = source + target + struct.pack("!II", len(message), 58)
    message = message[:2] + checksum(pseudo + message) + message[4:]
    head = struct.pack("!IHBB", 6 << 28, len(message), 58, 255)
    return frame(target_mac, source_mac, IPV6, head + source + target + message)


def checksum(block: bytes) -> bytes:
    """The internet checksum of a block of even length."""
    total = sum(struct.unpack(f"!{len(block) // 2}H", block))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)


def marker(marked: bytes) -> bytes:
    """What is found again of a frame."""
    return marked[marked.rindex(b"[") : marked.rindex(b"]") + 1]
