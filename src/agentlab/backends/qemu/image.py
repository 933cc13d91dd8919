"""What a VM is made from, as this backend needs it; the composition root takes it from the templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentlab.model.ids import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class BootImage:
    """Files that everyone may read and nobody may write; the guest program is inside."""

    digest: Digest
    disk: Path  # qcow2
    kernel: Path
    initrd: Path
    command_line: str
    disk_bytes: int  # as a guest sees it
    guest_version: str
