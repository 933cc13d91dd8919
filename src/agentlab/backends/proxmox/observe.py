"""The cluster as two calls show it, whatever the number of VMs: its resources, and its latest tasks.

What is shown lags by up to 10 s: a new VM is `unknown` and has neither name nor sizes; tags, pool and lock are there at
once.  A token without rights sees empty lists instead of an error.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agentlab.backends.proxmox import lenient
from agentlab.backends.proxmox.api import Api
from agentlab.backends.proxmox.lenient import Row, integer, number, text, truth


class VmStatus(enum.Enum):
    """What the cluster says of a VM's power."""

    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    HIBERNATED = "hibernated"  # its memory lies on a storage; the lock tells before the status does
    UNKNOWN = "unknown"  # not looked at yet, or its node is away


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node.  Sizes are 0 for whoever may not see them."""

    name: str
    online: bool
    maintenance: bool
    memory_bytes: int
    memory_used_bytes: int
    cpus: int
    cpu_used: float  # fraction of all


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM, ours or not; sizes are 0 while they are not known."""

    vmid: int
    node: str
    status: VmStatus
    name: str
    pool: str
    tags: tuple[str, ...]
    lock: str
    template: bool
    memory_bytes: int
    cpus: float
    disk_bytes: int
    uptime_s: int

    @property
    def runs(self) -> bool:
        """Whether it occupies memory."""
        return self.status in (VmStatus.RUNNING, VmStatus.PAUSED)


@dataclass(frozen=True, slots=True)
class StorageView:
    """A storage as one node sees it; a shared one is seen by several."""

    name: str
    node: str
    available: bool
    shared: bool
    content: frozenset[str]
    type: str  # "dir", "lvmthin", "zfspool", "rbd", …
    size_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What is left of it."""
        return max(self.size_bytes - self.used_bytes, 0)


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task that runs or ended lately."""

    upid: str
    node: str
    type: str
    id: str
    user: str
    started_at: int
    ended_at: int | None
    status: str  # empty while it runs

    @property
    def runs(self) -> bool:
        """Whether it has not ended, as far as this view knows."""
        return self.ended_at is None and self.status == ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """All of it at one moment."""

    at: float  # seconds since the epoch, by our clock, before the calls were made
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    vms: Mapping[int, VmView] = field(default_factory=dict)
    storages: Mapping[tuple[str, str], StorageView] = field(default_factory=dict)  # by node and name
    pools: frozenset[str] = frozenset()
    tasks: tuple[TaskView, ...] = ()
    other_vmids: frozenset[int] = frozenset()  # of containers: they share the numbers

    @property
    def vmids(self) -> frozenset[int]:
        """All numbers that are seen to be taken."""
        return self.other_vmids | self.vms.keys()

    def running_tasks_of(self, vmid: int) -> list[TaskView]:
        """The tasks that work on a VM now."""
        return [each for each in self.tasks if each.runs and each.id == str(vmid)]


async def observe(api: Api, at: float) -> ClusterView:
    """Look at the cluster: two calls.  Raises ProxmoxError."""
    resources = await api.call("GET", "/cluster/resources")
    tasks = await api.call("GET", "/cluster/tasks")
    return parse(resources, tasks, at)


def parse(resources: object, tasks: object, at: float) -> ClusterView:
    """The view that these answers give; rows that cannot be understood are passed over."""
    nodes: dict[str, NodeView] = {}
    vms: dict[int, VmView] = {}
    storages: dict[tuple[str, str], StorageView] = {}
    pools: set[str] = set()
    others: set[int] = set()
    for row in lenient.rows(resources):
        match row.get("type"):
            case "qemu":
                vm = _vm(row)
                vms[vm.vmid] = vm
            case "lxc":
                others.add(integer(row, "vmid"))
            case "storage":
                storage = _storage(row)
                storages[storage.node, storage.name] = storage
            case "node":
                node = _node(row)
                nodes[node.name] = node
            case "pool":
                pools.add(text(row, "pool"))
    vms.pop(0, None)
    return ClusterView(
        at=at,
        nodes=nodes,
        vms=vms,
        storages=storages,
        pools=frozenset(pools),
        tasks=tuple(_tasks(lenient.rows(tasks))),
        other_vmids=frozenset(others - {0}),
    )


def _vm(row: Row) -> VmView:
    tags = row.get("tags")
    return VmView(
        vmid=integer(row, "vmid"),
        node=text(row, "node"),
        status=_status(row),
        name=text(row, "name"),
        pool=text(row, "pool"),
        tags=tuple(str(tags).replace(",", ";").replace(" ", ";").split(";")) if tags and str(tags).strip() else (),
        lock=text(row, "lock"),
        template=truth(row, "template"),
        memory_bytes=integer(row, "maxmem"),
        cpus=number(row, "maxcpu"),
        disk_bytes=integer(row, "maxdisk"),
        uptime_s=integer(row, "uptime"),
    )


def _status(row: Row) -> VmStatus:
    if row.get("lock") == "suspended":
        return VmStatus.HIBERNATED
    try:
        return VmStatus(row.get("status"))
    except ValueError:
        return VmStatus.UNKNOWN


def _node(row: Row) -> NodeView:
    return NodeView(
        name=text(row, "node"),
        online=row.get("status") == "online",
        maintenance="maintenance" in text(row, "hastate"),
        memory_bytes=integer(row, "maxmem"),
        memory_used_bytes=integer(row, "mem"),
        cpus=integer(row, "maxcpu"),
        cpu_used=number(row, "cpu"),
    )


def _storage(row: Row) -> StorageView:
    return StorageView(
        name=text(row, "storage"),
        node=text(row, "node"),
        available=row.get("status") == "available",
        shared=truth(row, "shared"),
        content=frozenset(text(row, "content").split(",")) - {""},
        type=text(row, "plugintype"),
        size_bytes=integer(row, "maxdisk"),
        used_bytes=integer(row, "disk"),
    )


def _tasks(rows: Iterable[Row]) -> Iterable[TaskView]:
    for row in rows:
        ended = integer(row, "endtime")
        status = text(row, "status")
        yield TaskView(
            upid=text(row, "upid"),
            node=text(row, "node"),
            type=text(row, "type"),
            id=text(row, "id"),
            user=text(row, "user") + (f"!{token}" if (token := text(row, "tokenid")) else ""),
            started_at=integer(row, "starttime"),
            ended_at=ended or None,
            status="" if status.lower() == "running" else status,
        )
