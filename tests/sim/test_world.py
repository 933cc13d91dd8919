"""A whole daemon on virtual time, with faults and crashes: nothing leaks, nothing runs twice, everything ends."""

from __future__ import annotations

import os

import pytest

from agentlab.testing.scenarios import busy_days, many_moments, quiet_day, stormy_night
from agentlab.testing.simloop import Stuck

SEEDS = int(os.environ.get("AGENTLAB_SIM_SEEDS", "200"))
FIRST = int(os.environ.get("AGENTLAB_SIM_FIRST", "0"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_p2_no_crash_fault_or_dead_guest_leaks_a_sandbox_or_runs_a_job_twice(seed: int) -> None:
    stormy_night(seed)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(1, SEEDS // 8)))
def test_no_crash_or_fault_leaves_a_snapshot_restore_or_fork_half_done(seed: int) -> None:
    many_moments(seed)


def test_the_simulated_users_do_fork() -> None:
    assert sum(many_moments(seed) for seed in range(3)) > 3


def fails(seed: int) -> bool:
    try:
        stormy_night(seed, forgetful=True)
    except (AssertionError, Stuck):
        return True
    return False


def test_a_quiet_day_has_every_job_succeed_or_fail_by_its_own_agent() -> None:
    quiet_day(seed=1)


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = busy_days(7), busy_days(7)

    assert first == second


def test_a_daemon_that_trusts_its_memory_instead_of_looking_is_caught() -> None:
    assert any(fails(seed) for seed in range(5))
