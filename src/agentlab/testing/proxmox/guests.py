"""What stands behind a started VM: the promises of whoever runs guests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agentlab.testing.proxmox.cluster import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestNic:
    """One NIC as configured; `firewall`: the VM's rules apply to it."""

    key: str
    model: str
    mac: str
    bridge: str | None
    firewall: bool
    tag: int | None = None
    link_down: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """One drive as configured; `path` is None where the storage keeps no real files."""

    key: str
    volid: str
    path: Path | None
    format: str
    size_bytes: int
    cdrom: bool
    serial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMachine:
    """All that a VM is started with.  `smbios` has its texts decoded.  `state`: the memory to wake up with."""

    vmid: int
    node: str
    name: str
    cores: int
    memory_bytes: int
    smbios: Mapping[str, str]
    nics: tuple[GuestNic, ...]
    disks: tuple[GuestDisk, ...]
    agent: bool
    config: Mapping[str, Any]
    state: Path | None = None


class AgentAbsent(Exception):
    """Nobody answers on the agent's channel."""


class AgentFailed(Exception):
    """The agent answered with an error; the text is its description."""


class GuestFailed(Exception):
    """The guest cannot be started; the text becomes the task's exit status."""


class GuestHost(Protocol):
    """Runs guests, and makes the files of their disks where a storage has a folder.

    Methods that concern a running guest are called with the VM's config locked, as Proxmox VE does.
    """

    async def opened(self, cluster: Cluster) -> None:
        """The cluster begins.  It is to be told of guests that end by themselves, by `powered_off`."""
        ...

    async def closed(self) -> None:
        """The cluster ends: nothing of its guests is left, in processes, mounts or network."""
        ...

    async def started(self, machine: GuestMachine) -> None:
        """Start it.  Raises GuestFailed."""
        ...

    async def stopped(self, vmid: int) -> None:
        """Switch it off at once; nothing happens if it is not there."""
        ...

    async def shut_down(self, vmid: int, timeout_s: float) -> bool:
        """Ask it to switch itself off; whether it did within the time."""
        ...

    async def reset(self, vmid: int) -> None:
        """Press the button."""
        ...

    async def paused(self, vmid: int) -> None:
        """Stop its processors."""
        ...

    async def resumed(self, vmid: int) -> None:
        """Let its processors go on."""
        ...

    async def plugged(self, vmid: int, disk: GuestDisk) -> None:
        """One more disk, while it runs.  Raises GuestFailed."""
        ...

    async def unplugged(self, vmid: int, key: str) -> None:
        """A disk is taken away while it runs.  Raises GuestFailed if the guest does not let go of it."""
        ...

    async def rewired(self, vmid: int, nic: GuestNic) -> None:
        """A card of the same model and address has other settings, while the guest runs."""
        ...

    async def saved(self, vmid: int, state: Path | None) -> None:
        """Write its memory to `state`; it goes on."""
        ...

    async def agent(self, vmid: int, command: str, arguments: Mapping[str, Any]) -> Any:
        """Ask its agent: a command of the guest agent's protocol and the value that it returns.

        Raises AgentAbsent and AgentFailed.
        """
        ...

    async def disk_made(self, path: Path, kind: str, size_bytes: int) -> None:
        """Make an empty image."""
        ...

    async def disk_linked(self, base: Path, path: Path) -> None:
        """Make a qcow2 image upon another, which will not change."""
        ...

    async def disk_copied(self, source: Path, source_kind: str, path: Path, kind: str) -> None:
        """Make an independent image with the same contents."""
        ...

    async def disk_grown(self, path: Path, kind: str, size_bytes: int) -> None:
        """Make an image larger; its guest may run."""
        ...

    async def disk_kept(self, path: Path, name: str) -> None:
        """Make a snapshot inside an image."""
        ...

    async def disk_returned(self, path: Path, name: str) -> None:
        """Take an image back to a snapshot."""
        ...

    async def disk_dropped(self, path: Path, name: str) -> None:
        """Remove a snapshot from an image."""
        ...
