"""The named formats of parameters: ids, names, lists, addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from agentlab.testing.proxmox.kinds import Kind, Malformed, integer, matching

SEPARATORS = re.compile(r"[,; \0]+")


def words(given: str) -> list[str]:
    """The members of a list that is separated by commas, semicolons, blanks or zero bytes."""
    return [each for each in SEPARATORS.split(given) if each]


def _whole(pattern: str, complaint: str) -> Callable[[str], object]:
    def check(given: str) -> None:
        if not re.fullmatch(pattern, given):
            raise Malformed(complaint.format(given))

    return check


def _each(check: Callable[[str], object]) -> Callable[[str], object]:
    return lambda given: [check(each) for each in words(given)]


def _network(given: str) -> None:
    try:
        ipaddress.ip_interface(given)
    except ValueError:
        raise Malformed(f"value does not look like a valid IP address or CIDR network: {given}") from None


def _address(given: str) -> None:
    try:
        ipaddress.ip_address(given)
    except ValueError:
        raise Malformed("value is not a valid IP address") from None


def _ipv4(given: str) -> None:
    if given != "dhcp":
        _cidr(given)


def _ipv6(given: str) -> None:
    if given not in ("dhcp", "auto"):
        _cidr(given)


def _cidr(given: str) -> None:
    try:
        ipaddress.ip_interface(given)
    except ValueError:
        raise Malformed("value does not look like a valid CIDR network") from None
    if "/" not in given:
        raise Malformed("value does not look like a valid CIDR network")


def _volume(given: str) -> None:
    if given in ("none", "cdrom") or given.startswith("/") or re.fullmatch(r"[a-zA-Z][\w.-]*[a-zA-Z0-9]:\S+", given):
        return
    raise Malformed(f"unable to parse volume ID '{given}'")


_CONFIG_ID = _whole(r"(?i)[a-z][a-z0-9_-]+", "invalid configuration ID '{}'")
_NODE_NAME = r"[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?"

VMID = Kind(
    type="integer",
    minimum=100,
    maximum=999_999_999,
    check=_whole(r"[1-9][0-9]{2,8}", "value does not look like a valid VM ID"),
)
NODE = Kind(check=_whole(_NODE_NAME, "value does not look like a valid node name"))
STORAGE = Kind(check=_whole(r"(?i)[a-z][a-z0-9\-_.]*[a-z0-9]", "storage ID '{}' contains illegal characters"))
CONFIG_ID = Kind(check=_CONFIG_ID)
CONFIG_IDS = Kind(check=_each(_CONFIG_ID))
SNAPSHOT = Kind(check=_CONFIG_ID, length_max=40)
DNS_NAME = Kind(check=_whole(rf"({_LABEL}\.)*{_LABEL}", "value does not look like a valid DNS name"))
TAGS = Kind(check=_each(_whole(r"(?i)[a-z0-9_][a-z0-9_\-+.]*", "invalid characters in tag")))
URL_ENCODED = Kind(check=_whole(r"[-%a-zA-Z0-9_.!~*'()]*", "invalid urlencoded string: {}"))
POOL = Kind(check=_whole(r"[A-Za-z0-9.\-_]+(/[A-Za-z0-9.\-_]+){0,2}", "pool name '{}' contains invalid characters"))
ROLE = Kind(check=_whole(r"[A-Za-z0-9.\-_]+", "role name '{}' contains invalid characters"))
USER = Kind(check=_whole(r"\S+@[A-Za-z][A-Za-z0-9.\-_]+", "value '{}' does not look like a valid user name"))
TOKEN = matching(r"[A-Za-z][A-Za-z0-9.\-_]+")
ADDRESS = Kind(check=_address)
ADDRESSES = Kind(check=_each(_address))
CIDR = Kind(check=_cidr)
NETWORK = Kind(check=_network)
NETWORK_OR_ALIAS = Kind(
    check=lambda given: None if re.fullmatch(r"(dc/|guest/)?[A-Za-z][\w-]*", given) else _network(given)
)
INTERFACE = Kind(
    check=_whole(r"(?i)[a-z][a-z0-9_]{1,20}([:.]\d+)?", "invalid network interface name '{}'"),
    length_min=2,
    length_max=20,
)
BRIDGE = Kind(check=_whole(r"[-_.\w]+", "invalid bridge ID '{}'"))
MAC = Kind(
    check=_whole(r"(?i)[a-f0-9][02468ace](:[a-f0-9]{2}){5}", "value does not look like a valid unicast MAC address")
)
SIZE = Kind(check=_whole(r"\d+(\.\d+)?[KMGT]?", "value does not look like a valid size: {}"))
IPV4_CONFIG, IPV6_CONFIG = Kind(check=_ipv4), Kind(check=_ipv6)
VOLUME = Kind(check=_volume)
DIGEST = Kind(length_max=40)
POSITION = integer(0)
FIREWALL_NAME = matching(r"[A-Za-z][A-Za-z0-9\-_]+", 64, 2)
GROUP_NAME = matching(r"[A-Za-z][A-Za-z0-9\-_]+", 18, 2)
SDN_ID = matching(r"[a-zA-Z][a-zA-Z0-9]*[a-zA-Z0-9]", 8, 2)
