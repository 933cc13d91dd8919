"""Which VMID comes next.  Pure.

The cluster's `nextid` reserves nothing: three that ask get the same.  We choose within our own range, remember the
choice before the clone, and take "already exists" for a reason to choose another.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agentlab.backends.interface import Refused

VMID_MIN, VMID_MAX = 100, 999_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class VmidRange:
    """Both ends belong to it."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not VMID_MIN <= self.first <= self.last <= VMID_MAX:
            raise ValueError(f"{self.first}-{self.last} is not a range of VMIDs within {VMID_MIN} … {VMID_MAX}")

    def __contains__(self, vmid: object) -> bool:
        return isinstance(vmid, int) and self.first <= vmid <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1

    @staticmethod
    def parse(text: str) -> VmidRange:
        """`20000-29999`.  ValueError if it is none."""
        first, dash, last = text.strip().partition("-")
        if not dash or not first.strip().isdigit() or not last.strip().isdigit():
            raise ValueError(f"{text!r} is not a range of VMIDs; write for example 20000-29999")
        return VmidRange(first=int(first), last=int(last))

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def free_vmid(
    within: VmidRange, used: Collection[int], reserved: Collection[int], fraction: float, *, setting: str = "vmid_range"
) -> int:
    """The first free id from a point on that `fraction`, a random number in [0, 1), decides.

    Random, because a second installation may have the same range.  Raises Refused, naming the range and its setting,
    if none is left.
    """
    taken = {each for each in (*used, *reserved) if each in within}
    size = len(within)
    if len(taken) >= size:
        raise Refused(
            f"all {size} VMIDs of the range {within} are taken, {len(taken & set(reserved))} of them by AgentLab",
            f"Destroy sandboxes, or give the backend a larger range with its setting `{setting}`.",
        )
    start = min(int(fraction * size), size - 1)
    for step in range(size):  # ends after at most one more than are taken
        vmid = within.first + (start + step) % size
        if vmid not in taken:
            return vmid
    raise AssertionError("unreachable")
