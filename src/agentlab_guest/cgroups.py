"""The control groups of what AgentLab runs in a VM."""

from __future__ import annotations

import os

ROOT = "/sys/fs/cgroup"
LAUNCHED = f"{ROOT}/agentlab"  # with one group below for each launched program
SERVICE = f"{ROOT}/system.slice/agentlab-guest.service"  # the resident guest program and the commands of its channels


def members(*tops: str) -> set[int]:
    """The processes in these groups and all below; what is absent has none."""
    found: set[int] = set()
    for top in tops:
        for directory, _, _ in os.walk(top):
            try:
                with open(f"{directory}/cgroup.procs", "rb") as file:
                    found.update(int(line) for line in file.read().split())
            except OSError:
                continue  # it has just gone, or is of a kind that has no processes
    return found
