"""The fake backend keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from agentlab.base.entropy import SeededEntropy
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, SandboxSpec
from agentlab.model.snapshot import WorkspaceDisk
from agentlab.testing.backend_contract import BackendContract, MakeSpec
from agentlab.testing.fake_backend import FakeBackend
from agentlab.testing.snapshot_contract import SnapshotContract, WorkspaceContract


class TestFake(BackendContract, SnapshotContract, WorkspaceContract):
    @pytest.fixture
    def backend(self) -> FakeBackend:
        return FakeBackend(entropy=SeededEntropy(1))

    @pytest.fixture
    def make_spec(self) -> MakeSpec:
        entropy, slots = SeededEntropy(2), count()

        def make() -> SandboxSpec:
            installation = InstallationId("test2345")
            mark = Mark(installation=installation, sandbox=SandboxId(f"sb-{entropy.word()}"), nonce=entropy.token(8))
            slot = next(slots)
            return SandboxSpec(
                mark=mark,
                name="test",
                template="test",
                template_digest=Digest("0" * 64),
                slot=slot,
                resources=Resources(),
                network=NetworkMode.OFF,
                port=None,
                hostname=f"test-box-{slot}",
                nameserver=None,
            )

        return make

    @pytest.fixture
    def make_disk(self) -> Callable[[], WorkspaceDisk]:
        numbers = count()

        def make() -> WorkspaceDisk:
            number = next(numbers)
            return WorkspaceDisk(serial=f"w{number}", disk=f"disk-{number}")

        return make
