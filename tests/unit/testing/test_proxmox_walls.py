"""The rules of the simulated cluster's firewall for guests that send real packets."""

from __future__ import annotations

from typing import Any

from agentlab.testing.proxmox.nft_walls import Plug, render
from agentlab.testing.proxmox.state import Firewall

ON = Firewall(options={"enable": 1})
PLUG = Plug(interface="tap101i0", index=0, mac="BC:24:11:00:00:01", vmid=101, firewalled=True)
DROPS = {"enable": 1, "policy_out": "DROP", "policy_in": "DROP"}


def leaving(*rules: dict[str, Any], options: dict[str, Any] | None = None, **sets: dict[str, Any]) -> list[str]:
    """The chain for what a guest sends."""
    named = {name.replace("_", "-"): members for name, members in sets.items()}
    text = render(ON, [(PLUG, Firewall(options=DROPS | (options or {}), rules=list(rules), ipsets=named))])
    return text.partition("chain from_101_0 {\n")[2].partition("\n}")[0].splitlines()


def test_nothing_is_filtered_while_the_datacenters_firewall_is_off() -> None:
    assert "tap101i0" not in render(Firewall(), [(PLUG, Firewall(options=DROPS))])


def test_a_card_without_the_flag_and_a_vm_without_the_option_are_not_filtered() -> None:
    bare = Plug(interface="tap101i0", index=0, mac=PLUG.mac, vmid=101, firewalled=False)

    assert "tap101i0" not in render(ON, [(bare, Firewall(options=DROPS))])
    assert "tap101i0" not in render(ON, [(PLUG, Firewall(options=DROPS | {"enable": 0}))])


def test_a_guest_may_use_its_own_addresses_alone() -> None:
    lines = leaving(options={"ipfilter": 1}, ipfilter_net0={"10.0.0.5": {}})

    assert lines[:3] == [
        "ether saddr != bc:24:11:00:00:01 drop",
        "arp saddr ip != { 10.0.0.5 } drop",
        "ip saddr != { 10.0.0.5 } drop",
    ]


def test_an_empty_set_of_addresses_lets_none_be_used() -> None:
    assert leaving(options={"ipfilter": 1})[1:3] == ["ether type arp drop", "ether type ip drop"]


def test_rules_follow_in_their_order_and_the_policy_ends_them() -> None:
    link = {"type": "out", "action": "ACCEPT", "enable": 1, "dest": "10.0.0.1", "proto": "tcp", "dport": "4000:4002"}
    lan = {"type": "out", "action": "DROP", "enable": 1, "dest": "10.0.0.0/8,192.168.0.0/16"}
    names = {"type": "out", "action": "ACCEPT", "enable": 1, "dest": "9.9.9.9", "macro": "DNS"}

    assert leaving(link, lan, names)[2:] == [
        "ip daddr { 10.0.0.1 } tcp dport { 4000-4002 } goto noted",
        "ip daddr { 10.0.0.0/8, 192.168.0.0/16 } drop",
        "ip daddr { 9.9.9.9 } udp dport 53 goto noted",
        "ip daddr { 9.9.9.9 } tcp dport 53 goto noted",
        "drop",
    ]


def test_what_is_not_understood_lets_nothing_through_and_holds_everything() -> None:
    allowed = {"type": "out", "action": "ACCEPT", "enable": 1, "dest": "+dc/somewhere"}
    dropped = {"type": "out", "action": "DROP", "enable": 1, "dest": "+dc/somewhere"}

    assert leaving(allowed)[2:] == ["drop"]
    assert leaving(dropped)[2:] == ["drop", "drop"]


def test_a_rule_that_is_switched_off_counts_for_nothing() -> None:
    assert leaving({"type": "out", "action": "ACCEPT", "enable": 0, "dest": "0.0.0.0/0"})[2:] == ["drop"]
