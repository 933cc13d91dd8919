"""The container backend keeps the contract, with each runtime that is installed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentlab.backends.oci.backend import OciBackend
from agentlab.base.process import which
from agentlab.testing.backend_contract import BackendContract, MakeSpec
from agentlab.testing.oci_rig import OciRig, oci_rig


class OciContract(BackendContract):
    runtime: str

    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[OciRig]:
        if os.geteuid() != 0:
            pytest.skip("containers of the oci backend need root")
        if which(self.runtime) is None:
            pytest.skip(f"{self.runtime} is not installed")
        async with oci_rig(tmp_path, runtime=self.runtime) as rig:
            yield rig

    @pytest.fixture
    def backend(self, rig: OciRig) -> OciBackend:
        return rig.backend

    @pytest.fixture
    def make_spec(self, rig: OciRig) -> MakeSpec:
        return rig.spec


@pytest.mark.root
class TestCrun(OciContract):
    runtime = "crun"


@pytest.mark.root
class TestRunc(OciContract):
    runtime = "runc"
