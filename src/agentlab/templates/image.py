"""Builds bootable VM images from templates."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

from agentlab.base.clock import Clock
from agentlab.base.files import remove_tree
from agentlab.base.process import ProgramFailed, which
from agentlab.base.tasks import in_thread
from agentlab.errors import ImageUnusable, TemplateBuildFailed
from agentlab.model.ids import Digest
from agentlab.templates import disk, firmware
from agentlab.templates.assembly import Assembly, GuestProgram, assemble, modules_of, sha256_of
from agentlab.templates.build import FREE_BYTES_MIN, OnStep, TemplateBuilder, quiet
from agentlab.templates.images import MARK, ImageRecord, Images, VmImage
from agentlab.templates.initrd import init_script
from agentlab.templates.isolation import StepFailed
from agentlab.templates.layers import Layers
from agentlab.templates.recipe import continued
from agentlab.templates.vm_layer import (
    IMAGE_BUILDER_VERSION,
    KERNEL_PACKAGES,
    Variant,
    command_line,
    layer_steps,
    system_files,
    system_script,
)

log = logging.getLogger(__name__)

ADVICE = "Build again; finished steps are kept.  If it fails again, `agentlab doctor` checks what a build needs."


class ImageBuilder:
    """VM images of one installation, built upon the layers of its templates.

    Works as root, as root of a user namespace, and as a user with subordinate ids.  No loop device is needed.
    """

    def __init__(
        self, templates: TemplateBuilder, state_dir: Path, clock: Clock, *, guest: GuestProgram | None = None
    ) -> None:
        """Images lie in `state_dir`/templates/images, beside the layers of `templates`."""
        self._templates = templates
        self._layers = Layers(state_dir / "templates" / "layers")
        self._images = Images(state_dir / "templates" / "images")
        self._clock = clock
        self._given = guest

    @cached_property
    def _guest(self) -> GuestProgram:
        return self._given or GuestProgram()  # compiled at its first use: a daemon may start without

    def find(self, template: Digest, variant: Variant = "direct") -> VmImage | None:
        """The newest image of a template with our present guest program, or None; the log says what was passed over."""
        if platform.machine() not in KERNEL_PACKAGES:
            return None
        key = image_key(template, platform.machine(), variant, self._guest)
        for record in self._images.all():
            if record.template != template or record.variant != variant:
                continue
            if record.key != key:
                log.info("image is outdated", extra={"image": record.digest, "guest": record.guest_version})
                continue
            try:
                return self._images.image(record)
            except ImageUnusable as error:
                log.warning("image cannot be used", extra={"image": record.digest, "cause": error.cause})
        return None

    async def build(self, template: Digest, on_step: OnStep = quiet, variant: Variant = "direct") -> VmImage:
        """The template's image: the present one at once, else a new one.  Cancelling ends the step under way.

        Raises NotFound (no such template), TemplateBuildFailed naming the step, DiskFull.
        """
        name = self._templates.provenance(template).name
        if platform.machine() not in KERNEL_PACKAGES:
            raise _failed(name, f"there are no VM images for {platform.machine()}; known: {', '.join(KERNEL_PACKAGES)}")
        if (found := self.find(template, variant)) is not None:
            return found
        async with self._templates.locked(name, on_step):
            if (found := self.find(template, variant)) is not None:
                return found
            self._images.remove_partial()
            await self._layers.remove_partial()
            disk.check_room(self._layers.folder, FREE_BYTES_MIN)
            _check_programs(name)
            steps = layer_steps(platform.machine(), variant)
            layers = await self._templates.extend(template, steps, on_step)
            assembly = Assembly(template=template, variant=variant, layers=layers, guest=self._guest)
            return await self._build(name, assembly, layers[-len(steps) :], on_step)

    async def verify(self, image: VmImage) -> None:
        """Read all of an image's disk.  ImageUnusable if it is not what was built; takes seconds."""
        record = next((each for each in self._images.all() if each.digest == image.digest), None)
        if record is None:
            raise ImageUnusable(path=image.disk.parent, cause="it has no record")
        self._images.image(record)
        try:
            await disk.check(image.disk)
        except StepFailed as error:
            raise ImageUnusable(path=image.disk.parent, cause=error.cause) from error
        if await in_thread(lambda: sha256_of(image.disk)) != record.disk_sha256:
            raise ImageUnusable(path=image.disk.parent, cause="its disk has changed since it was built")

    async def prune(self, in_use: Collection[Digest] = (), kept_s: float = 0.0) -> int:
        """Remove images that `find` would not return, but for those `in_use` and those younger than `kept_s`.

        Returns the bytes that became free.
        """
        async with self._templates.locked("images", quiet):
            self._images.remove_partial()
            records = self._images.all()
            built = {each.digest for each in self._templates.installed()}
            wanted = {(Digest(each.template), each.variant) for each in records if each.template in built}
            current = {found.digest for template, variant in wanted if (found := self.find(template, variant))}
            before, needed = self._clock.now() - kept_s, current | set(in_use)
            old = [each for each in records if each.digest not in needed and each.built_at <= before]
            return sum(self._images.remove(each) for each in old)

    async def _build(self, name: str, assembly: Assembly, own: Sequence[Digest], on_step: OnStep) -> VmImage:
        began = self._clock.monotonic()
        key = image_key(assembly.template, platform.machine(), assembly.variant, self._guest)
        try:
            record = await self._put_together(key, assembly, own, on_step, began)
        except (StepFailed, ProgramFailed, OSError, ValueError) as error:
            cause = error.cause if isinstance(error, StepFailed) else str(error)
            on_step("vm/image", "failed", cause)
            raise _failed(name, cause) from error
        return self._images.image(record)

    async def _put_together(
        self, key: str, assembly: Assembly, own: Sequence[Digest], on_step: OnStep, began: float
    ) -> ImageRecord:
        scratch = self._images.begin(key)
        chamber = await self._layers.begin(Digest(key))
        try:
            made = await assemble(assembly, self._layers, scratch, chamber, on_step)
            record = ImageRecord(
                mark=MARK,
                key=key,
                digest=hashlib.sha256(f"{key}\n{made.disk_sha256}".encode()).hexdigest(),
                template=assembly.template,
                variant=assembly.variant,
                layers=tuple(own),
                kernel_version=made.kernel_version,
                command_line=command_line(assembly.variant),
                guest_version=self._guest.version,
                guest_digest=self._guest.digest,
                guest_protocol=self._guest.protocol,
                disk_bytes=made.disk_bytes,
                sizes=made.sizes,
                disk_sha256=made.disk_sha256,
                built_at=self._clock.now(),
                build_s=self._clock.monotonic() - began,
            )
            await self._images.commit(scratch, record)
        finally:
            await self._layers.discard(chamber)
            remove_tree(scratch)
        return record


def image_key(template: Digest, machine: str, variant: Variant, guest: GuestProgram) -> str:
    """The digest of everything that decides an image; what two builds of it may still differ in is their times."""
    parts = {
        "builder": IMAGE_BUILDER_VERSION,
        "layers": continued(template, layer_steps(machine, variant)),
        "variant": variant,
        "guest": guest.marker().decode(),
        "files": [[each.path, each.content, each.mode] for each in system_files()],
        "script": [system_script(), firmware.script("")],
        "initrd": [init_script(()), *modules_of(variant)],
        "command_line": command_line(variant),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_programs(name: str) -> None:
    for program, package in disk.PROGRAMS.items():
        if which(program) is None:
            raise _failed(name, f"{program} is not installed: apt-get install {package}")


def _failed(name: str, cause: str) -> TemplateBuildFailed:
    return TemplateBuildFailed(name=name, step="vm/image", cause=cause, what_to_do=ADVICE)
