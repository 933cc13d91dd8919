"""What a daemon stands on: store, keys, backends, network, templates.  Opening it is the preflight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentlab.backends.interface import Backend, BackendError
from agentlab.backends.oci.machine import Outbound
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory, write_atomic
from agentlab.base.pyz import build_guest_pyz
from agentlab.base.redaction import Redaction
from agentlab.daemon.backends import Entrance, cluster_image, make_backends
from agentlab.daemon.settings import Settings
from agentlab.errors import PermissionMissing, PreflightFailed
from agentlab.model.finding import Finding
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.network.bridge import BridgeNetwork
from agentlab.network.interface import NetworkError
from agentlab.secrets.seal import Seal
from agentlab.services.quarantine import Quarantine
from agentlab.services.sandboxes import BackendEntry
from agentlab.store import meta, steps
from agentlab.store.blobs import Blobs
from agentlab.store.database import Database
from agentlab.store.outputs import Outputs
from agentlab.templates.build import TemplateBuilder
from agentlab.templates.image import ImageBuilder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Opened once at start, closed once at the end."""

    clock: Clock
    entropy: Entropy
    state_dir: Path
    guest_dir: Path  # bind-mounted into every sandbox, read-only
    installation: InstallationId
    database: Database
    blobs: Blobs
    outputs: Outputs
    seal: Seal
    redaction: Redaction
    backends: Mapping[str, BackendEntry]
    entrance: Entrance
    default_backend: str
    subnet: str
    builder: TemplateBuilder
    images: ImageBuilder

    async def close(self, *, remove_network: bool) -> None:
        """Let go of everything; sandboxes that run go on."""
        for entry in self.backends.values():
            await entry.backend.close()
        for network in {id(entry.network): entry.network for entry in self.backends.values()}.values():
            try:
                await network.close(remove=remove_network)
            except NetworkError as error:
                log.error("the network could not be closed", extra={"cause": error.cause})
        self.outputs.close()
        await self.database.close()


def prepare_directories(settings: Settings) -> None:
    """The daemon's own directories, each with the mode that it needs.  PermissionMissing says which one failed."""
    modes = {settings.state_dir: 0o700, settings.run_dir: 0o755, settings.cache_dir: 0o755}
    for path, mode in modes.items():
        try:
            make_directory(path, mode)
        except OSError as error:
            raise PermissionMissing(
                path=path,
                cause=error.strerror or str(error),
                what_to_do="Run the daemon as the owner of this directory (root for the system's), or use --dir.",
            ) from error


async def open_ground(
    settings: Settings,
    clock: Clock,
    entropy: Entropy,
    redaction: Redaction,
    outbound: Callable[[], Outbound | None] = lambda: None,
) -> Ground:
    """Open everything.  `outbound` tells what leads out of this process's network where that is not the host's.

    Raises PreflightFailed with what is missing and how to get it, StoreUnreadable, SchemaTooNew, PermissionMissing.
    """
    state_dir, guest_dir = settings.state_dir, make_directory(settings.run_dir / "guest", 0o755)
    database = Database.open(state_dir / "agentlab.db")
    try:
        installation = await database.write(lambda tx: meta.installation(tx, entropy))
        await database.write(lambda tx: steps.abandon_running(tx, clock.now()))
        builder = _builder(settings, clock)
        entrance = Entrance()
        images = ImageBuilder(builder, state_dir, clock)
        local = make_backends(
            settings,
            installation=installation,
            guest_dir=guest_dir,
            builder=builder,
            images=images,
            entrance=entrance,
            clock=clock,
            entropy=entropy,
            outbound=outbound,
        )
        # The preflight waits for programs; meanwhile the guest program is compiled and the recipes are read.
        beside = asyncio.to_thread(_prepare, guest_dir, builder)
        bridge = BridgeNetwork(installation, state_dir, settings.network.subnet, clock)
        alarm = Quarantine(database, clock).replayed
        (entries, subnet), remote, _ = await asyncio.gather(
            _local(settings, local, bridge),
            _remote(settings, installation, images, entrance, alarm, clock, entropy),
            beside,
        )
        entries |= remote
        if settings.default_backend in remote:
            subnet = str(await remote[settings.default_backend].network.open())
        return Ground(
            clock=clock,
            entropy=entropy,
            state_dir=state_dir,
            guest_dir=guest_dir,
            installation=installation,
            database=database,
            blobs=Blobs(state_dir / "blobs", clock, entropy, disk_reserve_bytes=settings.limits.disk_reserve_bytes),
            outputs=Outputs(state_dir / "outputs", bytes_max=settings.limits.output_bytes_max),
            seal=Seal.open(state_dir / "keys"),
            redaction=redaction,
            backends=entries,
            entrance=entrance,
            default_backend=settings.default_backend,
            subnet=subnet,
            builder=builder,
            images=images,
        )
    except BaseException:
        await database.close()
        raise


