"""Storages and their volumes: what each type can, how volumes are named, which one stands upon which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.units import GIB

FILE_TYPES = frozenset({"dir", "nfs", "cifs", "btrfs", "cephfs"})
LINKING = FILE_TYPES | {"lvmthin", "zfspool", "rbd"}  # types that can make linked clones; on file types only qcow2
SNAPSHOTTING = frozenset({"lvmthin", "zfspool", "rbd"})
FOLDERS = {"iso": "template/iso", "vztmpl": "template/cache", "import": "import", "snippets": "snippets"}
CLOUDINIT_BYTES = 4 << 20
SHARE_USED = 0.13


@dataclass(slots=True, kw_only=True)
class Volume:
    """One image or file.  `own` is its name without what it stands upon; `parent` the `own` of its base."""

    own: str
    content: str
    format: str
    size: int
    ctime: int
    vmid: int | None = None
    parent: str | None = None
    used: int = 0
    snapshots: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name within the storage: a linked clone's begins with its base's."""
        return self.own if self.parent is None else f"{self.parent}/{self.own}"

    @property
    def is_base(self) -> bool:
        """Whether this is a template's volume, which does not change."""
        return self.own.rpartition("/")[2].startswith("base-")


@dataclass(slots=True, kw_only=True)
class Store:
    """One storage of the cluster.  `folder`: where its files really lie, if they do.

    A storage that is not shared has volumes of its own on every node.
    """

    name: str
    type: str
    content: list[str]
    shared: bool = False
    path: str | None = None
    total: int = 252 * GIB
    nodes: frozenset[str] | None = None
    folder: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    volumes: dict[str, dict[str, Volume]] = field(default_factory=dict)  # node, or "" → own name → volume

    @property
    def keeps_files(self) -> bool:
        """Whether volumes are files."""
        return self.type in FILE_TYPES

    def on(self, node: str) -> dict[str, Volume]:
        """The volumes that a node sees."""
        return self.volumes.setdefault("" if self.shared else node, {})

    def used(self, node: str) -> int:
        """Bytes that are taken, by rule of thumb for what was there before."""
        return int(self.total * SHARE_USED) + sum(volume.used for volume in self.on(node).values())

    def extension(self, kind: str) -> str:
        """What volumes of a format are called."""
        return f".{kind}" if self.keeps_files else ""

    def default_format(self) -> str:
        """The format of new volumes unless another is wanted."""
        return "raw"

    def free_name(self, node: str, vmid: int, extension: str, prefix: str = "vm") -> str:
        """The next disk name that no volume of this VM has, in use or not."""
        taken = {volume.own.rpartition("/")[2].partition(".")[0].partition("-")[2] for volume in self.on(node).values()}
        number = next(n for n in range(1000) if f"{vmid}-disk-{n}" not in taken)
        return self.own_name(vmid, f"{prefix}-{vmid}-disk-{number}{extension}")

    def own_name(self, vmid: int, file: str) -> str:
        """A volume's name: with the VM's folder in front where volumes are files."""
        return f"{vmid}/{file}" if self.keeps_files else file

    def volid(self, volume: Volume) -> str:
        """The id of a volume in configs and lists."""
        return f"{self.name}:{volume.name}"

    def file(self, node: str, volume: Volume) -> str:
        """The path that messages name."""
        if not self.keeps_files:
            return f"/dev/{self.name}/{volume.own}"
        part = volume.own if volume.content in FOLDERS else f"images/{volume.own}"
        for content, place in FOLDERS.items():
            if volume.content == content:
                part = f"{place}/{volume.own.partition('/')[2]}"
        return f"{self.path}/{part}"

    def real(self, node: str, volume: Volume) -> Path | None:
        """Where its file really lies, if it does."""
        if self.folder is None:
            return None
        base = self.folder if self.shared else self.folder / node
        path = base / Path(self.file(node, volume)).relative_to(self.path or "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def find(self, node: str, name: str) -> Volume | None:
        """The volume of this name within the storage, with or without its base in front."""
        found = self.on(node).get(name)
        if found is not None:
            return found
        return next((volume for volume in self.on(node).values() if volume.name == name), None)

    def clones_of(self, node: str, base: Volume) -> Iterator[Volume]:
        """What stands upon a volume."""
        return (volume for volume in self.on(node).values() if volume.parent == base.own)

    def can_link(self, volume: Volume) -> bool:
        """Whether linked clones of this volume can be made here."""
        if not volume.is_base:
            return False
        return volume.format == "qcow2" if self.keeps_files else self.type in LINKING

    def can_snapshot(self, volume: Volume) -> bool:
        """Whether this volume can have snapshots here."""
        return volume.format == "qcow2" if self.keeps_files else self.type in SNAPSHOTTING

    def remove(self, node: str, volume: Volume) -> None:
        """Take a volume away.  Raises Refused while linked clones stand upon it."""
        if volume.is_base and any(self.clones_of(node, volume)):
            raise Refused(f"base volume '{self.volid(volume)}' is still in use by linked cloned")
        self.on(node).pop(volume.own, None)
        path = self.real(node, volume)
        if path is not None:
            path.unlink(missing_ok=True)

    def renamed(self, node: str, volume: Volume, own: str) -> Volume:
        """Give a volume another name and owner's folder; its file moves along."""
        before = self.real(node, volume)
        self.on(node).pop(volume.own)
        volume.own = own
        self.on(node)[own] = volume
        after = self.real(node, volume)
        if before is not None and after is not None:
            before.replace(after)
        return volume

    def row(self, volume: Volume) -> dict[str, Any]:
        """How the list of contents shows a volume."""
        row = {
            "content": volume.content,
            "ctime": volume.ctime,
            "format": volume.format,
            "size": volume.size,
            "volid": self.volid(volume),
        }
        if volume.content in ("images", "rootdir"):
            parent = None if volume.parent is None else f"../{volume.parent}" if self.keeps_files else volume.parent
            row |= {"parent": parent, "used": volume.used, "vmid": volume.vmid}
        return row
