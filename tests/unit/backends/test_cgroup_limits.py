"""Groups are made with their limits, in either version of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.backends.cgroup import Cgroups, Limits

LIMITS = Limits(memory_bytes=1 << 30, cpus=1.5, pids_max=99)


@pytest.fixture
def one(tmp_path: Path) -> Cgroups:
    folders = {name: tmp_path / name for name in ("memory", "cpu", "pids")}
    for folder in folders.values():
        folder.mkdir()
    return Cgroups(version=1, hierarchies=tuple(folders.values()), controllers=folders, swap=True)


@pytest.fixture
def two(tmp_path: Path) -> Cgroups:
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    return Cgroups(version=2, hierarchies=(tmp_path,), controllers=dict.fromkeys(("memory", "cpu", "pids"), tmp_path))


def test_version_1_has_a_group_in_each_hierarchy(one: Cgroups, tmp_path: Path) -> None:
    folders = one.make("/agentlab-x/sb-y", LIMITS)

    assert folders == tuple(tmp_path / name / "agentlab-x/sb-y" for name in ("memory", "cpu", "pids"))
    assert (folders[0] / "memory.limit_in_bytes").read_text() == "1073741824"
    assert (folders[0] / "memory.memsw.limit_in_bytes").read_text() == "1073741824"
    assert (folders[1] / "cpu.cfs_period_us").read_text() == "100000"
    assert (folders[1] / "cpu.cfs_quota_us").read_text() == "150000"
    assert (folders[2] / "pids.max").read_text() == "99"


def test_version_2_has_one_group_whose_parents_hand_the_controllers_down(two: Cgroups, tmp_path: Path) -> None:
    (folder,) = two.make("/agentlab-x/sb-y", LIMITS)

    assert folder == tmp_path / "agentlab-x/sb-y"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +pids"  # what was missing
    assert (tmp_path / "agentlab-x" / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (folder / "memory.max").read_text() == "1073741824"
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (folder / "pids.max").read_text() == "99"
    assert not (folder / "memory.swap.max").exists()


def test_making_a_group_again_sets_its_limits_anew(two: Cgroups) -> None:
    two.make("/agentlab-x/sb-y", LIMITS)

    (folder,) = two.make("/agentlab-x/sb-y", Limits(memory_bytes=1 << 20, cpus=0.001, pids_max=1))

    assert (folder / "memory.max").read_text() == "1048576"
    assert (folder / "cpu.max").read_text() == "1000 100000"  # the kernel takes no less


def test_a_controller_that_does_not_work_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    cgroups = Cgroups(version=1, hierarchies=(tmp_path,), controllers={"memory": tmp_path / "memory"})

    assert cgroups.make("/agentlab-x/sb-y", LIMITS) == (tmp_path / "memory/agentlab-x/sb-y",)


def test_without_any_control_groups_there_is_nothing_to_join() -> None:
    assert Cgroups(version=0).make("/agentlab-x/sb-y", LIMITS) == ()
