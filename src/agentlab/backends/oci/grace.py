"""The kernel's wait before it moves a process between control groups, begun before it is needed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from agentlab.backends.cgroup import Cgroups

FRESH_S = 0.015  # after a move, another does not wait


class GracePeriod:
    """Moving a process into a control group locks out every fork of the machine, for which the kernel waits a grace
    period of its readers: 8 to 12 ms, unless another move was made shortly before.  The runtime moves each
    container and each command.  A move that changes nothing, made while something else is prepared, has that wait pass
    beside it.  (Hosts that mount control groups with `favordynmods` do not wait, and lose nothing by this.)
    """

    def __init__(self) -> None:
        self._own: Path | None = None
        self._last = -FRESH_S

    def look(self, cgroups: Cgroups) -> None:
        """Use these control groups; before this, nothing is done."""
        self._own = own_group(cgroups, Path("/proc/self/cgroup").read_text())

    def begin(self) -> None:
        """A move is about to be made: begin the wait, on a thread.  Returns at once, and never fails."""
        loop = asyncio.get_running_loop()
        last, self._last = self._last, loop.time()
        if self._own is not None and self._last - last > FRESH_S:
            loop.run_in_executor(None, self._stay, self._own)

    def _stay(self, group: Path) -> None:
        """Move this process to where it is."""
        try:
            descriptor = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, str(os.getpid()).encode())
            finally:
                os.close(descriptor)
        except OSError:
            return  # it was a hint; whoever moves a process in earnest will wait, or hear why it cannot


def own_group(cgroups: Cgroups, text: str) -> Path | None:
    """The process's own group in some hierarchy that can be written, from the text of its /proc/…/cgroup."""
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        # Version 2 names no controllers; there all lie in the one hierarchy.
        wanted = names.split(",") if names else list(cgroups.controllers) if cgroups.version == 2 else []
        for name in wanted:
            if (group := cgroups.group(name, path)) is not None:
                return group
    return None
