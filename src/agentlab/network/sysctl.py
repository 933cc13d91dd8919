"""Kernel settings of the network namespace of the calling thread."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/proc/sys/net")

FORWARDING = "ipv4/ip_forward"


def read(name: str) -> str | None:
    """The value of a setting such as `ipv4/ip_forward`; None where the kernel has none of that name."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> None:
    """Change a setting; quiet where the kernel has none of that name.  OSError if it may not be changed."""
    try:
        (_ROOT / name).write_text(value)
    except FileNotFoundError:
        pass


def of_bridge(bridge: str) -> dict[str, str]:
    """What must hold on our bridge: no IPv6, nothing accepted that could bend a route, forwarding on."""
    ipv4 = {
        "accept_redirects": "0",
        "accept_source_route": "0",
        "arp_ignore": "1",
        "forwarding": "1",
        "proxy_arp": "0",
        "route_localnet": "0",
        "rp_filter": "1",
        "send_redirects": "0",
    }
    return {f"ipv4/conf/{bridge}/{key}": value for key, value in ipv4.items()} | without_ipv6(bridge)


def without_ipv6(interface: str) -> dict[str, str]:
    """IPv6 off on an interface; `all` and `default` stand for every one of the namespace."""
    return {f"ipv6/conf/{interface}/disable_ipv6": "1"}


def differing(wanted: dict[str, str]) -> dict[str, str]:
    """Of these settings, those that exist and are otherwise."""
    return {name: value for name, value in wanted.items() if read(name) not in (None, value)}
