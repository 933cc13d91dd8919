"""Where the move is made that begins the kernel's wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.backends.cgroup import Cgroups
from agentlab.backends.oci.grace import GracePeriod, own_group

V1 = Cgroups(version=1, controllers={"pids": Path("/c/pids"), "cpu": Path("/c/cpu")})
V2 = Cgroups(version=2, controllers={"freezer": Path("/c")})


def test_with_version_1_it_is_a_hierarchy_whose_controller_works() -> None:
    text = "9:memory:/a\n4:cpuacct,cpu:/user/b\n0::/elsewhere\n"

    assert own_group(V1, text) == Path("/c/cpu/user/b")


def test_with_version_2_it_is_the_only_hierarchy() -> None:
    assert own_group(V2, "0::/system.slice/agentlab.service\n") == Path("/c/system.slice/agentlab.service")


def test_without_control_groups_there_is_none() -> None:
    assert own_group(Cgroups(version=0), "0::/\n1:pids:/x\n") is None


@pytest.mark.anyio
async def test_where_nothing_is_known_of_control_groups_it_is_quiet() -> None:
    GracePeriod().begin()