def _builder(settings: Settings, clock: Clock) -> TemplateBuilder:
    return TemplateBuilder(
        settings.state_dir,
        settings.cache_dir,
        clock,
        recipe_dirs=settings.template_dirs,
        mirror=settings.templates.mirror,
        step_s_max=settings.templates.step_s_max,
        lists_fresh_s=settings.templates.lists_fresh_s,
    )


async def _local(
    settings: Settings, backends: Mapping[str, Backend], bridge: BridgeNetwork
) -> tuple[dict[str, BackendEntry], str]:
    """The backends of this machine, with the bridge that they share, and its subnet.

    PreflightFailed if the default one is among them and cannot be used.  One that nobody asked for may be unusable
    here; `--backend` with it then says why.
    """
    if not backends:
        return {}, ""
    findings, probed = await asyncio.gather(
        bridge.probe(), asyncio.gather(*(backend.probe() for backend in backends.values()))
    )
    probes, subnet = dict(zip(backends, probed, strict=True)), ""
    needed = settings.default_backend in backends
    if needed:
        refuse([*probes[settings.default_backend].findings, *findings])
    broken = [each for each in findings if each.fatal and not each.ok]
    if not broken:
        try:
            subnet = str(await bridge.open())
        except NetworkError as error:
            if needed:
                raise PreflightFailed(cause=error.cause, what_to_do=error.remedy) from error
            broken = [Finding(name="network", ok=False, detail=error.cause, remedy=error.remedy)]
    if broken:
        cause = "; ".join(each.detail for each in broken)
        log.warning(
            "this machine makes no sandboxes; say so with `enabled: false` of its backends", extra={"cause": cause}
        )
        probes = {name: replace(probe, findings=(*probe.findings, *broken)) for name, probe in probes.items()}
    entries = {
        name: BackendEntry(backend=backend, network=bridge, probe=probes[name]) for name, backend in backends.items()
    }
    return entries, subnet


async def _remote(
    settings: Settings,
    installation: InstallationId,
    images: ImageBuilder,
    relay: Entrance,
    alarm: Callable[[SandboxId], Awaitable[None]],
    clock: Clock,
    entropy: Entropy,
) -> Mapping[str, BackendEntry]:
    """The cluster, if there is one; it need not answer now.  PreflightFailed if its guests cannot be listened for."""
    if not settings.backends.proxmox.used:
        return {}
    from agentlab.backends.proxmox.shelf import ClusterImage  # what only a cluster needs is not imported for others
    from agentlab.daemon.cluster import make_cluster

    async def image_of(digest: Digest) -> ClusterImage:
        made, disk, version = await cluster_image(images, digest)
        return ClusterImage(digest=made, disk=disk, guest_version=version)

    try:
        parts = await make_cluster(
            settings.backends.proxmox,
            installation=installation,
            state_dir=settings.state_dir / "proxmox",
            image_of=image_of,
            relay=relay,
            replayed=alarm,
            clock=clock,
            entropy=entropy,
        )
        await parts.guests.start(*parts.listen)
    except (BackendError, OSError) as error:
        cause = error.cause if isinstance(error, BackendError) else f"{error.strerror or error}"
        where = ":".join(map(str, settings.backends.proxmox.listen))
        raise PreflightFailed(
            cause=f"proxmox: guests cannot be waited for at {where}: {cause}",
            what_to_do="Set `backends.proxmox.guest_listen` to an address of this machine and a free port.",
        ) from error
    probe = await parts.backend.probe()
    return {parts.backend.name: BackendEntry(backend=parts.backend, network=parts.network, probe=probe, remote=True)}


def _prepare(guest_dir: Path, builder: TemplateBuilder) -> None:
    write_atomic(guest_dir / "guest.pyz", build_guest_pyz(), 0o644)
    builder.recipes()


def refuse(findings: Sequence[Finding]) -> None:
    """Raises PreflightFailed that names every fatal finding with its remedy; quiet if there is none."""
    missing = [finding for finding in findings if finding.fatal and not finding.ok]
    if missing:
        raise PreflightFailed(
            cause="; ".join(f"{each.name}: {each.detail}" for each in missing),
            what_to_do="  ".join(each.remedy for each in missing if each.remedy),
        )
