"""How much of the host a sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY_BYTES_MIN = 64 << 20
DISK_BYTES_MIN = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Hard limits, enforced by the kernel."""

    memory_bytes: int = 4 << 30
    cpus: float = 2.0
    pids_max: int = 2048
    disk_bytes: int = 20 << 30
    secrets_bytes: int = 16 << 20  # the tmpfs at /run/agentlab
