"""What this machine offers to the backend, once it has been looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.cgroup import Cgroups
from agentlab.backends.interface import Capability
from agentlab.backends.oci.runtime import Runtime
from agentlab.backends.oci.userns import UidRange, covers, pieces

_LIMITS = {
    Capability.MEMORY_LIMIT: "memory",
    Capability.CPU_LIMIT: "cpu",
    Capability.PIDS_LIMIT: "pids",
    Capability.PAUSE: "freezer",
}
_MISSING = {
    Capability.MEMORY_LIMIT: "Memory is not limited: no control groups can be written.",
    Capability.CPU_LIMIT: "CPU time is not limited: no control groups can be written.",
    Capability.PIDS_LIMIT: "The number of processes is not limited: no control groups can be written.",
    Capability.DISK_QUOTA: "Disk use is not limited: loop devices cannot be used.",
    Capability.USER_RANGES: "All sandboxes share one range of user ids, and their root is the daemon's own user: what "
    "breaks out of one has that user's rights.",
}
_NO_NETWORK = "Sandboxes have no network, only mode `off`: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """What leads out of the network namespace of this process, where that is not the host's own."""

    possible: bool
    sentence: str  # what is weaker than on the host's own network, or why there is no way out


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The parts that were found and seen to work."""

    runtime: Runtime
    init: Path
    cgroups: Cgroups
    loops: bool
    nested: bool  # this process is in a user namespace itself
    ids: tuple[tuple[int, int], ...]
    uid_first: int
    outbound: Outbound | None = None

    @property
    def own_ranges(self) -> bool:
        """Whether sandboxes can have uids of their own: shifting the owners of layers needs the real root."""
        return not self.nested and covers(self.ids, UidRange(first=self.uid_first))

    def uids(self, slot: int) -> UidRange:
        """The range of the sandbox in this slot."""
        if not self.own_ranges:
            return UidRange(
                first=0, length=min(65536, sum(each.length for each in pieces(self.ids, UidRange(first=0))))
            )
        return UidRange(first=self.uid_first + slot * 65536)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What planning may ask for."""
        found = {Capability.EXEC}
        if (self.outbound is None and not self.nested) or (self.outbound is not None and self.outbound.possible):
            found.add(Capability.NETWORK)
        found |= {capability for capability, name in _LIMITS.items() if name in self.cgroups.controllers}
        if self.loops:
            found.add(Capability.DISK_QUOTA)
        if self.own_ranges:
            found.add(Capability.USER_RANGES)
        return frozenset(found)

    @property
    def missing_guarantees(self) -> tuple[str, ...]:
        """A sentence for each guarantee that sandboxes lack here."""
        found = [text for capability, text in _MISSING.items() if capability not in self.capabilities]
        if self.outbound is not None:
            found.append(f"{'' if self.outbound.possible else _NO_NETWORK}{self.outbound.sentence}")
        return tuple(found)
