"""Drives of a VM: from the text in its config to volumes, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentlab.testing.proxmox.kinds import parsed
from agentlab.testing.proxmox.options import DRIVE, OPTIONS, UNUSED
from agentlab.testing.proxmox.units import printed, size_bytes

NOT_KEPT = frozenset({"format", "import-from"})  # directions for the making of a volume
BUSES = ("ide", "scsi", "virtio", "sata", "efidisk", "tpmstate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One drive option taken apart; `file` is a volume id, `none`, `cdrom`, or `store:size` for a new volume."""

    key: str
    file: str
    settings: Mapping[str, Any]

    @property
    def cdrom(self) -> bool:
        """Whether it holds a medium that can be taken out."""
        return self.settings.get("media") == "cdrom" or self.cloudinit

    @property
    def cloudinit(self) -> bool:
        """Whether it is, or will be, the drive with the data of cloud-init."""
        return self.file.endswith(":cloudinit") or "-cloudinit" in self.file

    @property
    def storage(self) -> str:
        """The storage in front of the colon; empty without one."""
        return self.file.partition(":")[0] if ":" in self.file else ""

    @property
    def volume(self) -> str:
        """What follows the colon."""
        return self.file.partition(":")[2]

    @property
    def new_gib(self) -> float | None:
        """For `store:8`: the size of the volume to make, in GiB."""
        found = self.volume
        return float(found) if found and found.replace(".", "", 1).isdigit() else None

    @property
    def size(self) -> int:
        """Bytes as noted in the config."""
        noted = self.settings.get("size")
        return size_bytes(str(noted)) if noted else 0

    def text(self, file: str | None = None, **changes: Any) -> str:
        """The option's text, with another volume or other settings."""
        values = {name: value for name, value in self.settings.items() if name not in NOT_KEPT} | changes
        values = {name: value for name, value in values.items() if value is not None}
        return printed(values | {"file": file or self.file}, "file")


def drive(key: str, text: str) -> Drive:
    """Take one option apart."""
    values = parsed(OPTIONS[key].kind, text)
    file = str(values.pop("file"))
    if file.endswith(":cloudinit"):
        values.setdefault("media", "cdrom")
    return Drive(key=key, file=file, settings=values)


def drives(config: Mapping[str, Any]) -> Iterator[Drive]:
    """Every drive of a config, in the order in which Proxmox VE goes through them."""
    keys = [key for key in config if DRIVE.fullmatch(key)]
    order = {bus: index for index, bus in enumerate(BUSES)}
    for key in sorted(
        keys, key=lambda key: (order[key.rstrip("0123456789")], int(key.lstrip("abcdefghijklmnopqrstuvwxyz")))
    ):
        yield drive(key, str(config[key]))


def unused(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The `unusedN` options: key and volume id."""
    for key in sorted(key for key in config if UNUSED.fullmatch(key)):
        yield key, str(config[key]).partition(",")[0]


def free_unused(config: Mapping[str, Any]) -> str:
    """The first `unusedN` that is free."""
    return next(f"unused{n}" for n in range(256) if f"unused{n}" not in config)
