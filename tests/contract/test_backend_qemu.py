"""The backend of virtual machines keeps the contract, with machines that begin from prepared memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import pytest

from agentlab.backends.qemu.backend import QemuBackend
from agentlab.backends.qemu.command import PROGRAM
from agentlab.base.process import which
from agentlab.model.snapshot import WorkspaceDisk
from agentlab.testing.backend_contract import BackendContract, MakeSpec
from agentlab.testing.qemu_rig import QemuRig, qemu_rig
from agentlab.testing.snapshot_contract import SnapshotContract, WorkspaceContract


@pytest.mark.root
class TestQemu(BackendContract, SnapshotContract, WorkspaceContract):
    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[QemuRig]:
        if os.geteuid() != 0:
            pytest.skip("virtual machines of the qemu backend need root")
        if which(PROGRAM) is None:
            pytest.skip(f"{PROGRAM} is not installed")
        async with qemu_rig(tmp_path) as rig:
            yield rig

    @pytest.fixture
    def backend(self, rig: QemuRig) -> QemuBackend:
        return rig.backend

    @pytest.fixture
    def make_disk(self, tmp_path: Path) -> Callable[[], WorkspaceDisk]:
        numbers = count()

        def made() -> WorkspaceDisk:
            serial = f"w{next(numbers)}"
            (tmp_path / serial).touch()
            os.truncate(tmp_path / serial, 64 << 20)
            return WorkspaceDisk(serial=serial, disk=str(tmp_path / serial))

        return made

    @pytest.fixture
    def make_spec(self, rig: QemuRig) -> MakeSpec:
        return rig.spec
