"""The real network keeps the contract, in a lab of network namespaces."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentlab.base import process
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.model.network import LinkEnd, Namespace, NetworkMode, Port, Tap
from agentlab.network import ruleset
from agentlab.network.bridge import BridgeNetwork
from agentlab.testing.netlab import NetLab
from agentlab.testing.network_contract import Flush, MakeEnd, NetworkContract
from agentlab.testing.taps import HeldTap, TapRack

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
]


class BridgeNetworkContract(NetworkContract):
    @pytest.fixture
    async def lab(self) -> AsyncIterator[NetLab]:
        async with NetLab() as lab:
            yield lab

    @pytest.fixture
    def on_host(self, lab: NetLab) -> Iterator[None]:
        with lab.on_host():
            yield

    @pytest.fixture
    async def network(self, on_host: None, tmp_path: Path) -> AsyncIterator[BridgeNetwork]:
        installation = SystemEntropy().word(8)
        network = BridgeNetwork(installation, tmp_path, None, SystemClock(), [NetLab.NAME_SERVER])
        await network.open()
        yield network
        await network.close(remove=True)

    @pytest.fixture
    def flush_rules(self, network: BridgeNetwork) -> Flush:
        async def flush() -> None:
            await process.run(("nft", "flush", "ruleset"))

        return flush

    async def test_a_binding_that_was_taken_away_after_it_was_expected_is_applied_again(
        self, network: BridgeNetwork, make_end: MakeEnd
    ) -> None:
        """By a third party that leaves everything else as it is."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        await network.expect(port)
        await process.run(("nft", "-f", "-"), stdin=ruleset.remove_port(network._base, port).encode())

        await network.attach(port, await make_end(port))

        assert await network.verify(port)

    async def test_attaching_what_was_expected_asks_nft_for_nothing_more(
        self, network: BridgeNetwork, make_end: MakeEnd
    ) -> None:
        """The number of the kernel's rule set tells that what was read back still stands."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        end = await make_end(port)
        await network.expect(port)
        limit_s, network._nft._timeout_s = network._nft._timeout_s, 1e-6  # any call of nft fails from here on

        await network.attach(port, end)

        network._nft._timeout_s = limit_s
        assert await network.verify(port)


class TestWithNamespaces(BridgeNetworkContract):
    @pytest.fixture
    def make_end(self, lab: NetLab) -> MakeEnd:
        async def make(port: Port) -> LinkEnd:
            return Namespace((await lab.new_sandbox()).pid)

        return make

    @pytest.fixture
    async def ended(self) -> LinkEnd:
        ended = await asyncio.create_subprocess_exec("true")
        await ended.wait()
        return Namespace(ended.pid)


class TestWithTaps(BridgeNetworkContract):
    @pytest.fixture
    def make_end(self, on_host: None) -> Iterator[MakeEnd]:
        rack = TapRack()

        async def make(port: Port) -> LinkEnd:
            return rack.end_of(port)

        yield make
        rack.close()

    @pytest.fixture
    def ended(self, network: BridgeNetwork) -> LinkEnd:
        tap = HeldTap(network.port("sb-a", 1, NetworkMode.NAT).link)
        tap.close()
        return Tap(tap.index)
