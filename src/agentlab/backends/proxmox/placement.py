"""Where a new sandbox goes: which node, which copy of the template, which storage.  Pure, and the same every time.

The cluster's view lags, so that what was placed a moment ago is counted from our own books until it is seen to run.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agentlab.backends.interface import Refused, Unavailable
from agentlab.backends.proxmox.observe import ClusterView, NodeView, StorageView
from agentlab.base.units import format_bytes

# Storages that can clone a template's disk by reference.  A directory can if the disk is qcow2, as ours are.
LINKED_CLONE_TYPES = frozenset({"dir", "nfs", "cifs", "glusterfs", "btrfs", "cephfs", "lvmthin", "zfspool", "rbd"})
REASONS_TOLD_MAX = 12  # nodes, in one explanation


class Strategy(enum.Enum):
    """Whether sandboxes are given to the emptiest node, or to the fullest that can take them."""

    SPREAD = "spread"
    PACK = "pack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an administrator decides about placement."""

    strategy: Strategy = Strategy.SPREAD
    nodes: frozenset[str] = frozenset()  # only these; all if empty
    maintenance: frozenset[str] = frozenset()  # none of these
    storages: tuple[str, ...] = ()  # for full clones, in order of preference; any that holds images if empty
    full_clones: bool = False  # rather than linked ones, everywhere
    memory_reserve_bytes: int = 2 << 30  # left to each node
    memory_overcommit: float = 1.0  # of what all running VMs together may be promised
    cpu_overcommit: float = 4.0
    storage_reserve_bytes: int = 4 << 30  # left on each storage
    thin_fraction: float = 0.25  # of a linked clone's size, that must be free: it grows later


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A template on the cluster.  On a shared storage every node that sees it can clone it."""

    vmid: int
    node: str
    storage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a sandbox needs."""

    memory_bytes: int
    cpus: float
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """A sandbox that was placed already; counted until the view shows it running."""

    vmid: int
    node: str
    storage: str
    memory_bytes: int
    cpus: float
    disk_bytes: int  # that it may still come to occupy


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The choice, and why not the others."""

    node: str
    copy: Copy
    storage: str  # where its disk will be
    full: bool  # a whole copy: the storage cannot do better, or the policy wants it
    rejected: Mapping[str, str] = field(default_factory=dict)  # node → reason
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Source:
    copy: Copy
    storage: str
    full: bool


@dataclass(frozen=True, slots=True)
class _Offer:
    node: str
    source: _Source
    headroom: float  # the scarcer of memory and processors, as a fraction, once the sandbox runs there
    sandboxes: int


class _Unfit(Exception):
    """Why a node cannot take it; `passing` if that may change by itself."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.reason, self.passing = reason, passing


