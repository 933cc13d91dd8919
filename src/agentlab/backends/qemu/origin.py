"""What a sandbox's disk stands on: named in its own folder, so that it outlives the image and the prepared memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from agentlab.backends.qemu import disk, layers
from agentlab.backends.qemu.image import BootImage
from agentlab.backends.qemu.layout import Layout, read_note, write_note
from agentlab.backends.qemu.prepared import BASE, BLANK, DISK, Prepared
from agentlab.model.ids import Digest, SandboxId

KERNEL, INITRD = "kernel", "initrd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How to begin with this disk."""

    image: Digest
    command_line: str
    disk_bytes: int
    key: str  # of the prepared memory that fits it while it has not run; empty: none does


def lay(
    layout: Layout, sandbox: SandboxId, image: BootImage, prepared: Prepared | None, *, key: str, disk_bytes: int
) -> Origin:
    """Put everything but the disk itself into the sandbox's folder.  Raises OSError."""
    home = layout.home(sandbox)
    stands_on = (image.disk,) if prepared is None else (prepared.file(BASE), prepared.file(DISK))
    layers.share(stands_on, home)
    disk.share(image.kernel, home / KERNEL)
    disk.share(image.initrd, home / INITRD)
    origin = Origin(
        image=image.digest,
        command_line=image.command_line,
        disk_bytes=disk_bytes,
        key=key if prepared is not None else "",
    )
    write_note(layout.origin(sandbox), asdict(origin))
    return origin


async def make_disk(layout: Layout, sandbox: SandboxId, origin: Origin, prepared: Prepared | None, uid: int) -> None:
    """The disk, empty, which appears complete.  Raises OSError, ProgramFailed."""
    target = layout.disk(sandbox)
    if prepared is not None:
        disk.copy(prepared.file(BLANK), target, uid)
        return
    (await layers.lay_next(layout.home(sandbox), origin.disk_bytes, uid)).replace(target)


def origin_of(layout: Layout, sandbox: SandboxId) -> Origin:
    """What was noted when the disk was made.  ValueError if it cannot be read."""
    try:
        return Origin(**(read_note(layout.origin(sandbox)) or {}))
    except TypeError as error:
        raise ValueError(f"the note about the disk of {sandbox} cannot be read") from error
