"""Finished VM images on disk, each in a folder that appears in one rename."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from agentlab.base.files import make_directory, remove_tree, sync_directory, write_atomic
from agentlab.base.process import run
from agentlab.errors import ImageUnusable
from agentlab.model.ids import Digest
from agentlab.templates.layers import NAME_LENGTH, PARTIAL, SYNC_S_MAX, Layers
from agentlab.templates.vm_layer import Variant, own_layers

log = logging.getLogger(__name__)

MARK = "agentlab-vm-image-1"
RECORD = "image.json"
DISK, KERNEL, INITRD = "disk.qcow2", "vmlinuz", "initrd"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmImage:
    """A bootable machine, read-only: sandboxes write into overlays on `disk`."""

    digest: Digest  # of the content: two builds of one template have two unless they are equal to the byte
    template: Digest
    variant: Variant
    disk: Path  # qcow2: the whole disk is ext4 (direct), or it has one partition (firmware)
    kernel: Path
    initrd: Path
    command_line: str  # for a direct boot
    disk_bytes: int  # as a guest sees it; little of it is free
    guest_version: str
    guest_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What is kept beside an image.  `layers` are those that only the image has; sizes are of files, in bytes."""

    mark: str
    key: str  # of what it was made from
    digest: str
    template: str
    variant: Variant
    layers: tuple[str, ...]
    kernel_version: str
    command_line: str
    guest_version: str
    guest_digest: str
    guest_protocol: int
    disk_bytes: int
    sizes: dict[str, int]
    disk_sha256: str
    built_at: float
    build_s: float


class Images:
    """The image directory of an installation.  An image is there completely or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[ImageRecord]:
        """Every record that can be read, the newest first; a damaged one is logged and passed over."""
        files = [each for each in sorted(self.folder.glob(f"*/{RECORD}")) if each.parent.suffix != PARTIAL]
        found = [self._read(each) for each in files]
        return sorted((each for each in found if each is not None), key=lambda record: -record.built_at)

    def image(self, record: ImageRecord) -> VmImage:
        """Where its files lie.  ImageUnusable if one is missing or has another size than it was built with."""
        folder = self.path(record)
        for name, size in record.sizes.items():
            try:
                found = (folder / name).stat().st_size
            except OSError as error:
                raise ImageUnusable(path=folder, cause=f"{name}: {error.strerror}") from error
            if found != size:
                raise ImageUnusable(path=folder, cause=f"{name} has {found} bytes and was built with {size}")
        return VmImage(
            digest=Digest(record.digest),
            template=Digest(record.template),
            variant=record.variant,
            disk=folder / DISK,
            kernel=folder / KERNEL,
            initrd=folder / INITRD,
            command_line=record.command_line,
            disk_bytes=record.disk_bytes,
            guest_version=record.guest_version,
            guest_digest=record.guest_digest,
        )

    def path(self, record: ImageRecord) -> Path:
        """The folder of an image."""
        return self.folder / record.digest[:NAME_LENGTH]

    def begin(self, key: str) -> Path:
        """A fresh scratch folder; what an earlier try left is removed."""
        make_directory(self.folder, 0o755)
        scratch = self.folder / (key[:NAME_LENGTH] + PARTIAL)
        remove_tree(scratch)
        return make_directory(scratch, 0o700)

    async def commit(self, scratch: Path, record: ImageRecord) -> None:
        """Make a finished scratch folder the image: durable on return, and in one rename."""
        for name in record.sizes:
            (scratch / name).chmod(0o444)
        write_atomic(scratch / RECORD, json.dumps(asdict(record), indent=1).encode() + b"\n", 0o444)
        scratch.chmod(0o755)
        await run(["sync", "-f", str(scratch)], timeout_s=SYNC_S_MAX)
        target = self.path(record)
        if target.exists():  # the same content, whose record was unreadable or whose files were harmed
            self._discard(target)
        scratch.rename(target)
        sync_directory(self.folder)

    def remove(self, record: ImageRecord) -> int:
        """Remove an image; returns the bytes that became free."""
        freed = sum(file.stat().st_blocks * 512 for file in self.path(record).iterdir())
        self._discard(self.path(record))
        return freed

    async def remove_of(self, template: Digest, layers: Layers) -> int:
        """Remove all images of a template, and the layers that only they had; returns the bytes that became free."""
        freed, own = 0, list(own_layers(template, platform.machine()))
        for record in self.all():
            if record.template == template:
                own += [Digest(each) for each in reversed(record.layers)]
                freed += self.remove(record)
        return freed + await layers.remove(dict.fromkeys(own))

    def remove_partial(self) -> None:
        """Remove what killed builds and removals left behind."""
        for each in sorted(self.folder.glob(f"*{PARTIAL}")):
            remove_tree(each)

    def _discard(self, folder: Path) -> None:
        # First out of sight in one step: an image is complete or absent, also when this is interrupted.
        gone = self.folder / f"{folder.name}.gone{PARTIAL}"
        remove_tree(gone)
        folder.rename(gone)
        remove_tree(gone)

    def _read(self, file: Path) -> ImageRecord | None:
        try:
            record = parse_record(file.read_bytes())
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("image record is damaged", extra={"path": str(file), "cause": str(error)})
            return None
        if self.path(record) != file.parent:
            log.warning("image record lies in a foreign folder", extra={"path": str(file)})
            return None
        return record


def parse_record(content: bytes) -> ImageRecord:
    """A record as it is kept on disk.  ValueError, TypeError or KeyError if it is something else."""
    found = json.loads(content)
    if found["mark"] != MARK:
        raise ValueError(f"its mark is {found['mark']!r}, not {MARK!r}")
    found["layers"] = tuple(str(each) for each in found["layers"])
    found["sizes"] = {str(name): int(size) for name, size in found["sizes"].items()}
    if not {DISK, KERNEL, INITRD} <= found["sizes"].keys():
        raise ValueError("it does not name all files of an image")
    return ImageRecord(**found)
