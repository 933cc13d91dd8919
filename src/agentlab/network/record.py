"""What the network must remember across restarts: the subnet it chose, and what it found on the host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from agentlab.base.files import write_atomic

FILE_NAME = "network.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The file `network.json` in the state directory."""

    subnet: IPv4Network | None = None
    forwarding_before: str | None = None  # the host's ip_forward before we changed it; None if we did not


def load(state_dir: Path) -> Record:
    """The record; an empty one where there is none or it cannot be read, for it can be found out again."""
    try:
        found = json.loads((state_dir / FILE_NAME).read_text())
        subnet = IPv4Network(found["subnet"]) if found.get("subnet") else None
        before = found.get("forwarding_before")
        return Record(subnet=subnet, forwarding_before=before if before in ("0", "1") else None)
    except (FileNotFoundError, ValueError, AttributeError):
        return Record()


def save(state_dir: Path, record: Record) -> None:
    """Write the record, durable on return."""
    content = {"subnet": str(record.subnet) if record.subnet else None, "forwarding_before": record.forwarding_before}
    write_atomic(state_dir / FILE_NAME, json.dumps(content).encode() + b"\n")


def forget(state_dir: Path) -> None:
    """Remove the record."""
    (state_dir / FILE_NAME).unlink(missing_ok=True)
