"""A daemon on virtual time over the backend `proxmox` and a simulated cluster: nothing leaks, nothing foreign goes."""

from __future__ import annotations

import os

import pytest

from agentlab.testing.scenarios import stormy_cluster

SEEDS = max(1, int(os.environ.get("AGENTLAB_SIM_SEEDS", "200")) // 20)  # each takes as long as twenty of a fake backend
FIRST = int(os.environ.get("AGENTLAB_SIM_FIRST", "0"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_no_lost_reply_dead_task_or_moved_vm_leaks_anything_on_the_cluster(seed: int) -> None:
    stormy_cluster(seed)
