"""Sandboxes as containers: OCI runtime, overlayfs on a template, user namespace, disk image."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from agentlab.backends import first_process
from agentlab.backends.first_process import FirstProcess
from agentlab.backends.interface import BackendError, Capability, Command, Gone, Probe, Refused, Unavailable
from agentlab.backends.oci import commands, disk, probe
from agentlab.backends.oci.bundle import INIT, configuration
from agentlab.backends.oci.execution import OciExecution
from agentlab.backends.oci.grace import GracePeriod
from agentlab.backends.oci.layout import Layout
from agentlab.backends.oci.loop import users_of
from agentlab.backends.oci.machine import Machine, Outbound
from agentlab.backends.oci.observation import observed
from agentlab.backends.oci.placement import open_files_max, parts, place
from agentlab.backends.oci.stage import assemble
from agentlab.backends.oci.userns import UserNamespaces
from agentlab.backends.termination import all_ended, ask_to_end
from agentlab.backends.translation import translated
from agentlab.base.clock import Clock, sleep
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory
from agentlab.base.tasks import in_thread
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.sandbox import Mark, Observed, Power, SandboxSpec

RELEASE_S_MAX = 10.0


class OciBackend:
    """See `Backend`.  Nothing of a sandbox is mounted in the host's own mount namespace, ever.

    `rootfs_of` names a template's layers, top first; `guest_dir` is bound read-only at /opt/agentlab.  `runtime` None
    means crun, else runc.  The sandbox in slot n has the host's ids `uid_first` + 65536 n and the 65535 after it.
    """

    name = "oci"
    step_s_max: Mapping[str, float] = {}
    parallel_max = 8
    guest_arguments: tuple[str, ...] = ("--own-pids",)  # the PID namespace is the sandbox's alone
    snapshots: None = None
    workspaces: None = None

    def __init__(
        self,
        *,
        installation: InstallationId,
        state_dir: Path,
        run_dir: Path,
        rootfs_of: Callable[[Digest], Sequence[Path]],
        guest_dir: Path,
        clock: Clock,
        entropy: Entropy,
        runtime: str | None = None,
        uid_first: int = 0x1000_0000,
        outbound: Callable[[], Outbound | None] = lambda: None,
    ) -> None:
        self._layout = Layout(installation=installation, state=state_dir.resolve(), run=run_dir.resolve())
        self._rootfs_of = rootfs_of
        self._guest = guest_dir
        self._clock = clock
        self._entropy = entropy
        self._runtime = runtime
        self._uid_first = uid_first
        self._outbound = outbound
        self._userns = UserNamespaces()
        self._machine: Machine | None = None
        self._grace = GracePeriod()
        self._looking = asyncio.Lock()
        self._blanks = asyncio.Lock()
        self._locks: WeakValueDictionary[SandboxId, asyncio.Lock] = WeakValueDictionary()
        self._arming = 0

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset() if self._machine is None else self._machine.capabilities

    async def probe(self) -> Probe:
        self._layout.prepare()
        async with self._looking:
            looked = await probe.look(
                self._layout,
                wanted=self._runtime,
                uid_first=self._uid_first,
                guest=self._guest,
                entropy=self._entropy,
                userns=self._userns,
                outbound=self._outbound(),
            )
            self._machine = looked.machine
        if looked.machine is not None:
            self._grace.look(looked.machine.cgroups)
        missing = () if looked.machine is None else looked.machine.missing_guarantees
        return Probe(findings=looked.findings, capabilities=self.capabilities, missing_guarantees=missing)

    async def list(self) -> Sequence[Observed]:
        machine = await self._ready()
        return [observed(self._layout, machine, mark) for mark in self._layout.marks()]

    async def inspect(self, sandbox: SandboxId) -> Observed | None:
        machine = await self._ready()
        mark = self._layout.mark(sandbox)
        if mark is None or mark.installation != self._layout.installation:
            return None
        return observed(self._layout, machine, mark)

    async def create(self, spec: SandboxSpec) -> Observed:
        machine, mark = await self._ready(), spec.mark
        async with self._lock(mark.sandbox), translated("create"):
            known = self._layout.verify(mark)
            if not self._layout.disk(mark.sandbox).exists():
                blank = await self._blank(machine, spec)
                await in_thread(lambda: self._make_disk(mark, blank, known=known))
            return observed(self._layout, machine, mark)

    async def arm(self, spec: SandboxSpec) -> Observed:
        machine, mark = await self._ready(), spec.mark
        async with self._lock(mark.sandbox), translated("arm"):
            if not self._layout.verify(mark) or not self._layout.disk(mark.sandbox).exists():
                raise Gone(f"{mark.sandbox} has no disk", "Create it first.")
            seen = observed(self._layout, machine, mark)
            if seen.power is not Power.STOPPED:
                return seen
            self._grace.begin()
            await self._clear(machine, mark, remember=False)
            await self._sound(mark.sandbox)
            await self._hold(machine, spec)
            return observed(self._layout, machine, mark)

    async def start(self, mark: Mark) -> None:
        machine = await self._ready()
        async with self._lock(mark.sandbox), translated("start"):
            seen = self._seen(machine, mark)
            if seen.power is Power.STOPPED:
                raise Gone(f"{mark.sandbox} is not armed", "Arm it first.")
            if seen.power is Power.ARMED:
                await machine.runtime.start(mark.sandbox)
                (self._layout.bundle(mark.sandbox) / "started").touch()
                await self._begun(machine, mark.sandbox)

    async def stop(self, mark: Mark, grace_s: float) -> None:
        machine = await self._ready()
        async with self._lock(mark.sandbox), translated("stop"):
            seen, first = self._seen(machine, mark), self._first(mark.sandbox)
            if seen.power is Power.STOPPED or first is None:
                return await self._clear(machine, mark, remember=True)
            if seen.power is Power.PAUSED:
                await machine.runtime.resume(mark.sandbox)
            if seen.power is not Power.ARMED:
                await all_ended(ask_to_end(first.companions(), signal.SIGTERM), grace_s)
            return await self._clear(machine, mark, remember=False)

    async def pause(self, mark: Mark) -> None:
        machine = await self._ready()
        async with self._lock(mark.sandbox), translated("pause"):
            if (power := self._seen(machine, mark).power) is Power.RUNNING:
                await machine.runtime.pause(mark.sandbox)
            elif power is not Power.PAUSED:
                raise Gone(f"{mark.sandbox} is {power}", "Only a running sandbox can be paused.")

    async def resume(self, mark: Mark) -> None:
        machine = await self._ready()
        async with self._lock(mark.sandbox), translated("resume"):
            if (power := self._seen(machine, mark).power) is Power.PAUSED:
                await machine.runtime.resume(mark.sandbox)
            elif power is not Power.RUNNING:
                raise Gone(f"{mark.sandbox} is {power}", "Only a paused sandbox can be resumed.")

    async def destroy(self, mark: Mark) -> None:
        machine = await self._ready()
        async with self._lock(mark.sandbox), translated("destroy"):
            self._layout.verify(mark)
            await self._clear(machine, mark, remember=False)
            await in_thread(lambda: self._layout.remove(mark.sandbox))
            if not self._arming:
                # Nobody is between making the parent group and its child: both happen in one call of the runtime.
                machine.cgroups.remove_if_empty(self._layout.cgroup_parent)

    @asynccontextmanager
    async def execute(self, mark: Mark, command: Command) -> AsyncIterator[OciExecution]:
        machine = await self._ready()
        async with AsyncExitStack() as held:
            async with translated("exec"):
                self._grace.begin()
                first, bundle = self._running(machine, mark), self._layout.bundle(mark.sandbox)
                execution = await commands.begin(
                    machine.runtime, mark.sandbox, bundle, first.pid, command, open_files_max()
                )
                held.push_async_callback(execution.end)
            yield execution

    async def launch(self, mark: Mark, command: Command, stdin: bytes) -> None:
        machine = await self._ready()
        async with translated("launch"):
            self._grace.begin()
            first = self._running(machine, mark)
            await commands.launch(machine.runtime, mark.sandbox, first.pid, command, stdin, open_files_max())

    async def console(self, sandbox: SandboxId, bytes_max: int = 4096) -> str:
        machine = await self._ready()
        first = self._first(sandbox)
        text = "" if first is None else commands.console_tail(first.pid, bytes_max).decode(errors="replace")
        if killed := machine.cgroups.oom_kills(self._layout.cgroup(sandbox)):
            text += f"\n[agentlab] the kernel ended {killed} process(es) here at the sandbox's memory limit\n"
        return text[-bytes_max:]

    async def close(self) -> None:
        await self._userns.close()

    async def _ready(self) -> Machine:
        if self._machine is None:
            looked = await self.probe()
            for finding in looked.findings:
                if finding.fatal and not finding.ok:
                    raise Refused(f"{finding.name}: {finding.detail}", finding.remedy)
        assert self._machine is not None
        return self._machine

    def _lock(self, sandbox: SandboxId) -> asyncio.Lock:
        return self._locks.setdefault(sandbox, asyncio.Lock())

    def _seen(self, machine: Machine, mark: Mark) -> Observed:
        if not self._layout.verify(mark):
            raise Gone(f"there is no sandbox {mark.sandbox}", "It was destroyed, or never made.")
        return observed(self._layout, machine, mark)

    def _running(self, machine: Machine, mark: Mark) -> FirstProcess:
        power = self._seen(machine, mark).power
        first = self._first(mark.sandbox)
        if power is not Power.RUNNING or first is None:
            raise Gone(f"{mark.sandbox} is {power}", "Commands need a running sandbox.")
        return first

    def _first(self, sandbox: SandboxId) -> FirstProcess | None:
        first = first_process.noted(self._layout.bundle(sandbox))
        return first if first is not None and first.lives() else None

    async def _blank(self, machine: Machine, spec: SandboxSpec) -> Path | None:
        if not machine.loops:
            return None
        async with self._blanks:
            return await disk.blank(self._layout.blanks, spec.resources.disk_bytes)

    def _make_disk(self, mark: Mark, blank: Path | None, *, known: bool) -> None:
        if not known:
            self._layout.write_mark(mark)
        if blank is None:
            make_directory(self._layout.disk(mark.sandbox))
        else:
            disk.clone(blank, self._layout.disk(mark.sandbox))

    async def _sound(self, sandbox: SandboxId) -> None:
        """Wait until the kernel has let go of the disk, and repair it if the host stopped while it was in use."""
        image, deadline = self._layout.disk(sandbox), self._clock.monotonic() + RELEASE_S_MAX
        if image.is_dir():
            return
        while not disk.is_clean(image):
            # Either it is still being unmounted, which sets it clean, or nobody ever will.
            if not users_of(image):
                if not disk.is_clean(image):
                    await disk.repair(image)
                return
            if self._clock.monotonic() > deadline:
                raise Unavailable(f"the disk of {sandbox} is still in use", "Try again in a moment.")
            await sleep(0.01)

    async def _hold(self, machine: Machine, spec: SandboxSpec) -> None:
        sandbox, layers = spec.mark.sandbox, self._rootfs_of(spec.template_digest)
        bundle, where = self._layout.bundle(sandbox), place(self._layout, machine, spec)
        make_directory(bundle)
        (bundle / "config.json").write_text(json.dumps(configuration(spec, where)))
        borrowed = await self._userns.borrow(where.uids) if machine.own_ranges else None
        self._arming += 1
        try:
            together = parts(self._layout, machine, spec, layers, guest=self._guest, userns=borrowed)
            pid = await machine.runtime.create(sandbox, bundle, lambda: assemble(together))
        finally:
            self._arming -= 1
            if borrowed is not None:
                os.close(borrowed)
                # Slots are given in order, so this is most likely the next sandbox's.
                self._userns.expect(machine.uids(spec.slot + 1))
        if first_process.note(bundle, pid) is None:
            raise Unavailable(f"the first process of {sandbox} ended at once", "See `agentlab doctor`.")

    async def _begun(self, machine: Machine, sandbox: SandboxId) -> None:
        """Wait until the first process is the guest's: crun answers before, and cannot join it until then."""
        first, deadline = self._first(sandbox), self._clock.monotonic() + RELEASE_S_MAX
        while first is not None and machine.runtime.name != "runsc" and not first.runs(INIT):
            if self._clock.monotonic() > deadline:
                raise Unavailable(f"the first process of {sandbox} does not begin", "The machine may be overloaded.")
            await sleep(0.001)

    async def _clear(self, machine: Machine, mark: Mark, *, remember: bool) -> None:
        """End what runs and forget the container; with `remember`, keep why it had ended by itself."""
        sandbox, bundle = mark.sandbox, self._layout.bundle(mark.sandbox)
        if not bundle.exists():
            return
        detail = observed(self._layout, machine, mark).exit_detail if remember else ""
        first = self._first(sandbox)
        try:
            await machine.runtime.delete(sandbox)
        except BackendError:
            if first is None:
                raise
        if first is not None and first.lives():
            # The runtime's own notes are lost or it failed; ours are enough.
            first.kill()
            await all_ended([first.pid], RELEASE_S_MAX)
            await machine.runtime.delete(sandbox)
        await machine.cgroups.remove(self._layout.cgroup(sandbox))
        for name in ("init.json", "started", "pid"):
            (bundle / name).unlink(missing_ok=True)
        (bundle / "exit").write_text(detail)