def place(
    wanted: Wanted,
    copies: Sequence[Copy],
    view: ClusterView,
    booked: Iterable[Booked] = (),
    policy: Policy | None = None,
) -> Placement:
    """Choose.  Refused if no node could ever take it, Unavailable if none can now; both name each node's reason."""
    if not copies:
        raise Refused("the template is on no node of the cluster", "Bring it there: see `agentlab template`.")
    world = _World(view=view, booked=tuple(booked), policy=policy or Policy())
    offers: list[_Offer] = []
    rejected: dict[str, _Unfit] = {}
    for name in sorted(view.nodes):
        try:
            offers.append(world.offer(view.nodes[name], wanted, copies))
        except _Unfit as unfit:
            rejected[name] = unfit
    reasons = {name: unfit.reason for name, unfit in rejected.items()}
    if not offers:
        raise _nowhere(reasons, passing=any(unfit.passing for unfit in rejected.values()))
    sign = -1 if world.policy.strategy is Strategy.SPREAD else 1
    best = min(offers, key=lambda each: (each.source.full, sign * each.headroom, each.sandboxes, each.node))
    return Placement(
        node=best.node,
        copy=best.source.copy,
        storage=best.source.storage,
        full=best.source.full,
        rejected=reasons,
        why=_why(best, len(offers), reasons, world.policy),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    view: ClusterView
    booked: tuple[Booked, ...]
    policy: Policy

    def offer(self, node: NodeView, wanted: Wanted, copies: Sequence[Copy]) -> _Offer:
        """What the node offers.  Raises _Unfit."""
        self._require_open(node)
        seen = [vm for vm in self.view.vms.values() if vm.node == node.name and vm.runs]
        running = {vm.vmid for vm in seen}
        promised = [each for each in self.booked if each.node == node.name and each.vmid not in running]
        memory = self._memory_left(node, sum(vm.memory_bytes for vm in seen), promised)
        if memory < wanted.memory_bytes:
            fits_empty = wanted.memory_bytes + self.policy.memory_reserve_bytes <= node.memory_bytes
            left = f"{format_bytes(max(memory, 0))} left of {format_bytes(node.memory_bytes)}"
            raise _Unfit(f"memory: {left}", passing=fits_empty)
        all_cpus = node.cpus * self.policy.cpu_overcommit
        cpus = all_cpus - sum(vm.cpus for vm in seen) - sum(each.cpus for each in promised)
        if cpus < wanted.cpus:
            left = f"{max(cpus, 0):g} left of {node.cpus} × {self.policy.cpu_overcommit:g}"
            raise _Unfit(f"processors: {left}", passing=wanted.cpus <= all_cpus)
        headroom = min((memory - wanted.memory_bytes) / node.memory_bytes, (cpus - wanted.cpus) / all_cpus)
        return _Offer(node.name, self._source(node, wanted, copies), round(headroom, 6), len(seen) + len(promised))

    def _require_open(self, node: NodeView) -> None:
        if self.policy.nodes and node.name not in self.policy.nodes:
            raise _Unfit("not among the configured nodes", passing=False)
        if node.maintenance or node.name in self.policy.maintenance:
            raise _Unfit("in maintenance", passing=True)
        if not node.online:
            raise _Unfit("offline", passing=True)
        if not node.memory_bytes:
            raise _Unfit("its memory is not shown yet, or Sys.Audit on /nodes is missing", passing=True)

    def _memory_left(self, node: NodeView, running_bytes: int, promised: Sequence[Booked]) -> int:
        """The lesser of what is free now and what is not promised; a VM that has just started has not taken its all."""
        booked = sum(each.memory_bytes for each in promised)
        by_use = node.memory_bytes - node.memory_used_bytes - booked
        by_promise = int(node.memory_bytes * self.policy.memory_overcommit) - running_bytes - booked
        return min(by_use, by_promise) - self.policy.memory_reserve_bytes

    def _source(self, node: NodeView, wanted: Wanted, copies: Sequence[Copy]) -> _Source:
        """The copy of the template that the node can clone, by reference if possible, and where to."""
        unfit = _Unfit("the template is not on this node, nor on a storage that it shares", passing=False)
        found: list[_Source] = []
        for copy in sorted(copies, key=lambda each: (each.node != node.name, each.vmid)):
            at = self.view.storages.get((node.name, copy.storage))
            if copy.node != node.name and not (at is not None and at.shared):
                continue
            try:
                found.append(self._way(node, wanted, copy, at))
            except _Unfit as error:
                unfit = error
        if not found:
            raise unfit
        return min(found, key=lambda each: each.full)

    def _way(self, node: NodeView, wanted: Wanted, copy: Copy, at: StorageView | None) -> _Source:
        if at is None or not at.available:
            raise _Unfit(f"storage {copy.storage}, which holds the template, is not available", passing=True)
        if at.type in LINKED_CLONE_TYPES and not self.policy.full_clones:
            self._require_space(at, int(wanted.disk_bytes * self.policy.thin_fraction))
            return _Source(copy, at.name, full=False)
        targets = [each for each in self.view.storages.values() if each.node == node.name and "images" in each.content]
        order = {name: index for index, name in enumerate(self.policy.storages)}
        if order:
            targets = [each for each in targets if each.name in order]
        unfit = _Unfit("no storage for disks is available", passing=False)
        for each in sorted(targets, key=lambda each: (order.get(each.name, 0), -each.free_bytes, each.name)):
            try:
                self._require_space(each, wanted.disk_bytes)
            except _Unfit as error:
                unfit = error
            else:
                return _Source(copy, each.name, full=True)
        raise unfit

    def _require_space(self, storage: StorageView, needed_bytes: int) -> None:
        if not storage.available:
            raise _Unfit(f"storage {storage.name} is not available", passing=True)
        booked = sum(
            each.disk_bytes
            for each in self.booked
            if each.storage == storage.name
            and (storage.shared or each.node == storage.node)
            and each.vmid not in self.view.vms
        )
        left = storage.free_bytes - booked - self.policy.storage_reserve_bytes
        if left < needed_bytes:
            raise _Unfit(f"storage {storage.name}: {format_bytes(max(left, 0))} left", passing=True)


def _nowhere(reasons: Mapping[str, str], *, passing: bool) -> Refused | Unavailable:
    said = _listed(reasons) or "no node is to be seen: the token lacks its rights"
    cause = f"no node can take the sandbox: {said}"
    if passing:
        return Unavailable(cause, "Destroy sandboxes, wait until some end, or bring nodes back.")
    return Refused(cause, "Ask for less, put the template where it is needed, or change the backend's settings.")


def _why(best: _Offer, offers: int, reasons: Mapping[str, str], policy: Policy) -> str:
    way = "a full copy" if best.source.full else "a linked clone"
    most = "most" if policy.strategy is Strategy.SPREAD else "least"
    chosen = f"{best.node}: {way} of {best.source.copy.vmid} on {best.source.storage}"
    if offers > 1:
        chosen += f"; of {offers} nodes the one with the {most} room ({policy.strategy.value})"
    return f"{chosen}; not {_listed(reasons)}" if reasons else chosen


def _listed(reasons: Mapping[str, str]) -> str:
    told = [f"{name} ({reason})" for name, reason in sorted(reasons.items())[:REASONS_TOLD_MAX]]
    more = len(reasons) - len(told)
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")
