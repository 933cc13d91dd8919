"""Slots, names and the choice of a subnet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.model.network import BLOCKED_NETWORKS, NetworkMode
from agentlab.network import addresses
from agentlab.network.addresses import Taken

SUBNET = IPv4Network("10.77.0.0/16")
INSTALLATION = "x3k2abcd"


def test_a_port_bears_the_addresses_of_its_slot() -> None:
    port = addresses.make_port(INSTALLATION, SUBNET, "sb-abc", 42, NetworkMode.NAT)

    assert (port.address, port.gateway, port.prefix_length) == (
        IPv4Address("10.77.0.43"),
        IPv4Address("10.77.0.1"),
        16,
    )
    assert (port.link, port.mac) == ("alx3k2-002a", "02:75:f8:00:00:2a")


def test_slots_begin_at_one_and_end_before_the_broadcast_address() -> None:
    last = addresses.capacity(SUBNET)

    assert addresses.make_port(INSTALLATION, SUBNET, "sb-a", 1, NetworkMode.NAT).address == IPv4Address("10.77.0.2")
    assert addresses.make_port(INSTALLATION, SUBNET, "sb-a", last, NetworkMode.NAT).address == SUBNET[-2]
    with pytest.raises(ValueError, match="capacity"):
        addresses.make_port(INSTALLATION, SUBNET, "sb-a", last + 1, NetworkMode.NAT)
    with pytest.raises(ValueError, match="capacity"):
        addresses.make_port(INSTALLATION, SUBNET, "sb-a", 0, NetworkMode.NAT)


def test_the_smallest_subnet_has_room_for_five() -> None:
    assert addresses.capacity(IPv4Network("192.168.208.0/29")) == 5


@given(
    slot=st.integers(1, (1 << 24) - 4), installation=st.text("abcdefghjkmnpqrstuvwxyz23456789", min_size=8, max_size=8)
)
def test_names_fit_the_kernel_and_tell_their_slot(slot: int, installation: str) -> None:
    link = addresses.link_name(installation, slot)

    assert len(link) <= addresses.LINK_NAME_LENGTH_MAX
    assert addresses.slot_of(link, installation) == slot
    assert len(addresses.bridge_name(installation)) <= addresses.LINK_NAME_LENGTH_MAX


@given(slot=st.integers(0, (1 << 24) - 1))
def test_macs_are_unicast_locally_administered_and_distinct(slot: int) -> None:
    mac = addresses.mac(INSTALLATION, slot)

    assert int(mac[:2], 16) & 0b11 == 0b10
    assert int(mac[9:].replace(":", ""), 16) == slot


@pytest.mark.parametrize("name", ["eth0", "alx3k2abcd", "alx3k2-", "alx3k2-00g0", "aly3k2-0001", "alx3k2-0001-"])
def test_links_of_others_have_no_slot(name: str) -> None:
    assert addresses.slot_of(name, INSTALLATION) is None


@pytest.mark.parametrize("text", ["", "abc", 'x"; drop', "ABCDEFGH", "a/b/c/d/", "abcdefghijklmn"])
def test_what_is_no_installation_id_gets_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="installation"):
        addresses.bridge_name(text)


def test_the_default_is_taken_when_it_is_free() -> None:
    taken = [Taken(network=IPv4Network("192.168.1.0/24"), what="route")]

    assert addresses.free_subnet(taken) == addresses.DEFAULT_SUBNET


def test_a_clash_leads_to_the_next_candidate_and_the_most_specific_reason_is_named() -> None:
    wide = Taken(network=IPv4Network("10.0.0.0/8"), what="route 10.0.0.0/8 dev wg0")
    narrow = Taken(network=IPv4Network("10.77.3.0/24"), what="route 10.77.3.0/24 dev eth1")

    assert addresses.first_clash(addresses.DEFAULT_SUBNET, [wide, narrow]) == narrow
    assert addresses.free_subnet([narrow]) == IPv4Network("10.177.0.0/16")
    assert addresses.free_subnet([wide, narrow]) == IPv4Network("172.29.0.0/16")


def test_when_everything_is_taken_there_is_no_subnet() -> None:
    taken = [
        Taken(network=IPv4Network(each), what="route") for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    ]

    assert addresses.free_subnet(taken) is None


@pytest.mark.parametrize("subnet", ["1.2.0.0/16", "127.0.0.0/8", "224.0.0.0/8", "10.0.0.0/30", "0.0.0.0/0"])
def test_a_subnet_that_cannot_serve_is_objected_to(subnet: str) -> None:
    assert addresses.objection(IPv4Network(subnet)) is not None


@pytest.mark.parametrize("subnet", ["10.77.0.0/16", "192.168.9.0/24", "100.96.0.0/16", "10.0.0.0/8", "10.0.0.0/29"])
def test_private_subnets_of_a_sensible_size_serve(subnet: str) -> None:
    assert addresses.objection(IPv4Network(subnet)) is None


def test_every_candidate_is_private_and_thereby_closed_to_sandboxes() -> None:
    for candidate in addresses.CANDIDATE_SUBNETS:
        assert any(candidate.subnet_of(blocked) for blocked in BLOCKED_NETWORKS)
        assert candidate.is_private
