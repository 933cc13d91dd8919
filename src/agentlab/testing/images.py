"""VM images for tests, made once per machine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from agentlab.base.clock import SystemClock
from agentlab.model.ids import Digest
from agentlab.templates.assembly import GuestProgram
from agentlab.templates.build import TemplateBuilder
from agentlab.templates.image import ImageBuilder
from agentlab.templates.images import Images, VmImage
from agentlab.templates.vm_layer import Variant
from agentlab.testing.daemon_process import shared_templates
from agentlab.testing.rootfs import test_cache

KEPT_S = 7200.0


def image_builder(name: str = "base") -> tuple[ImageBuilder, Digest]:
    """A builder on the test cache's templates, and the digest of the finished build of a shipped recipe."""
    state = shared_templates(name)
    templates = TemplateBuilder(state, test_cache() / "packages", SystemClock())
    template = templates.find(name)
    assert template is not None, "shared_templates has built it"
    return ImageBuilder(templates, state, SystemClock()), template.digest


def shared_image(name: str = "base", variant: Variant = "direct") -> VmImage:
    """An image of a shipped recipe with the present guest program, in the test cache; read-only.

    Built at first use on a machine and after a change of the guest program; parallel callers wait for it.
    """
    builder, template = image_builder(name)
    if (found := builder.find(template, variant)) is not None:
        return found
    with ThreadPoolExecutor(max_workers=1) as thread:  # the caller's thread may have a running loop
        built = thread.submit(lambda: asyncio.run(builder.build(template, variant=variant))).result()
    _forget_old_ones()
    return built


def _forget_old_ones() -> None:
    """Images of guest programs that were changed since, unless some test may still be running on one."""
    images = Images(shared_templates() / "templates" / "images")
    guest, now = GuestProgram().digest, SystemClock().now()
    for record in images.all():
        if record.guest_digest != guest and record.built_at < now - KEPT_S:
            with suppress(FileNotFoundError):  # somebody else was first
                images.remove(record)
