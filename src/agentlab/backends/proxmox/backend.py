"""Sandboxes as VMs of a Proxmox VE cluster, by its API and a token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from agentlab.backends.interface import BackendError, Capability, Command, Gone, Probe, Refused, Unavailable
from agentlab.backends.link.control import Control
from agentlab.backends.link.execution import VmExecution
from agentlab.backends.link.guests import Guests
from agentlab.backends.proxmox.arming import Armory, PortOf, identity_of
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.leak import require_walls
from agentlab.backends.proxmox.making import MAKE_S_MAX, CopiesOf, Maker, half_cloned, require_ours
from agentlab.backends.proxmox.observe import VmStatus
from agentlab.backends.proxmox.ownership import Whose, is_foreign, is_ours
from agentlab.backends.proxmox.records import VmRecord
from agentlab.backends.proxmox.rescue import last_words
from agentlab.backends.proxmox.snapshots import ClusterSnapshots
from agentlab.backends.proxmox.workspaces import ClusterWorkspaces
from agentlab.backends.translation import translated
from agentlab.base.clock import sleep
from agentlab.base.entropy import Entropy
from agentlab.base.tasks import TaskScope, in_thread
from agentlab.model.ids import SandboxId
from agentlab.model.network import Card
from agentlab.model.sandbox import Mark, Observed, Power, SandboxSpec

log = logging.getLogger(__name__)

MEMORY_BYTES_MIN = 192 << 20  # below it, a system does not come up
CAPABILITIES = frozenset(
    {
        Capability.EXEC,
        Capability.PAUSE,
        Capability.DISK_QUOTA,
        Capability.MEMORY_LIMIT,
        Capability.CPU_LIMIT,
        Capability.NETWORK,
        Capability.SNAPSHOT,
        Capability.WORKSPACE,
    }
)
START_S_MAX = 120.0
STOP_S_MAX = 60.0
PAUSE_S_MAX = 60.0
DESTROY_S_MAX = 300.0
LINK_S_MAX = 15.0  # for a guest whose connection has just broken
LOOK_S = 0.3  # between two looks at a VM that shuts down
_RUNS = (VmStatus.RUNNING, VmStatus.PAUSED)
_POWER = {VmStatus.RUNNING: Power.RUNNING, VmStatus.PAUSED: Power.PAUSED}


class ProxmoxBackend:
    """See `Backend`.  The cluster is asked; what we wrote down says only which VMs are ours.

    `guests` is where machines call home.  `copies_of` gives the copies of a sandbox's template, bringing it to the
    cluster if need be.  `look` is the probe.  `walls` are addresses that no sandbox may reach and that answer whoever
    does: the guest tries them before it is called ready.
    """

    name = "proxmox"
    parallel_max = 64  # they wait for clones and boots of the cluster, not for this machine
    guest_arguments: tuple[str, ...] = ("--own-cgroup",)

    def __init__(
        self,
        cluster: Cluster,
        guests: Guests,
        *,
        copies_of: CopiesOf,
        port_of: PortOf,
        look: Callable[[], Awaitable[Probe]],
        entropy: Entropy,
        walls: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._cluster, self._guests, self._entropy, self._walls = cluster, guests, entropy, tuple(walls)
        self._maker = Maker(cluster, entropy, copies_of)
        self._armory = Armory(cluster, guests, port_of, entropy)
        self._look = look
        self._capabilities: frozenset[Capability] = frozenset()
        self._workspaces = ClusterWorkspaces(cluster, self._control, self._running, self._lock)
        self._snapshots = ClusterSnapshots(cluster, self._seen, self._lock, guests, self._workspaces.has_disks)
        self._locks: WeakValueDictionary[SandboxId, asyncio.Lock] = WeakValueDictionary()
        self._scope = TaskScope("proxmox")
        self._fresh: set[SandboxId] = set()  # cloned by us a moment ago, and touched by nobody since
        self.step_s_max: Mapping[str, float] = {
            "create": MAKE_S_MAX,
            "arm": 180.0,
            "start": START_S_MAX + cluster.plan.boot_s_max + cluster.plan.enforce_s_max + 30,
            "stop": 180.0,
            "destroy": DESTROY_S_MAX + STOP_S_MAX + 60,
        }

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._capabilities

    @property
    def snapshots(self) -> ClusterSnapshots | None:
        return self._snapshots if Capability.SNAPSHOT in self._capabilities else None

    @property
    def workspaces(self) -> ClusterWorkspaces | None:
        return self._workspaces if Capability.WORKSPACE in self._capabilities else None

    async def probe(self) -> Probe:
        probe = await self._look()
        self._capabilities = probe.capabilities
        return probe

    async def list(self) -> Sequence[Observed]:
        async with translated("list"):
            await self._cluster.look()
            records = await in_thread(lambda: [*self._cluster.records.all()])
        found = []
        for mark, record in records:
            if record is None or not record.made:
                found.append(Observed(mark=mark, power=Power.STOPPED, whole=False))
                continue
            status = self._cluster.seen(mark.sandbox, record)
            if status is VmStatus.UNKNOWN:
                # A node that is away says nothing of its VMs, and a new VM is not looked at for a while.
                status = VmStatus.RUNNING if record.started else VmStatus.STOPPED
            if status is not None:
                found.append(_observed(mark, record, status))
        return found

    async def inspect(self, sandbox: SandboxId) -> Observed | None:
        async with translated("inspect"):
            mark = await in_thread(lambda: self._cluster.records.mark(sandbox))
            if mark is None or mark.installation != self._cluster.records.installation:
                return None
            record = await in_thread(lambda: self._cluster.records.read(sandbox))
            if record is None or not record.made:
                return Observed(mark=mark, power=Power.STOPPED, whole=False)
            status = await self._cluster.status(sandbox, record)
            return None if status is None else _observed(mark, record, status)

    async def create(self, spec: SandboxSpec) -> Observed:
        mark = spec.mark
        async with self._lock(mark.sandbox), translated("create"):
            if spec.resources.memory_bytes < MEMORY_BYTES_MIN:
                remedy = f"Give it at least {MEMORY_BYTES_MIN >> 20} MiB."
                raise Refused(f"{spec.resources.memory_bytes >> 20} MiB are too little for a virtual machine", remedy)
            records = self._cluster.records
            if not await in_thread(lambda: records.verify_home(mark)):
                await in_thread(lambda: records.write_mark(mark))
            record = await in_thread(lambda: records.read(mark.sandbox))
            if record is not None and record.made:
                status = await self._cluster.status(mark.sandbox, record)
                if status is not None:
                    return _observed(mark, record, status)
                record = None  # somebody has removed it
            record = await self._maker.make(spec, record)
            self._fresh.add(mark.sandbox)
            return _observed(mark, record, self._cluster.know(mark.sandbox, VmStatus.STOPPED))

    async def arm(self, spec: SandboxSpec) -> Observed:
        mark = spec.mark
        async with self._lock(mark.sandbox), translated("arm"):
            record, status = await self._seen(mark)
            if status in _RUNS or (record.armed and status is VmStatus.STOPPED):
                return _observed(mark, record, status)
            if status is VmStatus.HIBERNATED:
                raise Refused(f"VM {record.vmid} is hibernated", f"As an administrator: qm resume {record.vmid}")
            fresh = mark.sandbox in self._fresh
            record = await self._armory.arm(spec, record, fresh=fresh)
            return _observed(mark, record, VmStatus.STOPPED)

    async def start(self, mark: Mark) -> None:
        async with self._lock(mark.sandbox), translated("start"):
            record, status = await self._seen(mark)
            self._fresh.discard(mark.sandbox)
            if status in _RUNS and record.started:
                return
            if status not in _RUNS:
                if not record.armed:
                    raise Gone(f"{mark.sandbox} is not armed", "Arm it first.")
                record = await self._power_on(mark, record)
            await self._welcome(mark, record)

    async def stop(self, mark: Mark, grace_s: float) -> None:
        async with self._lock(mark.sandbox), translated("stop"):
            record, status = await self._seen(mark)
            if status in _RUNS:
                await self._require_ours(mark, record)
                if status is VmStatus.RUNNING and record.started and grace_s > 0:
                    await self._wind_down(mark, record, grace_s)
                await self._power_off(mark, record)
            await self._workspaces.release(mark, record)
            await self._guests.forget(mark.sandbox)
            await self._cluster.note(mark.sandbox, record, armed=False, ran=False, started=False, policed=False)

    async def pause(self, mark: Mark) -> None:
        async with self._lock(mark.sandbox), translated("pause"):
            record, status = await self._seen(mark)
            if status is VmStatus.PAUSED:
                return
            if status is not VmStatus.RUNNING or not record.started:
                raise Gone(f"{mark.sandbox} does not run", "Only a running sandbox can be paused.")
            await self._require_ours(mark, record)
            await self._act("pausing", record, "suspend", PAUSE_S_MAX)
            self._cluster.know(mark.sandbox, VmStatus.PAUSED)

    async def resume(self, mark: Mark) -> None:
        async with self._lock(mark.sandbox), translated("resume"):
            record, status = await self._seen(mark)
            if status is VmStatus.RUNNING:
                return
            if status is not VmStatus.PAUSED:
                raise Gone(f"{mark.sandbox} is {status.value}", "Only a paused sandbox can be resumed.")
            await self._require_ours(mark, record)
            await self._act("resuming", record, "resume", PAUSE_S_MAX)
            self._cluster.know(mark.sandbox, VmStatus.RUNNING)
            try:
                control = await self._guests.control(mark.sandbox, LINK_S_MAX)
                await control.set_clock(int(self._cluster.clock.now() * 1e9))
            except Unavailable as error:
                log.warning("clock was not set after a pause", extra={"sandbox": mark.sandbox, "cause": error.cause})

    async def destroy(self, mark: Mark) -> None:
        async with self._lock(mark.sandbox), translated("destroy"):
            records = self._cluster.records
            if not await in_thread(lambda: records.verify_home(mark)):
                return
            record = await in_thread(lambda: records.read(mark.sandbox))
            if record is not None:
                await self._remove(mark, record)
            await self._guests.forget(mark.sandbox)
            await in_thread(lambda: records.remove_home(mark.sandbox))
            self._cluster.forget(mark.sandbox)
            self._fresh.discard(mark.sandbox)

    @asynccontextmanager
    async def execute(self, mark: Mark, command: Command) -> AsyncIterator[VmExecution]:
        async with translated("exec"):
            execution = await (await self._control(mark)).execute(command)
        try:
            yield execution
        finally:
            await execution.end()

    async def launch(self, mark: Mark, command: Command, stdin: bytes) -> None:
        async with translated("launch"):
            await (await self._control(mark)).launch(command, stdin)

    async def console(self, sandbox: SandboxId, bytes_max: int = 4096) -> str:
        control = self._guests.linked(sandbox)
        if control is None:
            return ""
        try:
            return (await control.tail(bytes_max))[-bytes_max:]
        except BackendError:
            return ""

    async def close(self) -> None:
        await self._scope.close()
        await self._guests.stop()
        await self._cluster.transport.close()

    # Seeing

    def _lock(self, sandbox: SandboxId) -> asyncio.Lock:
        return self._locks.setdefault(sandbox, asyncio.Lock())

    async def _seen(self, mark: Mark) -> tuple[VmRecord, VmStatus]:
        """Gone if there is no VM of this sandbox, NotOurs if its folder bears another mark."""
        records = self._cluster.records
        known = await in_thread(lambda: records.verify_home(mark))
        record = await in_thread(lambda: records.read(mark.sandbox)) if known else None
        if record is None or not record.made:
            raise Gone(f"there is no VM of {mark.sandbox}", "It was destroyed, or never made.")
        status = await self._cluster.status(mark.sandbox, record)
        if status is None:
            raise Gone(f"VM {record.vmid} of {mark.sandbox} is gone", "Something other than AgentLab removed it.")
        return record, status

    async def _require_ours(self, mark: Mark, record: VmRecord) -> None:
        config = await self._cluster.config(record)
        if config is None:
            raise Gone(f"VM {record.vmid} of {mark.sandbox} is gone", "Something other than AgentLab removed it.")
        require_ours(mark, record, config)

    async def _running(self, mark: Mark) -> VmRecord:
        """The record of a sandbox that runs and knows who it is.  Gone otherwise."""
        record, status = await self._seen(mark)
        if status is not VmStatus.RUNNING or not record.started:
            raise Gone(f"{mark.sandbox} does not run", "Commands need a running sandbox.")
        return record

    async def _control(self, mark: Mark) -> Control:
        await self._running(mark)
        return await self._guests.control(mark.sandbox, LINK_S_MAX)

    # Power

    async def _act(self, doing: str, record: VmRecord, what: str, limit_s: float) -> None:
        path = self._cluster.path(record, "status", what)
        await self._cluster.patiently(f"{doing} VM {record.vmid}", "POST", path, {}, limit_s)

    async def _power_on(self, mark: Mark, record: VmRecord) -> VmRecord:
        # Written first: what was asked to start is no longer armed, whether or not an answer comes.
        record = await self._cluster.note(mark.sandbox, record, armed=False, ran=True, started=False)
        self._cluster.forget(mark.sandbox)
        await self._act("starting", record, "start", START_S_MAX)
        self._cluster.know(mark.sandbox, VmStatus.RUNNING)
        return record

    async def _welcome(self, mark: Mark, record: VmRecord) -> None:
        """The guest has come home, is told who it is, and finds no way out but those that it may use."""
        plan = self._cluster.plan
        control = await self._home(mark, record)
        await control.identify(identity_of(mark, record, self._entropy, self._cluster.clock.now()))
        try:
            await require_walls(control, self._walls, plan.enforce_s_max, self._cluster.clock)
        except Refused:
            await self._power_off(mark, record)
            raise
        await self._cluster.note(mark.sandbox, record, started=True)
        self._cluster.know(mark.sandbox, VmStatus.RUNNING)
        self._scope.start(self._withdraw(mark), f"withdraw {mark.sandbox}")  # nobody has to wait for it

    async def _withdraw(self, mark: Mark) -> None:
        """Take the invitation, which was redeemed, out of what everybody may read who may see the VM."""
        async with self._lock(mark.sandbox):
            try:
                record, status = await self._seen(mark)
                if record.started and record.invited and status in _RUNS:
                    await self._armory.withdraw(mark, record)
            except BackendError as error:
                log.warning("spent invitation stays", extra={"sandbox": mark.sandbox, "cause": error.cause})

    async def _home(self, mark: Mark, record: VmRecord) -> Control:
        try:
            return await self._guests.control(mark.sandbox, self._cluster.plan.boot_s_max)
        except Unavailable as error:
            self._cluster.forget(mark.sandbox)
            status = await self._cluster.status(mark.sandbox, record)
            shown = "gone" if status is None else status.value
            said = await last_words(self._cluster, record) if status is VmStatus.RUNNING else ""
            raise Refused(
                f"{error.cause} (VM {record.vmid} on {self._cluster.node_of(record)} is {shown}; "
                f"{f'its agent says: {said}' if said else 'its agent says nothing'})",
                f"See its console in the web interface.  {error.remedy}",
            ) from error

    async def _wind_down(self, mark: Mark, record: VmRecord, grace_s: float) -> None:
        """Ask the guest to shut down, and give it that long."""
        control, clock = self._guests.linked(mark.sandbox), self._cluster.clock
        if control is None:
            return
        try:
            await control.shutdown()
        except BackendError:
            return
        end = clock.monotonic() + grace_s
        while clock.monotonic() < end:
            await sleep(LOOK_S)
            self._cluster.forget(mark.sandbox)
            if await self._cluster.status(mark.sandbox, record) not in _RUNS:
                return

    async def _power_off(self, mark: Mark, record: VmRecord) -> None:
        await self._act("stopping", record, "stop", STOP_S_MAX)
        self._cluster.know(mark.sandbox, VmStatus.STOPPED)

    # Removal

    async def _remove(self, mark: Mark, record: VmRecord) -> None:
        cluster = self._cluster
        if not record.made:
            await self._maker.ended(record)
            await self._maker.require_idle(record)
        config = await cluster.config(record)
        if config is None:
            return
        if not record.made and is_ours(config, mark, record.recorded, record.vmid).whose is Whose.UNDECIDED:
            raise half_cloned(record, cluster.node_of(record))
        if is_foreign(config, mark, record.recorded):
            log.warning(
                "a VM's number has become somebody else's", extra={"vmid": record.vmid, "sandbox": mark.sandbox}
            )
            return
        require_ours(mark, record, config)
        cluster.forget(mark.sandbox)
        if await cluster.status(mark.sandbox, record) in _RUNS:
            await self._power_off(mark, record)
        await self._workspaces.release(mark, record)
        doing = f"destroying VM {record.vmid}"
        params = {"purge": True, "destroy-unreferenced-disks": True}
        await cluster.patiently(doing, "DELETE", cluster.path(record), params, DESTROY_S_MAX)
        cluster.forget(mark.sandbox)


def _observed(mark: Mark, record: VmRecord, status: VmStatus) -> Observed:
    """ARMED is what has been configured for a start, or started and has not come home yet."""
    end = Card(record.vmid)
    if status in _RUNS:
        return Observed(mark=mark, power=_POWER[status] if record.started else Power.ARMED, end=end)
    if record.armed and status is VmStatus.STOPPED:
        return Observed(mark=mark, power=Power.ARMED, end=end)
    detail = "hibernated by an administrator" if status is VmStatus.HIBERNATED else ""
    return Observed(mark=mark, power=Power.STOPPED, exit_detail=detail)
