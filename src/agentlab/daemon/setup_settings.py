"""The settings that a set-up ends with, as text to put into agentlabd.yaml.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.proxmox.privileges import Grantee

UNKNOWN = "# fill in:"  # what cannot be seen from the cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggested:
    """What the settings are made of; `None` is left for a person to fill in."""

    endpoints: Sequence[str]
    fingerprints: Sequence[str]
    ca_file: Path | None
    token_file: Path
    grantee: Grantee
    templates: Mapping[str, int]
    subnet: str | None = None
    addresses: str | None = None
    guest_address: str | None = None


def render(suggested: Suggested) -> str:
    """YAML for `backends.proxmox`."""
    grantee = suggested.grantee
    lines = ["backends:", "  proxmox:", _list("endpoints", suggested.endpoints, "https://pve1.example.org:8006")]
    if suggested.ca_file is not None:
        lines.append(f"    ca_file: {_quoted(str(suggested.ca_file))}")
    else:
        lines.append(_list("fingerprints", suggested.fingerprints, "as `pvenode cert info` shows it"))
    lines += [
        f"    token_file: {_quoted(str(suggested.token_file))}",
        f"    pool: {_quoted(grantee.pool)}",
        *[f"    storage: {_quoted(each)}" for each in grantee.storages],
        *[f"    uploads: {_quoted(each)}" for each in grantee.uploads],
        f"    bridge: {_quoted(grantee.bridge)}",
        f"    zone: {_quoted(grantee.zone)}",
    ]
    if suggested.templates:
        lines += ["    templates:", *(f"      {_quoted(name)}: {vmid}" for name, vmid in suggested.templates.items())]
    lines += [
        "    network:",
        _value("      subnet", suggested.subnet, "the network of the bridge, such as 10.80.0.0/24"),
        _value("      addresses", suggested.addresses, "what sandboxes may have of it: 10.80.0.100-10.80.0.199"),
        _value("    guest_address", suggested.guest_address, "this machine as sandboxes reach it: 10.80.0.2:8811"),
    ]
    return "\n".join(lines) + "\n"


def _list(name: str, values: Sequence[str], example: str) -> str:
    if not values:
        return f"    {UNKNOWN} {name}: [{_quoted(example)}]"
    return f"    {name}: [{', '.join(map(_quoted, values))}]"


def _value(name: str, value: str | None, example: str) -> str:
    indent = " " * (len(name) - len(name.lstrip()))
    return f"{name}: {_quoted(value)}" if value else f"{indent}{UNKNOWN} {name.strip()}: {example}"


def _quoted(text: str) -> str:
    """As a double-quoted scalar, which stands for itself whatever it looks like."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
