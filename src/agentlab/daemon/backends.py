"""Which backends a daemon has, made from its settings; probing them is the preflight's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from agentlab.backends.interface import Backend, BackendError, Refused, Unavailable
from agentlab.backends.oci.backend import OciBackend
from agentlab.backends.oci.machine import Outbound
from agentlab.backends.qemu.backend import QemuBackend
from agentlab.backends.qemu.image import BootImage
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.daemon.settings import Settings
from agentlab.errors import AgentLabError, NotFound
from agentlab.model.ids import Digest, InstallationId
from agentlab.services.session import Stream
from agentlab.templates.build import TemplateBuilder
from agentlab.templates.image import ImageBuilder

Serve = Callable[[Stream], Awaitable[None]]


class Entrance:
    """Where the links of guests arrive that a backend carries itself; closed until the sessions stand behind it."""

    def __init__(self) -> None:
        self._serve: Serve | None = None

    def open(self, serve: Serve) -> None:
        """From now on every stream is served."""
        self._serve = serve

    async def __call__(self, stream: Stream) -> None:
        """Serve one guest's stream to its end; ended at once while nobody can, and the guest tries again."""
        if self._serve is None:
            stream.close()
        else:
            await self._serve(stream)


def make_backends(
    settings: Settings,
    *,
    installation: InstallationId,
    guest_dir: Path,
    builder: TemplateBuilder,
    images: ImageBuilder,
    entrance: Entrance,
    clock: Clock,
    entropy: Entropy,
    outbound: Callable[[], Outbound | None],
) -> Mapping[str, Backend]:
    """Those of this machine by name, not yet probed; they need not be usable here."""
    oci = OciBackend(
        installation=installation,
        state_dir=settings.state_dir / "oci",
        run_dir=settings.run_dir / "oci",
        rootfs_of=partial(_layers, builder),
        guest_dir=guest_dir,
        clock=clock,
        entropy=entropy,
        runtime=None if settings.backends.oci.runtime == "auto" else settings.backends.oci.runtime,
        uid_first=settings.backends.oci.uid_first,
        outbound=outbound,
    )
    qemu = QemuBackend(
        installation=installation,
        state_dir=settings.state_dir / "qemu",
        run_dir=settings.run_dir / "qemu",
        image_of=partial(_image, images),
        relay=entrance,
        clock=clock,
        entropy=entropy,
        uid_first=settings.backends.qemu.uid_first,
        restore=settings.backends.qemu.restore,
        spares=settings.backends.qemu.spares,
        accelerator=settings.backends.qemu.accelerator,
    )
    enabled = {"oci": settings.backends.oci.enabled, "qemu": settings.backends.qemu.enabled}
    return {backend.name: backend for backend in (oci, qemu) if enabled[backend.name]}


def _layers(builder: TemplateBuilder, digest: Digest) -> tuple[Path, ...]:
    try:
        return builder.layers_of(digest)
    except NotFound as error:
        raise _gone() from error


async def cluster_image(images: ImageBuilder, digest: Digest) -> tuple[Digest, Path, str]:
    """The image of a template's build that boots by firmware, made at its first use: digest, disk, guest's version."""
    try:
        made = await images.build(digest, variant="firmware")
    except NotFound as error:
        raise _gone() from error
    except AgentLabError as error:
        raise Unavailable(f"its VM image could not be made: {error}", error.advice) from error
    return made.digest, made.disk, made.guest_version


async def _image(images: ImageBuilder, digest: Digest) -> BootImage:
    """The VM image of a template's build, made at its first use."""
    try:
        made = await images.build(digest)
    except NotFound as error:
        raise _gone() from error
    except AgentLabError as error:
        raise Unavailable(f"its VM image could not be made: {error}", error.advice) from error
    return BootImage(
        digest=made.digest,
        disk=made.disk,
        kernel=made.kernel,
        initrd=made.initrd,
        command_line=made.command_line,
        disk_bytes=made.disk_bytes,
        guest_version=made.guest_version,
    )


def _gone() -> BackendError:
    return Refused("the build of its template is gone from the disk", "Build it again: `agentlab template build`.")
