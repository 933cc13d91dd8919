"""Spec → the files that make an agent bridge last beyond a restart of the host.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentlab.network import sysctl
from agentlab.network.host_network import rules
from agentlab.network.host_network.spec import MARK, TABLE, Spec, routing

FOLDER = Path("/etc/agentlab/host-network")
RULES = FOLDER / "rules.nft"
RECORD = FOLDER / "record.json"
INTERFACES = Path("/etc/network/interfaces.d/agentlab")
SYSCTL = Path("/etc/sysctl.d/60-agentlab-host-network.conf")
UNIT_NAME = "agentlab-host-network.service"
UNIT = Path("/etc/systemd/system") / UNIT_NAME
DROP_IN = Path("/etc/systemd/system/nftables.service.d/agentlab.conf")
ENABLED = Path("/etc/systemd/system/multi-user.target.wants") / UNIT_NAME  # a link to the unit

HEAD = "# Written by `agentlab setup host-network`, which replaces it; `--undo` takes it away."

# Every path that may be ours, in the order in which they are made; the bridge's own comes last, behind its rules.
FILES = (RULES, SYSCTL, UNIT, DROP_IN, INTERFACES)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What a file holds, and its mode."""

    content: str
    mode: int = 0o644


def render(spec: Spec) -> Mapping[Path, File]:
    """All files but the record."""
    made = {
        RULES: f"{HEAD}\n\n{rules.render(spec)}",
        SYSCTL: _sysctl(spec),
        UNIT: _unit(spec),
        DROP_IN: _drop_in(),
        INTERFACES: _interfaces(spec),
    }
    assert tuple(made) == FILES
    return {path: File(content=content) for path, content in made.items()}


def is_ours(content: str) -> bool:
    """Whether a file at one of these paths was written by us."""
    return content.startswith(HEAD)


def settings(spec: Spec) -> dict[str, str]:
    """Kernel settings, by the names that `sysctl.read` takes.

    Only packets that arrive on the bridge or on the uplink are forwarded: `ip_forward` would make the host a router
    between all its networks.
    """
    return sysctl.of_bridge(spec.bridge) | {f"ipv4/conf/{spec.uplink}/forwarding": "1"}


def _interfaces(spec: Spec) -> str:
    # Read by ifupdown2 and by ifupdown with bridge-utils; the alias is a word of ifupdown2 only.  Rules come first: if
    # they do not load, ifupdown makes no bridge; ifupdown2 goes on, so the bridge is put down again without them.
    # `ip rule add` fails where the rule stands already.
    guarded = "".join(f"\tpost-up ip rule add {' '.join(each.words)} 2>/dev/null || true\n" for each in routing(spec))
    undone = "".join(f"\tpre-down ip rule del {' '.join(each.words)} 2>/dev/null || true\n" for each in routing(spec))
    return f"""\
{HEAD}
# The bridge that agents' sandboxes are on.  It has no port of its own; guests reach the internet through {spec.uplink}.

auto {spec.bridge}
iface {spec.bridge} inet static
	address {spec.address}
	bridge-ports none
	bridge-stp off
	bridge-fd 0
	hwaddress {spec.mac}
	pre-up nft -f {RULES}
	post-up nft list table inet {TABLE} >/dev/null || ip link set dev {spec.bridge} down
	post-up ip link set dev {spec.bridge} alias "{MARK}"
	post-up sysctl -q -e -p {SYSCTL}
{guarded}{undone}"""


def _sysctl(spec: Spec) -> str:
    # With slashes, because an interface's name may hold a dot; the hyphen, because at boot there is no bridge yet.
    lines = "".join(f"-net/{name} = {value}\n" for name, value in settings(spec).items())
    return f"{HEAD}\n# Forwarding between the agent bridge and the uplink alone, and no IPv6 on the bridge.\n\n{lines}"


def _unit(spec: Spec) -> str:
    return f"""\
{HEAD}
[Unit]
Description=AgentLab: the rules of the agent bridge {spec.bridge}
DefaultDependencies=no
After=local-fs.target systemd-modules-load.service nftables.service
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {RULES}
ExecReload=/usr/sbin/nft -f {RULES}
# Nothing undoes the rules when it stops: the bridge is still there.

[Install]
WantedBy=multi-user.target
"""


def _drop_in() -> str:
    return f"""\
{HEAD}
# That service empties the whole rule set when it starts, reloads or stops: ours is put back at once.
[Service]
ExecStartPost=-/usr/sbin/nft -f {RULES}
ExecReload=-/usr/sbin/nft -f {RULES}
ExecStopPost=-/usr/sbin/nft -f {RULES}
"""
