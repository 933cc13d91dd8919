"""The backend of a Proxmox VE cluster keeps the contract, on a simulated cluster whose guests are real processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentlab.backends.proxmox.backend import ProxmoxBackend
from agentlab.model.snapshot import WorkspaceDisk
from agentlab.testing.backend_contract import BackendContract, MakeSpec
from agentlab.testing.proxmox.process_guests import ProcessGuests
from agentlab.testing.proxmox_rig import ProxmoxRig, proxmox_rig
from agentlab.testing.snapshot_contract import SnapshotContract, WorkspaceContract


class OnSimulatedCluster:
    version: str

    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[ProxmoxRig]:
        if os.geteuid() != 0:
            pytest.skip("guests in namespaces of their own need root")
        async with proxmox_rig(tmp_path, version=self.version, guests=ProcessGuests(folder=tmp_path / "guests")) as rig:
            yield rig

    @pytest.fixture
    def backend(self, rig: ProxmoxRig) -> ProxmoxBackend:
        return rig.backend

    @pytest.fixture
    def make_spec(self, rig: ProxmoxRig) -> MakeSpec:
        return rig.spec

    @pytest.fixture
    def make_disk(self, rig: ProxmoxRig) -> Callable[[], WorkspaceDisk]:
        return rig.disk


@pytest.mark.root
class TestProxmox(OnSimulatedCluster, BackendContract, SnapshotContract, WorkspaceContract):
    version = "9.2"


@pytest.mark.root
class TestProxmox84(OnSimulatedCluster):
    """Where the older version may differ: making, power, snapshots, further disks, removal."""

    version = "8.4"
    pytestmark = pytest.mark.anyio
    snapshots, workspaces = SnapshotContract.snapshots, WorkspaceContract.workspaces

    test_probe = BackendContract.test_probe_says_what_it_can_do
    test_command = BackendContract.test_a_command_gives_its_output_and_status
    test_disk = BackendContract.test_the_disk_outlives_a_stop
    test_pause = BackendContract.test_a_paused_sandbox_can_be_stopped_and_destroyed
    test_destroying = BackendContract.test_destroying_twice_is_quiet
    test_snapshots = SnapshotContract.test_restoring_goes_back_and_forth
    test_workspaces = WorkspaceContract.test_a_workspace_outlives_its_sandboxes
