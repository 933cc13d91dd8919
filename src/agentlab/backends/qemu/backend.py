"""Sandboxes as virtual machines: QEMU, begun from the memory of a machine that was booted before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from agentlab.backends.interface import Capability, Command, Gone, Probe, Refused
from agentlab.backends.link.execution import VmExecution
from agentlab.backends.qemu import arming, kept, origin, probe, snapshots
from agentlab.backends.qemu.arming import Armory
from agentlab.backends.qemu.fleet import Fleet
from agentlab.backends.qemu.ground import Ground
from agentlab.backends.qemu.host import Host, shape_of
from agentlab.backends.qemu.identity import identity_of, noted_role
from agentlab.backends.qemu.image import BootImage
from agentlab.backends.qemu.layout import Layout
from agentlab.backends.qemu.observation import STARTED, observed
from agentlab.backends.qemu.preparation import BOOT_S_MAX, Workshop, provide, sweep
from agentlab.backends.qemu.prepared import Kind, Prepared, Shelf, kind_of
from agentlab.backends.qemu.snapshots import VmSnapshots
from agentlab.backends.qemu.spares import Plan, Spares
from agentlab.backends.qemu.vm import LINK_S_MAX, Relay, Vm
from agentlab.backends.qemu.workspaces import VmWorkspaces
from agentlab.backends.translation import translated
from agentlab.base.clock import Clock
from agentlab.base.entropy import Entropy
from agentlab.base.tasks import in_thread, to_the_end
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.sandbox import Mark, Observed, Power, SandboxSpec, SnapshotOf

MEMORY_BYTES_MIN = 192 << 20  # below it, a system does not come up
IMAGE_S_MAX = 1800.0  # an image may have to be built, and a machine booted, for the first sandbox of a kind
FLUSH_S_MAX = 5.0
HELPER_UID = 65535  # within the range of slot 0, where no sandbox has it: who boots the machines that are saved


class QemuBackend:
    """See `Backend`.  A VM's process has no rights, no network, no folder of ours: only files that were handed to it.

    `image_of` gives the image of a template, building it if need be.  `relay` serves each connection that a program in
    a guest makes to the guest link.  With `restore`, a sandbox begins from prepared memory; otherwise it boots.  The
    sandbox in slot n runs as the host's user `uid_first` + 65536 n.  With `spares`, one VM is held ready
    for the next sandbox of the kind last asked for.  `prepared_dir`: where prepared memory lies, if
    several installations shall share it.
    """

    name = "qemu"
    step_s_max: Mapping[str, float] = {
        "create": IMAGE_S_MAX,
        "arm": BOOT_S_MAX,
        "start": BOOT_S_MAX + 60,
        "stop": 120.0,
    }
    parallel_max = 8
    guest_arguments: tuple[str, ...] = ("--own-cgroup",)

    def __init__(
        self,
        *,
        installation: InstallationId,
        state_dir: Path,
        run_dir: Path,
        image_of: Callable[[Digest], Awaitable[BootImage]],
        relay: Relay,
        clock: Clock,
        entropy: Entropy,
        uid_first: int = 0x7000_0000,
        restore: bool = True,
        accelerator: str = "auto",
        spares: int = 0,
        boot_s_max: float = BOOT_S_MAX,
        prepared_dir: Path | None = None,
    ) -> None:
        self._layout = Layout(installation=installation, state=state_dir.resolve(), run=run_dir.resolve())
        self._image_of = image_of
        self._clock, self._entropy = clock, entropy
        self._uid_first = uid_first
        self._restore = restore
        self._wanted = accelerator
        self._host: Host | None = None
        self._fleet = Fleet(self._layout, relay, entropy)
        shelf = prepared_dir or self._layout.prepared
        self._shop = Workshop(
            shelf=Shelf(shelf),
            folder=shelf,
            rooms=self._layout.run / "prepare",
            uid=uid_first + HELPER_UID,
            cgroup_parent=self._layout.cgroup_parent,
            title=f"agentlab:{installation}:prepare",
            clock=clock,
            entropy=entropy,
            boot_s_max=boot_s_max,
        )
        self._spares = Spares(self._layout, self._shop.shelf, relay, clock, entropy, uid_first=uid_first, count=spares)
        self._looking = asyncio.Lock()
        ground = Ground(
            layout=self._layout,
            fleet=self._fleet,
            shelf=self._shop.shelf,
            clock=clock,
            host=self._ready,
            seen=self._seen_now,
            lock=self._lock,
        )
        self._workspaces = VmWorkspaces(ground)
        self._snapshots = VmSnapshots(ground, self._workspaces)
        self._locks: WeakValueDictionary[SandboxId, asyncio.Lock] = WeakValueDictionary()

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset() if self._host is None else self._host.capabilities

    @property
    def snapshots(self) -> VmSnapshots | None:
        return self._snapshots if Capability.SNAPSHOT in self.capabilities else None

    @property
    def workspaces(self) -> VmWorkspaces | None:
        return self._workspaces if Capability.WORKSPACE in self.capabilities else None

    async def probe(self) -> Probe:
        self._layout.prepare()
        async with self._looking:
            looked = await probe.look(wanted=self._wanted, uid=self._uid_first + HELPER_UID, entropy=self._entropy)
            first, self._host = self._host is None, looked.host
            if first and looked.host is not None:
                async with translated("probe"):
                    await sweep(self._shop, looked.host)
                    await self._spares.sweep(looked.host)
                    for mark in self._layout.marks():
                        self._fleet.find(mark)
                        await self._snapshots.sweep(mark)
        host = looked.host
        return Probe(
            findings=looked.findings,
            capabilities=self.capabilities,
            missing_guarantees=() if host is None else host.missing_guarantees,
            facts=probe.facts_of(host),
        )

    async def list(self) -> Sequence[Observed]:
        host = await self._ready()
        return [await self._observed(host, mark) for mark in self._layout.marks()]

    async def inspect(self, sandbox: SandboxId) -> Observed | None:
        host = await self._ready()
        mark = self._layout.mark(sandbox)
        if mark is None or mark.installation != self._layout.installation:
            return None
        return await self._observed(host, mark)

    async def create(self, spec: SandboxSpec) -> Observed:
        host, mark = await self._ready(), spec.mark
        async with self._lock(mark.sandbox), translated("create"):
            known = self._layout.verify(mark)
            await snapshots.settle(self._layout, mark.sandbox)
            if not self._layout.disk(mark.sandbox).exists():
                await self._make(host, spec, known=known)
            return await self._observed(host, mark)

    async def arm(self, spec: SandboxSpec) -> Observed:
        host, mark = await self._ready(), spec.mark
        async with self._lock(mark.sandbox), translated("arm"):
            known = self._layout.verify(mark)
            await snapshots.settle(self._layout, mark.sandbox)
            if not known or not self._layout.disk(mark.sandbox).exists():
                raise Gone(f"{mark.sandbox} has no disk", "Create it first.")
            seen = await self._observed(host, mark)
            if seen.power is not Power.STOPPED:
                return seen
            await self._clear(host, mark)
            await self._hold(host, spec)
            return await self._observed(host, mark)

    async def start(self, mark: Mark) -> None:
        host = await self._ready()
        async with self._lock(mark.sandbox), translated("start"):
            seen, vm = await self._seen(host, mark), self._fleet.find(mark)
            if seen.power is Power.STOPPED or vm is None:
                raise Gone(f"{mark.sandbox} is not armed", "Arm it first.")
            if seen.power is Power.ARMED:
                await self._begin(mark, vm)

    async def stop(self, mark: Mark, grace_s: float) -> None:
        host = await self._ready()
        async with self._lock(mark.sandbox), translated("stop"):
            seen, vm = await self._seen(host, mark), self._fleet.find(mark)
            if vm is None:
                return await self._clear(host, mark, remember=True)
            if seen.power is Power.PAUSED:
                await (await vm.monitor()).go()
            if seen.power in (Power.RUNNING, Power.PAUSED):
                await vm.wind_down(grace_s, FLUSH_S_MAX, [*self._workspaces.mounts(mark), "/"])
            return await self._clear(host, mark, remember=seen.power is Power.STOPPED)

    async def pause(self, mark: Mark) -> None:
        host = await self._ready()
        async with self._lock(mark.sandbox), translated("pause"):
            seen, vm = await self._seen(host, mark), self._fleet.find(mark)
            if seen.power is Power.RUNNING and vm is not None:
                await (await vm.monitor()).halt()
            elif seen.power is not Power.PAUSED:
                raise Gone(f"{mark.sandbox} is {seen.power}", "Only a running sandbox can be paused.")

    async def resume(self, mark: Mark) -> None:
        host = await self._ready()
        async with self._lock(mark.sandbox), translated("resume"):
            seen, vm = await self._seen(host, mark), self._fleet.find(mark)
            if seen.power is Power.PAUSED and vm is not None:
                await (await vm.monitor()).go()
                await (await vm.control()).set_clock(int(self._clock.now() * 1e9))
            elif seen.power is not Power.RUNNING:
                raise Gone(f"{mark.sandbox} is {seen.power}", "Only a paused sandbox can be resumed.")

    async def destroy(self, mark: Mark) -> None:
        host = await self._ready()
        async with self._lock(mark.sandbox), translated("destroy"):
            self._layout.verify(mark)
            await self._spare_workspaces(mark)
            await self._clear(host, mark, kill=True)
            await in_thread(lambda: self._layout.remove(mark.sandbox))
            host.cgroups.remove_if_empty(self._layout.cgroup_parent)

    @asynccontextmanager
    async def execute(self, mark: Mark, command: Command) -> AsyncIterator[VmExecution]:
        async with translated("exec"):
            execution = await (await (await self._running(mark)).control()).execute(command)
        try:
            yield execution
        finally:
            await execution.end()

    async def launch(self, mark: Mark, command: Command, stdin: bytes) -> None:
        async with translated("launch"):
            await (await (await self._running(mark)).control()).launch(command, stdin)

    async def console(self, sandbox: SandboxId, bytes_max: int = 4096) -> str:
        host = await self._ready()
        mark = self._layout.mark(sandbox)
        if mark is None:
            return ""
        text = await self._fleet.console(mark)
        if killed := host.cgroups.oom_kills(self._layout.bearing(mark).group):
            text += f"\n[agentlab] the kernel ended {killed} process(es) of this VM at its memory limit\n"
        return text[-bytes_max:]

    async def close(self) -> None:
        await self._spares.close()
        await self._fleet.close()
        self._shop.shelf.close()

    async def _ready(self) -> Host:
        if self._host is None:
            looked = await self.probe()
            for finding in looked.findings:
                if finding.fatal and not finding.ok:
                    raise Refused(f"{finding.name}: {finding.detail}", finding.remedy)
        assert self._host is not None
        return self._host

    def _lock(self, sandbox: SandboxId) -> asyncio.Lock:
        return self._locks.setdefault(sandbox, asyncio.Lock())

    async def _observed(self, host: Host, mark: Mark) -> Observed:
        return await observed(self._layout, host, self._fleet.find(mark), mark)

    async def _seen(self, host: Host, mark: Mark) -> Observed:
        if not self._layout.verify(mark):
            raise Gone(f"there is no sandbox {mark.sandbox}", "It was destroyed, or never made.")
        return await self._observed(host, mark)

    async def _seen_now(self, mark: Mark) -> Observed:
        return await self._seen(await self._ready(), mark)

    async def _running(self, mark: Mark) -> Vm:
        seen, vm = await self._seen(await self._ready(), mark), self._fleet.find(mark)
        if seen.power is not Power.RUNNING or vm is None:
            raise Gone(f"{mark.sandbox} is {seen.power}", "Commands need a running sandbox.")
        return vm

    async def _make(self, host: Host, spec: SandboxSpec, *, known: bool) -> None:
        if spec.resources.memory_bytes < MEMORY_BYTES_MIN:
            remedy = f"Give it at least {MEMORY_BYTES_MIN >> 20} MiB, or use the backend oci."
            raise Refused(f"{spec.resources.memory_bytes >> 20} MiB are too little for a virtual machine", remedy)
        if spec.source is not None:
            await self._fork(host, spec, spec.source)
            return
        image = await self._image_of(spec.template_digest)
        kind, prepared = self._kind(host, spec, image), None
        if self._restore:
            prepared = await provide(self._shop, host, kind, image)
        layout, sandbox = self._layout, spec.mark.sandbox
        if not known:
            await in_thread(lambda: layout.write_mark(spec.mark))
        laid = await in_thread(
            lambda: origin.lay(layout, sandbox, image, prepared, key=kind.key, disk_bytes=kind.disk_bytes)
        )
        await origin.make_disk(layout, sandbox, laid, prepared, self._uid(spec))

    async def _fork(self, host: Host, spec: SandboxSpec, source: SnapshotOf) -> None:
        async with self._lock(source.mark.sandbox):
            self._layout.verify(source.mark)
            await snapshots.settle(self._layout, source.mark.sandbox)
            if (found := kept.find(self._layout, source.mark.sandbox, source.name)) is None:
                raise Gone(f"{source.mark.sandbox} has no snapshot {source.name}", "Take one, and fork from that.")
            await snapshots.begin_as(self._layout, found, spec.mark, self._machine(host, spec), self._uid(spec))

    def _machine(self, host: Host, spec: SandboxSpec) -> kept.SavedBy:
        shape = shape_of(spec.resources, host.accelerator, network=spec.network is not NetworkMode.OFF)
        return kept.saved_by(host, shape)

    def _kind(self, host: Host, spec: SandboxSpec, image: BootImage) -> Kind:
        shape = shape_of(spec.resources, host.accelerator, network=spec.network is not NetworkMode.OFF)
        # The sandbox's limit is for what it writes; the template's own files are beside it, as in a container.
        disk_bytes = image.disk_bytes + (spec.resources.disk_bytes >> 20 << 20)
        return kind_of(image, shape, disk_bytes, host.version, host.processor)

    def _uid(self, spec: SandboxSpec) -> int:
        return self._uid_first + 65536 * spec.slot

    async def _hold(self, host: Host, spec: SandboxSpec) -> None:
        mark = spec.mark
        stands_on = origin.origin_of(self._layout, mark.sandbox)
        armory = Armory(layout=self._layout, host=host, shelf=self._shop.shelf, uid=self._uid(spec), clock=self._clock)
        if (waking := kept.waking(self._layout, mark.sandbox, self._machine(host, spec))) is not None:
            return await arming.hold(armory, self._fleet, spec, stands_on, waking)
        kind, prepared = await self._fitting(host, spec, stands_on)
        if prepared is None:
            return await arming.hold(armory, self._fleet, spec, stands_on, None)
        spare = self._spares.claim(kind.key)
        self._spares.want(Plan(host=host, kind=kind, prepared=prepared, command_line=stands_on.command_line))
        if spare is None:
            return await arming.hold(armory, self._fleet, spec, stands_on, prepared)
        try:
            return await arming.take_over(armory, self._fleet, spec, spare)
        except OSError:
            await to_the_end(self._spares.discard(host, spare))
            raise

    async def _fitting(self, host: Host, spec: SandboxSpec, stands_on: origin.Origin) -> tuple[Kind, Prepared | None]:
        """Prepared memory that fits the disk as it is, or None: then it boots."""
        kind = self._kind(host, spec, await self._image_of(spec.template_digest))
        fits = kind.key == stands_on.key and not self._layout.ran(spec.mark.sandbox).exists()
        return kind, self._shop.shelf.find(kind) if fits else None

    async def _begin(self, mark: Mark, vm: Vm) -> None:
        room = self._layout.room(mark.sandbox)
        role = noted_role(room)
        if role is None:
            raise Gone(f"{mark.sandbox} is only half armed", "Stop it and start it again.")
        # From now on its disk is not what it was when the memory was saved.
        self._layout.ran(mark.sandbox).touch()
        monitor = await vm.monitor()
        await monitor.go()
        control = await vm.control(LINK_S_MAX if role.restored else self._shop.boot_s_max)
        if role.own or control.hello.name != role.name:
            await control.identify(identity_of(role, self._entropy, self._clock.now()))
        (room / STARTED).touch()
        self._snapshots.awake(mark.sandbox)
        vm.stay_linked()

    async def _spare_workspaces(self, mark: Mark) -> None:
        """Let the guest write back what it holds of disks that outlive it."""
        mounts, vm = self._workspaces.mounts(mark), self._fleet.find(mark)
        if mounts and vm is not None:
            await vm.flush(FLUSH_S_MAX, mounts, hold=True)

    async def _clear(self, host: Host, mark: Mark, *, remember: bool = False, kill: bool = False) -> None:
        """End what runs and forget it; with `remember`, keep why it had ended by itself."""
        vm = self._fleet.find(mark)
        if vm is not None:
            await (vm.kill() if kill else vm.end())
        await self._fleet.forget(mark.sandbox)
        await host.cgroups.remove(self._layout.bearing(mark).group)
        await in_thread(lambda: arming.clear(self._layout.room(mark.sandbox), remember=remember))
