"""Memory of machines that were booted once, kept to begin others with: read-only, and complete or absent."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentlab.backends.qemu import memory_file
from agentlab.backends.qemu.command import Shape, fingerprint
from agentlab.backends.qemu.image import BootImage
from agentlab.backends.qemu.layout import read_note
from agentlab.base.files import remove_tree, sync_directory, write_atomic
from agentlab.base.tasks import in_thread

log = logging.getLogger(__name__)

VERSION = 2  # of how memory is prepared; raise it when memory that was prepared before no longer fits
KEPT_MAX = 8  # kinds of machine whose memory is kept on disk
LOADED_MAX = 4  # kinds whose memory is held ready
NAME_LENGTH = 24
RECORD, MEMORY, STATE, BASE, DISK, BLANK, KERNEL, INITRD = (
    "record.json", "memory", "state", "base.qcow2", "disk.qcow2", "blank.qcow2", "kernel", "initrd",
)  # fmt: skip
_Identity = tuple[int, int, int, int]
_SIZED = (MEMORY, STATE, BASE, DISK, BLANK, KERNEL, INITRD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """All that decides whether saved memory fits a machine.  Equal kinds have equal keys."""

    image: str  # digest
    shape: Shape
    disk_bytes: int
    qemu: str  # its whole version text
    processor: str  # what the host's processor can, where guests see it; empty under emulation
    command_line: str

    @property
    def key(self) -> str:
        """SHA-256 in hexadecimal."""
        content = asdict(self) | {"version": VERSION, "devices": fingerprint(self.shape, self.command_line)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def kind_of(image: BootImage, shape: Shape, disk_bytes: int, qemu: str, processor: str) -> Kind:
    """What saved memory has to fit, for a machine from this image."""
    return Kind(
        image=image.digest,
        shape=shape,
        disk_bytes=disk_bytes,
        qemu=qemu,
        processor=processor if shape.accelerator == "kvm" else "",
        command_line=image.command_line,
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """One machine's saved memory, with the disk that belongs to it."""

    folder: Path
    bare: bool = False  # its state is that of the devices alone, without what tells QEMU's settings
    own: bool = False  # it is the sandbox's own: whoever wakes up is who fell asleep

    def file(self, name: str) -> Path:
        """One of the names above."""
        return self.folder / name


class Shelf:
    """The folder of all of them.  Several installations may share it: what is there is complete and never changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: OrderedDict[_Identity, int] = OrderedDict()

    def place(self, kind: Kind) -> Path:
        """Where the memory of this kind lies, or would."""
        return self._folder / kind.key[:NAME_LENGTH]

    def find(self, kind: Kind) -> Prepared | None:
        """What fits, if it is there and unharmed; what is harmed is logged."""
        folder = self.place(kind)
        if not folder.is_dir():
            return None
        record = read_note(folder / RECORD)
        if (fault := _fault(folder, record, kind)) is not None:
            log.warning("prepared memory cannot be used", extra={"folder": str(folder), "cause": fault})
            return None
        os.utime(folder)
        return Prepared(folder)

    def admit(self, scratch: Path, kind: Kind) -> Prepared:
        """Take in what was made in `scratch`, in one rename; durable on return.  Raises OSError."""
        for name in _SIZED:
            file = scratch / name
            os.chown(file, 0, 0)
            file.chmod(0o444)
            _sync(file)
        sizes = {name: (scratch / name).stat().st_size for name in _SIZED}
        record = {"key": kind.key, "qemu": kind.qemu, "image": kind.image, "sizes": sizes}
        write_atomic(scratch / RECORD, json.dumps(record).encode(), 0o444)
        folder = self.place(kind)
        self.drop(Prepared(folder))
        remove_tree(folder)
        scratch.rename(folder)
        sync_directory(self._folder)
        return Prepared(folder)

    async def memory(self, prepared: Prepared) -> int:
        """A descriptor of the memory, sealed.  It stays ours, until `close` or until others were asked for more."""
        identity = _identity(prepared)
        held = self._loaded.get(identity)
        if held is None:
            held = await in_thread(lambda: memory_file.load(prepared.file(MEMORY)))
            self.hold(prepared, held)
        self._loaded.move_to_end(identity)
        return held

    def hold(self, prepared: Prepared, descriptor: int) -> None:
        """Keep this descriptor as the memory of `prepared`, which it must equal."""
        self.drop(prepared)
        self._loaded[_identity(prepared)] = descriptor
        while len(self._loaded) > LOADED_MAX:
            os.close(self._loaded.popitem(last=False)[1])

    def drop(self, prepared: Prepared) -> None:
        """Hold its memory no longer; quiet if there is none."""
        try:
            held = self._loaded.pop(_identity(prepared), None)
        except FileNotFoundError:
            return
        if held is not None:
            os.close(held)

    def prune(self, qemu: str) -> None:
        """Forget what no present QEMU can load, and of the rest what was not used for longest.  Raises OSError.

        Sandboxes that were made from it have their own names for what they need of it.
        """
        found: list[tuple[float, Path]] = []
        for folder in self._folder.iterdir():
            record = read_note(folder / RECORD)
            if folder.name.startswith(".") or record is None:
                continue
            if record.get("qemu") != qemu:
                self._remove(folder)
            else:
                found.append((folder.stat().st_mtime, folder))
        for _, folder in sorted(found)[:-KEPT_MAX]:
            self._remove(folder)

    def close(self) -> None:
        """Let go of what is held in memory."""
        while self._loaded:
            os.close(self._loaded.popitem()[1])

    def _remove(self, folder: Path) -> None:
        self.drop(Prepared(folder))
        remove_tree(folder)


def _identity(prepared: Prepared) -> _Identity:
    """Tells the file itself, under whatever name, from any other that ever was."""
    found = prepared.file(MEMORY).stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _fault(folder: Path, record: dict[str, Any] | None, kind: Kind) -> str | None:
    if record is None:
        return "it has no readable record"
    if record.get("qemu") != kind.qemu:
        return f"it was saved by QEMU {record.get('qemu')}, and this is {kind.qemu}"
    if record.get("key") != kind.key:
        return "it was saved by another kind of machine"
    sizes = record.get("sizes")
    for name in _SIZED:
        try:
            found = (folder / name).stat()
        except OSError as error:
            return f"{name}: {error.strerror}"
        if not isinstance(sizes, dict) or sizes.get(name) != found.st_size:
            return f"{name} has {found.st_size} bytes, not as many as were written"
        if found.st_mode & 0o222 or found.st_uid != 0:
            return f"{name} could have been changed by others"
    return None


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
