"""What the policy renders to, and how what stands is read."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from agentlab.model.network import BLOCKED_NETWORKS, NetworkMode, Port
from agentlab.network import addresses, ruleset
from agentlab.network.nft import Nft
from agentlab.network.ruleset import Base, Binding

GOLDEN = Path(__file__).parents[2] / "golden" / "network"
BASE = Base(installation="x3k2abcd", subnet=IPv4Network("10.77.0.0/16"), on_link=(IPv4Network("11.0.0.0/24"),))

PORT = addresses.make_port("x3k2abcd", BASE.subnet, "sb-a", 1, NetworkMode.NAT)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="loads rules into a network namespace, which needs root")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("base.nft", ruleset.render(BASE)),
        ("base_with_ports.nft", ruleset.render(BASE, [PORT])),
        ("add_port.nft", ruleset.add_port(BASE, PORT)),
        ("rename_port.nft", ruleset.rename_port(BASE, PORT)),
        ("remove_port.nft", ruleset.remove_port(BASE, PORT)),
        ("remove_all.nft", ruleset.remove_all(BASE)),
    ],
)  # fmt: skip
def test_the_rendered_text_is_the_golden_one(name: str, text: str) -> None:
    if os.environ.get("GOLDEN_WRITE"):
        (GOLDEN / name).write_text(text)

    assert text == (GOLDEN / name).read_text()


def test_every_blocked_network_and_the_hosts_own_are_blocked() -> None:
    closed = ruleset.blocked(BASE)

    for network in (*BLOCKED_NETWORKS, *BASE.on_link):
        assert any(network.subnet_of(each) for each in closed)
    assert not any(IPv4Address("1.1.1.1") in each for each in closed)


@pytest.mark.parametrize("sandbox", ['sb-" }', "sb a", "", "-", "sb\n", "x" * 101])
def test_what_could_break_out_of_a_rule_is_not_written_into_one(sandbox: str) -> None:
    port = addresses.make_port("x3k2abcd", BASE.subnet, sandbox, 1, NetworkMode.NAT)

    with pytest.raises(ValueError, match="cannot be written"):
        ruleset.add_port(BASE, port)


@pytest.mark.root
@pytest.mark.anyio
@needs_root
async def test_members_are_told_from_the_rules_that_they_change() -> None:
    nft, ports = Nft(BASE.table), [_port(slot) for slot in (1, 2, 300)]

    bare, full = await nft.canonical(ruleset.render(BASE)), await nft.canonical(ruleset.render(BASE, ports))

    assert bare.text == full.text
    assert (bare.ports, bare.sandboxes) == ({}, frozenset())
    assert full.ports == {port.link: ruleset.binding_of(port) for port in ports}
    assert all(full.holds(port) for port in ports)
    assert not full.holds(_port(4))


@pytest.mark.root
@pytest.mark.anyio
@needs_root
async def test_a_bound_slot_is_renamed_and_unbound() -> None:
    nft, former, latter = Nft(BASE.table), _port(1, "sb-former"), _port(1, "sb-latter")
    bound = ruleset.render(BASE, [former])

    added = await nft.canonical(bound + ruleset.add_port(BASE, latter))
    renamed = await nft.canonical(bound + ruleset.rename_port(BASE, latter))
    removed = await nft.canonical(bound + ruleset.remove_port(BASE, former) + ruleset.remove_port(BASE, former))

    assert added.holds(former)
    assert renamed.holds(latter)
    assert (removed.ports, removed.sandboxes) == ({}, frozenset())


@pytest.mark.root
@pytest.mark.anyio
@needs_root
async def test_the_blocked_networks_are_part_of_what_is_compared() -> None:
    nft, other = Nft(BASE.table), replace(BASE, on_link=())

    assert (await nft.canonical(ruleset.render(BASE))).text != (await nft.canonical(ruleset.render(other))).text


def test_a_binding_of_a_single_port_is_read_from_what_nft_prints() -> None:
    bridge = (
        "table bridge agentlab_x3k2abcd {\n\tset ports {\n\t\ttype ifname . ether_addr . ipv4_addr\n"
        '\t\telements = { "alx3k2-0001" . 02:75:f8:00:00:01 . 10.77.0.2 comment "sb-a",\n'
        '\t\t\t     "alx3k2-0002" . 02:75:f8:00:00:02 . 10.77.0.3 }\n\t}\n}\n'
    )
    inet = "table inet agentlab_x3k2abcd {\n\tset sandboxes {\n\t\ttype ether_addr . ipv4_addr\n\t}\n}\n"

    listing = ruleset.parse_listing(inet, bridge)

    assert listing.ports == {
        "alx3k2-0001": Binding(mac="02:75:f8:00:00:01", address=IPv4Address("10.77.0.2"), sandbox="sb-a"),
        "alx3k2-0002": Binding(mac="02:75:f8:00:00:02", address=IPv4Address("10.77.0.3"), sandbox=""),
    }
    assert "elements" not in listing.text


def _port(slot: int, sandbox: str = "sb-a") -> Port:
    return addresses.make_port("x3k2abcd", BASE.subnet, sandbox, slot, NetworkMode.NAT)
