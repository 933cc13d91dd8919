"""The fake network keeps the contract that the real one keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from agentlab.base.entropy import SeededEntropy
from agentlab.model.network import LinkEnd, Namespace, NetworkMode, Port, Tap, Unplugged
from agentlab.network.interface import NetworkError
from agentlab.testing.fake_network import FakeNetwork
from agentlab.testing.network_contract import Flush, MakeEnd, NetworkContract

pytestmark = pytest.mark.anyio

GONE = 999


class FakeNetworkContract(NetworkContract):
    @pytest.fixture
    async def network(self) -> AsyncIterator[FakeNetwork]:
        network = FakeNetwork()
        network.gone |= {Namespace(GONE), Tap(GONE)}
        await network.open()
        yield network
        await network.close(remove=True)

    @pytest.fixture
    def flush_rules(self, network: FakeNetwork) -> Flush:
        async def flush() -> None:
            network.rules_stand = False

        return flush


class TestWithNamespaces(FakeNetworkContract):
    @pytest.fixture
    def make_end(self) -> MakeEnd:
        async def make(port: Port) -> LinkEnd:
            return Namespace(1000)

        return make

    @pytest.fixture
    def ended(self) -> LinkEnd:
        return Namespace(GONE)


class TestWithTaps(FakeNetworkContract):
    @pytest.fixture
    def make_end(self) -> MakeEnd:
        async def make(port: Port) -> LinkEnd:
            return Unplugged() if port.mode is NetworkMode.OFF else Tap(1000)

        return make

    @pytest.fixture
    def ended(self) -> LinkEnd:
        return Tap(GONE)


async def test_the_same_seed_gives_the_same_faults() -> None:
    first, again = await _trace(seed=7), await _trace(seed=7)

    assert first == again
    assert first != await _trace(seed=8)


async def test_some_calls_fail_before_and_some_after_they_did_their_work() -> None:
    network = FakeNetwork(entropy=SeededEntropy(1), fault_rate=0.5)
    seen: set[tuple[bool, bool]] = set()

    for number in range(100):
        port = network.port(f"sb-{number}", number + 1, NetworkMode.NAT)
        failed = False
        try:
            await network.attach(port, Namespace(1))
        except NetworkError:
            failed = True
        seen.add((failed, network.ports.get(port.sandbox) == port))

    assert seen == {(False, True), (True, False), (True, True)}


async def _trace(seed: int) -> list[str]:
    network = FakeNetwork(entropy=SeededEntropy(seed), fault_rate=0.3)
    for number in range(20):
        try:
            await network.attach(network.port("sb-a", 1, NetworkMode.NAT), Namespace(number))
            await network.detach("sb-a")
        except NetworkError:
            pass
    return network.trace
