"""Puts one image together from finished layers, in scratch folders of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import agentlab_guest
from agentlab.base.files import make_directory, write_atomic
from agentlab.base.pyz import build_guest_pyz
from agentlab.base.tasks import in_thread
from agentlab.model.ids import Digest
from agentlab.templates import disk, firmware
from agentlab.templates.build import OnStep
from agentlab.templates.images import DISK, INITRD, KERNEL
from agentlab.templates.initrd import MODULES, build_initrd, modules_in_order
from agentlab.templates.isolation import Chamber, StepFailed, run_in
from agentlab.templates.layers import Layers
from agentlab.templates.rootfs import STAGE
from agentlab.templates.vm_layer import MARKER_PATH, Variant, command_line, system_files, system_script
from agentlab_guest.mux import PROTOCOL_MAX

SYSTEM_S_MAX = 300.0  # of putting our files upon the layers
RAW = "disk.raw"
STAGED = ("guest.pyz", "guest.json", "files", "initrd", firmware.OUT)
FIRMWARE_MODULES = ("virtio_scsi", "sd_mod")  # where others choose the bus


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestProgram:
    """What is put into an image, and how it is told from others."""

    content: bytes = field(default_factory=build_guest_pyz, repr=False)
    version: str = agentlab_guest.__version__
    protocol: int = PROTOCOL_MAX

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def marker(self) -> bytes:
        """The file beside the program that says what it is."""
        return json.dumps({"version": self.version, "digest": self.digest, "protocol": self.protocol}).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """What an image is made from: `layers` are digests, the lowest first."""

    template: Digest
    variant: Variant
    layers: tuple[Digest, ...]
    guest: GuestProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What lies in the scratch folder afterwards."""

    kernel_version: str
    disk_bytes: int
    disk_sha256: str
    sizes: dict[str, int]


async def assemble(assembly: Assembly, store: Layers, scratch: Path, chamber: Path, on_step: OnStep) -> Made:
    """Make disk, kernel and initrd in `scratch`; `chamber` is a folder that `store.begin` made.

    Raises DiskFull, StepFailed, OSError, ValueError; what lies in the folders is then worthless.
    """
    lowers = tuple(f"{Layers.name(each)}/fs" for each in reversed(assembly.layers))
    on_step("vm/system", "running", "")
    stack = Stack([store.root(each) for each in reversed(assembly.layers)])
    version = await in_thread(lambda: _export_kernel(stack, assembly.variant, scratch))
    await _settle(assembly, store.folder, lowers, scratch, chamber, on_step)
    on_step("vm/system", "done", "")

    on_step("vm/disk", "running", "")
    tree = disk.Tree(layers=store.folder, lowers=(f"{chamber.name}/fs", *lowers), mount_point=chamber / "root")
    raw = scratch / RAW
    offset = firmware.PARTITION_BYTES if assembly.variant == "firmware" else 0
    shape = await disk.measure(tree)
    disk.check_room(scratch, 2 * shape.size_bytes)  # for a while it lies there raw and as qcow2
    await disk.write_ext4(tree, raw, shape, offset)
    if await disk.read_back(raw, MARKER_PATH, offset) != assembly.guest.marker():
        raise StepFailed(f"{MARKER_PATH} on the new disk is not what was put there")
    if assembly.variant == "firmware":
        out = chamber / "provisions" / firmware.OUT
        firmware.make_bootable(raw, (out / "boot.img").read_bytes(), (out / "core.img").read_bytes())
    on_step("vm/disk", "running", "qcow2")
    await disk.to_qcow2(raw, scratch / DISK)
    raw.unlink()
    on_step("vm/disk", "done", "")
    digest = await in_thread(lambda: sha256_of(scratch / DISK))
    return Made(
        kernel_version=version,
        disk_bytes=await disk.virtual_bytes(scratch / DISK),
        disk_sha256=digest,
        sizes={name: (scratch / name).stat().st_size for name in (DISK, KERNEL, INITRD)},
    )


async def _settle(
    assembly: Assembly, layers: Path, lowers: tuple[str, ...], scratch: Path, chamber: Path, on_step: OnStep
) -> None:
    """Put our files on top of the layers, into the chamber's fs/, and seal."""
    provisions = chamber / "provisions"
    write_atomic(provisions / "guest.pyz", assembly.guest.content, 0o644)
    write_atomic(provisions / "guest.json", assembly.guest.marker(), 0o644)
    write_atomic(provisions / "initrd", (scratch / INITRD).read_bytes(), 0o644)
    make_directory(provisions / firmware.OUT, 0o755)
    folder = make_directory(provisions / "files", 0o755)
    lines = []
    for number, file in enumerate(system_files()):
        write_atomic(folder / str(number), file.content.encode(), 0o644)
        lines.append(f"install -D -o root -g root -m {file.mode:04o} -- /{STAGE}/files/{number} {file.path}")
    inside = Chamber(
        layers=layers,
        lowers=lowers,
        scratch=chamber,
        binds=tuple((provisions / name, f"{STAGE}/{name}") for name in STAGED),
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
    )
    more = [firmware.script(command_line(assembly.variant))] if assembly.variant == "firmware" else []
    script = "\n".join([*lines, system_script(), *more])
    await run_in(inside, script, chamber / "log", SYSTEM_S_MAX, lambda line: on_step("vm/system", "running", line))


class Stack:
    """Layers seen as one, for reading a few files without a mount; `roots` are top first."""

    def __init__(self, roots: list[Path]) -> None:
        self._roots = roots

    def find(self, name: str) -> Path:
        """Where the file lies that a machine on these layers would see.  FileNotFoundError."""
        for root in self._roots:
            if os.path.lexists(root / name):
                return root / name
        raise FileNotFoundError(2, "no layer has it", name)


def _export_kernel(stack: Stack, variant: Variant, scratch: Path) -> str:
    kernel = stack.find("vmlinuz").readlink()  # Debian's link to the newest: boot/vmlinuz-6.1.0-56-cloud-amd64
    version = kernel.name.removeprefix("vmlinuz-")
    shutil.copyfile(stack.find(f"boot/{kernel.name}"), scratch / KERNEL)
    folder = f"usr/lib/modules/{version}"
    modules = modules_in_order(lambda name: stack.find(f"{folder}/{name}").read_bytes(), modules_of(variant))
    (scratch / INITRD).write_bytes(build_initrd(stack.find("usr/bin/busybox").read_bytes(), modules))
    return version


def modules_of(variant: Variant) -> tuple[str, ...]:
    """The kernel modules that an image of this variant loads before its root file system is there."""
    return MODULES + (FIRMWARE_MODULES if variant == "firmware" else ())


def sha256_of(file: Path) -> str:
    """In hexadecimal; reads all of the file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
