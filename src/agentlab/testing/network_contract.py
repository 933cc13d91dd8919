"""What every network must do.  Subclass NetworkContract with its fixtures; pytest does the rest.

    class TestMine(NetworkContract):
        @pytest.fixture
        async def network(self): …            # open, and closed with remove=True afterwards
        @pytest.fixture
        async def make_end(self): …           # an async function: a fresh end for a port, which replaces its former
        @pytest.fixture
        async def ended(self): …              # an end that is not there any more
        @pytest.fixture
        def flush_rules(self): …              # an async function: a third party removes the rules

The module that subclasses it needs `pytestmark = pytest.mark.anyio`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from agentlab.model.network import LinkEnd, NetworkMode, Port, Tap, Unplugged
from agentlab.network.interface import Network, NetworkError

MakeEnd = Callable[[Port], Awaitable[LinkEnd]]
Flush = Callable[[], Awaitable[None]]


class NetworkContract:
    """The tests; see the module."""

    async def test_it_is_usable_here(self, network: Network) -> None:
        """Given a machine on which it is meant to run."""
        findings = await network.probe()

        assert [each for each in findings if each.fatal and not each.ok] == []

    async def test_addresses_follow_from_the_slot_alone(self, network: Network) -> None:
        """The same slot, the same addresses; another slot, others."""
        first, again = (network.port("sb-a", 7, NetworkMode.NAT) for _ in range(2))
        other = network.port("sb-b", 8, NetworkMode.NAT)

        assert first == again
        assert len({first.address, other.address, first.gateway}) == 3
        assert first.mac != other.mac
        assert first.link != other.link
        assert first.gateway == network.resolver

    async def test_a_slot_beyond_the_subnet_is_refused(self, network: Network) -> None:
        """Slots are 1 … `slots`."""
        assert network.port("sb-a", network.slots, NetworkMode.NAT).address != network.resolver

        for slot in (0, network.slots + 1):
            with pytest.raises(NetworkError) as caught:
                network.port("sb-a", slot, NetworkMode.NAT)
            assert caught.value.remedy

    async def test_opening_twice_keeps_the_subnet(self, network: Network) -> None:
        """Opening is idempotent."""
        assert await network.open() == await network.open()

    async def test_an_attached_port_verifies_and_is_listed(self, network: Network, make_end: MakeEnd) -> None:
        """What stands is what was asked for."""
        port = network.port("sb-a", 1, NetworkMode.NAT)

        await network.attach(port, await make_end(port))

        assert await network.verify(port)
        assert dict(await network.list()) == {"sb-a": port}
        assert await network.check()

    async def test_a_port_that_was_not_attached_does_not_verify(self, network: Network) -> None:
        """Nothing is assumed."""
        assert not await network.verify(network.port("sb-a", 1, NetworkMode.NAT))

    async def test_attaching_twice_is_quiet(self, network: Network, make_end: MakeEnd) -> None:
        """After a lost answer the same call comes again."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        end = await make_end(port)
        await network.attach(port, end)

        await network.attach(port, end)

        assert await network.verify(port)

    async def test_a_restarted_sandbox_is_attached_anew(self, network: Network, make_end: MakeEnd) -> None:
        """Stopped and started, it has another namespace or tap, and the same addresses."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        await network.attach(port, await make_end(port))

        await network.attach(port, await make_end(port))

        assert await network.verify(port)

    async def test_a_slot_is_not_given_to_two_sandboxes(self, network: Network, make_end: MakeEnd) -> None:
        """And the first keeps what it has."""
        first, second = (network.port(name, 1, NetworkMode.NAT) for name in ("sb-a", "sb-b"))
        await network.attach(first, await make_end(first))

        with pytest.raises(NetworkError):
            await network.attach(second, await make_end(second))

        assert await network.verify(first)
        assert set(await network.list()) == {"sb-a"}

    async def test_a_freed_slot_serves_another_sandbox(self, network: Network, make_end: MakeEnd) -> None:
        """Also right after it was freed."""
        first, second = (network.port(name, 1, NetworkMode.NAT) for name in ("sb-a", "sb-b"))
        await network.attach(first, await make_end(first))
        await network.detach("sb-a")

        await network.attach(second, await make_end(second))

        assert await network.verify(second)
        assert not await network.verify(first)

    async def test_detaching_leaves_nothing_and_may_be_repeated(self, network: Network, make_end: MakeEnd) -> None:
        """Of one sandbox; the other stays."""
        first, second = (network.port(f"sb-{slot}", slot, NetworkMode.NAT) for slot in (1, 2))
        await network.attach(first, await make_end(first))
        await network.attach(second, await make_end(second))

        await network.detach("sb-1")
        await network.detach("sb-1")

        assert dict(await network.list()) == {"sb-2": second}
        assert not await network.verify(first)

    async def test_detaching_the_unknown_is_quiet(self, network: Network) -> None:
        """Absence is success."""
        await network.detach("sb-never")

        assert dict(await network.list()) == {}

    async def test_an_end_that_is_gone_cannot_be_attached(self, network: Network, ended: LinkEnd) -> None:
        """And nothing is left of the attempt."""
        port = network.port("sb-a", 1, NetworkMode.NAT)

        with pytest.raises(NetworkError) as caught:
            await network.attach(port, ended)

        assert caught.value.cause
        assert not await network.verify(port)
        assert dict(await network.list()) == {}

    async def test_mode_off_has_no_link(self, network: Network, make_end: MakeEnd) -> None:
        """There is nothing to list, and that verifies."""
        port = network.port("sb-a", 1, NetworkMode.OFF)

        await network.attach(port, await make_end(port))

        assert await network.verify(port)
        assert dict(await network.list()) == {}

    @pytest.mark.parametrize(
        ("mode", "end"), [(NetworkMode.OFF, Tap(1)), (NetworkMode.NAT, Unplugged()), (NetworkMode.NAT, Tap(1))]
    )
    async def test_an_end_that_does_not_fit_is_refused(self, network: Network, mode: NetworkMode, end: LinkEnd) -> None:
        """A device where none shall be, none where one shall be, and an interface that is not the port's."""
        port = network.port("sb-a", 1, mode)

        with pytest.raises(NetworkError) as caught:
            await network.attach(port, end)

        assert caught.value.cause
        assert dict(await network.list()) == {}

    async def test_flushed_rules_are_noticed_and_repaired(
        self, network: Network, make_end: MakeEnd, flush_rules: Flush
    ) -> None:
        """By `verify` at once, by `check` with repair."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        await network.attach(port, await make_end(port))

        await flush_rules()

        assert not await network.verify(port)
        assert not await network.check()
        assert await network.check()
        assert await network.verify(port)

    async def test_attaching_repairs_flushed_rules(
        self, network: Network, make_end: MakeEnd, flush_rules: Flush
    ) -> None:
        """A new sandbox does not wait for the next check."""
        await flush_rules()
        port = network.port("sb-a", 1, NetworkMode.NAT)

        await network.attach(port, await make_end(port))

        assert await network.verify(port)

    async def test_an_expected_port_is_half_there_until_it_is_attached(
        self, network: Network, make_end: MakeEnd
    ) -> None:
        """It is listed, so that it is not forgotten, and it does not verify."""
        port = network.port("sb-a", 1, NetworkMode.NAT)

        await network.expect(port)
        expected, stood = dict(await network.list()), await network.verify(port)
        await network.attach(port, await make_end(port))

        assert (expected, stood) == ({"sb-a": None}, False)
        assert await network.verify(port)
        assert dict(await network.list()) == {"sb-a": port}

    async def test_detaching_what_was_only_expected_leaves_nothing(self, network: Network) -> None:
        """Such as after a sandbox that could not be made."""
        await network.expect(network.port("sb-a", 1, NetworkMode.NAT))

        await network.detach("sb-a")

        assert dict(await network.list()) == {}

    async def test_rules_that_were_flushed_after_they_were_expected_are_applied_again(
        self, network: Network, make_end: MakeEnd, flush_rules: Flush
    ) -> None:
        """What was read back once is not believed for ever."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        await network.expect(port)

        await flush_rules()
        await network.attach(port, await make_end(port))

        assert await network.verify(port)

    async def test_a_repair_between_expecting_and_attaching_loses_nothing(
        self, network: Network, make_end: MakeEnd, flush_rules: Flush
    ) -> None:
        """The repair knows of no link for the expected port."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        await network.expect(port)
        await flush_rules()

        await network.check()
        await network.attach(port, await make_end(port))

        assert await network.verify(port)

    async def test_closing_without_removal_keeps_the_sandboxes_attached(
        self, network: Network, make_end: MakeEnd
    ) -> None:
        """A daemon that restarts finds them again."""
        port = network.port("sb-a", 1, NetworkMode.NAT)
        await network.attach(port, await make_end(port))

        await network.close(remove=False)
        await network.open()

        assert await network.verify(port)
        assert dict(await network.list()) == {"sb-a": port}
