"""Control groups, version 1 and 2: where they are, what they can limit, and what they tell."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.base.clock import sleep

REMOVE_S_MAX = 2.0
ROOT = Path("/sys/fs/cgroup")
_V1_CONTROLLERS = ("memory", "cpu", "pids", "freezer", "cpuacct", "cpuset", "devices", "blkio", "systemd")


_LIMITING = ("memory", "cpu", "pids")
_CPU_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a group's processes may use together."""

    memory_bytes: int
    cpus: float
    pids_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroups:
    """The hierarchies in which sandboxes get groups of their own; `version` 0: none can be written."""

    version: int
    hierarchies: tuple[Path, ...] = ()  # where to find a sandbox's groups: one for version 2, several for 1
    controllers: Mapping[str, Path] = field(default_factory=dict)  # the limit controllers that work, and where
    hybrid: Path | None = None  # a version 2 hierarchy beside version 1, which crun refuses to see
    swap: bool = False  # swap can be limited

    def group(self, controller: str, path: str) -> Path | None:
        """The folder of the group `path` (such as "/agentlab-x/sb-y") for a controller, if that controller works."""
        found = self.controllers.get(controller)
        return None if found is None else found / path.lstrip("/")

    def oom_kills(self, path: str) -> int:
        """How many processes of the group the kernel has ended for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        folder = self.group("memory", path)
        return 0 if folder is None else _field(folder / name, "oom_kill")

    def frozen(self, path: str) -> bool:
        """Whether the group is paused."""
        folder = self.group("freezer", path)
        if folder is None:
            return False
        if self.version == 2:
            return _field(folder / "cgroup.events", "frozen") == 1
        return _text(folder / "freezer.state") in ("FROZEN", "FREEZING")

    def make(self, path: str, limits: Limits) -> tuple[Path, ...]:
        """Make the group, its parents too, and set its limits; the folders that a process must join.  Quiet if present.

        A controller that does not work is passed over.  Raises OSError.
        """
        parts = path.strip("/").split("/")
        folders: dict[Path, None] = {}
        for root in dict.fromkeys(self.controllers.get(name) for name in _LIMITING):
            if root is None:
                continue
            for depth in range(len(parts)):
                if self.version == 2:
                    _delegate(root.joinpath(*parts[:depth]), [name for name in _LIMITING if name in self.controllers])
                root.joinpath(*parts[: depth + 1]).mkdir(exist_ok=True)
            folders[root.joinpath(*parts)] = None
        for controller, name, value in _settings(self.version, limits, swap=self.swap):
            if (folder := self.group(controller, path)) is not None:
                (folder / name).write_text(value)
        return tuple(folders)

    async def remove(self, path: str) -> None:
        """Remove the group everywhere; waits a little while the last processes vanish.  Quiet if absent.

        Raises OSError (EBUSY) if something still lives in it after REMOVE_S_MAX.
        """
        for hierarchy in self.hierarchies:
            waited = 0.0
            while (error := _removed(hierarchy / path.lstrip("/"))) is not None:
                if waited >= REMOVE_S_MAX:
                    raise error
                await sleep(0.01)
                waited += 0.01

    def remove_if_empty(self, path: str) -> None:
        """Remove the group where it has neither children nor processes."""
        for hierarchy in self.hierarchies:
            _removed(hierarchy / path.lstrip("/"))


def detect(mountinfo: str, *, root: Path = ROOT, writable: bool | None = None) -> Cgroups:
    """The control groups of this machine, from the text of /proc/self/mountinfo."""
    mounts = [
        fields for line in mountinfo.splitlines() if (fields := line.split(" ")) and fields[4].startswith(str(root))
    ]
    points = {fields[4]: fields[fields.index("-") + 1 :] for fields in mounts}
    if points.get(str(root), [""])[0] == "cgroup2":
        return _version2(root, _writable(root) if writable is None else writable)
    found = {
        option: Path(point)
        for point, after in points.items()
        if after[0] == "cgroup"
        for option in _v1_names(after)
        if writable or (writable is None and _writable(Path(point)))
    }
    hybrid = next((Path(point) for point, after in points.items() if after[0] == "cgroup2"), None)
    if not found:
        return Cgroups(version=0, hybrid=hybrid)
    hierarchies = {*found.values(), *((hybrid,) if hybrid else ())}
    swap = "memory" in found and (found["memory"] / "memory.memsw.limit_in_bytes").exists()
    limits: dict[str, Path] = {name: found[name] for name in ("memory", "cpu", "pids", "freezer") if name in found}
    return Cgroups(version=1, hierarchies=tuple(sorted(hierarchies)), controllers=limits, hybrid=hybrid, swap=swap)


def _settings(version: int, limits: Limits, *, swap: bool) -> list[tuple[str, str, str]]:
    """Controller, file and value of each limit, in the order in which they can be written."""
    memory, quota = str(limits.memory_bytes), str(max(1000, round(limits.cpus * _CPU_PERIOD_US)))
    if version == 2:
        swaps = [("memory", "memory.swap.max", "0")] if swap else []
        return [
            ("memory", "memory.max", memory),
            *swaps,
            ("cpu", "cpu.max", f"{quota} {_CPU_PERIOD_US}"),
            ("pids", "pids.max", str(limits.pids_max)),
        ]
    # The limit of memory and swap may never be below that of memory: a group that exists has the same as before.
    swaps = [("memory", "memory.memsw.limit_in_bytes", memory)] if swap else []
    return [
        ("memory", "memory.limit_in_bytes", memory),
        *swaps,
        ("cpu", "cpu.cfs_period_us", str(_CPU_PERIOD_US)),
        ("cpu", "cpu.cfs_quota_us", quota),
        ("pids", "pids.max", str(limits.pids_max)),
    ]


def _delegate(folder: Path, controllers: list[str]) -> None:
    """Version 2: let the groups below have these controllers."""
    present = _text(folder / "cgroup.subtree_control").split()
    if missing := [f"+{name}" for name in controllers if name not in present]:
        (folder / "cgroup.subtree_control").write_text(" ".join(missing))


def _version2(root: Path, writable: bool) -> Cgroups:
    if not writable:
        return Cgroups(version=0)
    names = _text(root / "cgroup.controllers").split()
    limits: dict[str, Path] = {name: root for name in ("memory", "cpu", "pids") if name in names}
    swap = "memory" in limits and any(root.glob("*/memory.swap.max"))  # the root group itself never has it
    return Cgroups(version=2, hierarchies=(root,), controllers=limits | {"freezer": root}, swap=swap)


def _v1_names(after: list[str]) -> list[str]:
    options = after[2].split(",")
    return [name for name in _V1_CONTROLLERS if name in options or f"name={name}" in options]


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK)


def _removed(path: Path) -> OSError | None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return error
    return None


def _field(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().rstrip("\n")
    except OSError:
        return ""
