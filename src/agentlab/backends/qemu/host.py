"""What this machine offers to virtual machines, once it has been looked at."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.backends.cgroup import Cgroups, Limits
from agentlab.backends.interface import Capability
from agentlab.backends.qemu.command import Shape, emulation_cache_bytes
from agentlab.model.resources import Resources

PROCESS_BYTES = 256 << 20  # QEMU itself, its buffers and what it caches of its disks' tables
PROCESS_THREADS_MAX = 256

_LIMITS = {Capability.MEMORY_LIMIT: "memory", Capability.CPU_LIMIT: "cpu"}
_MISSING = {
    Capability.MEMORY_LIMIT: "The memory of a VM's process beyond that of the guest is not limited: no control groups "
    "can be written.",
    Capability.CPU_LIMIT: "CPU time is limited only to whole processors: no control groups can be written.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The parts that were found and seen to work."""

    program: str
    version: str  # of QEMU, with its packager's addition
    accelerator: str  # kvm or tcg
    processor: str  # what tells one processor's abilities from another's
    cgroups: Cgroups
    taps: bool

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What planning may ask for.  A guest's processes are limited by its own memory, and its disk by its size."""
        found = {Capability.EXEC, Capability.PAUSE, Capability.DISK_QUOTA, Capability.USER_RANGES}
        found |= {Capability.SNAPSHOT, Capability.MEMORY_SNAPSHOT, Capability.FORK, Capability.WORKSPACE}
        found |= {capability for capability, name in _LIMITS.items() if name in self.cgroups.controllers}
        if self.taps:
            found.add(Capability.NETWORK)
        return frozenset(found)

    @property
    def missing_guarantees(self) -> tuple[str, ...]:
        """A sentence for each guarantee that sandboxes lack here."""
        return tuple(text for capability, text in _MISSING.items() if capability not in self.capabilities)


def limits(shape: Shape, cpus: float) -> Limits:
    """What the process of such a machine may use.

    Twice the guest's memory: what it touches first of the prepared memory, where that has a hole, counts for it too.
    """
    memory_bytes = 2 * shape.memory_bytes + emulation_cache_bytes(shape) + PROCESS_BYTES
    return Limits(memory_bytes=memory_bytes, cpus=cpus, pids_max=PROCESS_THREADS_MAX)


def shape_of(resources: Resources, accelerator: str, *, network: bool) -> Shape:
    """The machine that has these resources, in whole MiB and whole processors."""
    return Shape(
        accelerator=accelerator,
        memory_bytes=resources.memory_bytes >> 20 << 20,
        cpus=max(1, -int(-resources.cpus // 1)),
        network=network,
    )
