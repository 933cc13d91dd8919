"""A real daemon with real sandboxes, one for each test module."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.e2e.network_rig import KINDS, Rig
from tests.e2e.support import Lab, daemon_of

from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.model.network import NetworkMode
from agentlab.network.bridge import BridgeNetwork
from agentlab.testing.daemon_process import DaemonProcess
from agentlab.testing.netlab import NetLab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root; without it, say so instead of failing obscurely."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="needs root: real sandboxes, mounts and network links"))


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short path: a Unix socket's has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="al-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(short_dir: Path) -> Iterator[Lab]:
    """A daemon of the test's own."""
    with DaemonProcess(short_dir) as daemon, daemon.client() as client:
        yield Lab(daemon=daemon, client=client, folder=short_dir)


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """A daemon for tests of a module that leave each other alone."""
    yield from _shared("oci")


@pytest.fixture(scope="module", params=["oci", "qemu", "proxmox"])
def each_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The same with each backend in turn as its default."""
    yield from _shared(request.param)


@pytest.fixture(scope="module", params=["oci", "qemu"])
def limited_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """With each backend whose sandboxes have limits and a network of their own here: not processes that stand in."""
    yield from _shared(request.param)


def _shared(backend: str) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="al-", dir="/tmp"))
    with daemon_of(folder, backend) as daemon, daemon.client() as client:
        yield Lab(daemon=daemon, client=client, folder=folder, backend=backend)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def netlab() -> AsyncIterator[NetLab]:
    """A host and an internet of the test's own."""
    async with NetLab() as lab:
        yield lab


@pytest.fixture
def on_netlab(netlab: NetLab) -> Iterator[None]:
    """The test runs on that host."""
    with netlab.on_host():
        yield


@pytest.fixture(params=["container beside container", "VM beside VM"])
async def rig(request: pytest.FixtureRequest, netlab: NetLab, on_netlab: None, tmp_path: Path) -> AsyncIterator[Rig]:
    """A network with two sandboxes on it."""
    installation, kinds = SystemEntropy().word(8), request.param.split(" beside ")
    network = BridgeNetwork(installation, tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])
    await network.open()
    ports = [network.port(f"sb-{slot}", slot, NetworkMode.NAT) for slot in (1, 2)]
    async with AsyncExitStack() as undo:
        sandboxes = [await KINDS[kind](netlab, undo, port) for kind, port in zip(kinds, ports, strict=True)]
        for port, (_, end) in zip(ports, sandboxes, strict=True):
            await network.attach(port, end)
        yield Rig(
            lab=netlab,
            network=network,
            installation=installation,
            state_dir=tmp_path,
            first=sandboxes[0][0],
            second=sandboxes[1][0],
            first_port=ports[0],
            second_port=ports[1],
            kind=kinds[0],
            undo=undo,
        )
        await network.close(remove=True)
