"""The policy of one VM's firewall: what it must hold, and whether it does."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.backends.proxmox.firewall import (
    ADDRESSES_CHARACTERS_MAX,
    Call,
    Firewall,
    Guest,
    Rule,
    difference,
    found,
    reads_back,
    wanted,
)
from agentlab.model.network import BLOCKED_NETWORKS, NetworkMode

LINK = (IPv4Address("10.77.0.1"), 8765)
NAT = Guest(mode=NetworkMode.NAT, address=IPv4Address("10.77.0.9"), link=LINK, nameserver=IPv4Address("10.77.0.1"))
OFF = Guest(mode=NetworkMode.OFF, address=IPv4Address("10.77.0.9"), link=LINK)
TEMPLATE = Guest(mode=NetworkMode.NAT, address=None, link=LINK, nameserver=IPv4Address("10.77.0.1"))

OPTIONS: dict[str, object] = {
    "digest": "cf0c", "enable": 1, "ipfilter": 1, "macfilter": 1, "dhcp": 0, "ndp": "0", "radv": 0,
    "policy_in": "DROP", "policy_out": "DROP", "log_level_in": "nolog",
}  # fmt: skip


class Cluster:
    """What the calls do to a VM's firewall, by the rules of the real one: new rules go to the top."""

    def __init__(self) -> None:
        self.options: dict[str, object] = {"digest": "da39"}
        self.rules: list[dict[str, object]] = []
        self.members: list[dict[str, object]] | None = None

    def do(self, call: Call) -> None:
        parts = call.path.split("/")[1:]
        match (call.method, parts):
            case ("PUT", ["options"]):
                self.options |= call.params
            case ("POST", ["rules"]):
                self.rules.insert(0, dict(call.params))
            case ("DELETE", ["rules", position]):
                del self.rules[int(position)]
            case ("POST", ["ipset"]):
                assert self.members is None
                self.members = []
            case ("POST", ["ipset", _]):
                assert self.members is not None
                self.members.append(dict(call.params))
            case ("DELETE", ["ipset", _, cidr]):
                assert self.members is not None
                self.members = [each for each in self.members if str(each["cidr"]).split("/")[0] != cidr]
            case _:
                raise AssertionError(call)

    def seen(self) -> Firewall:
        rules = [{**each, "pos": pos, "digest": "2268", "ipversion": 4} for pos, each in enumerate(self.rules)]
        return found({**self.options, "digest": "x"}, rules, self.members)

    def reach(self, guest: Guest) -> list[Call]:
        calls = difference(wanted(guest), self.seen())
        for call in calls:
            self.do(call)
        return calls


def allows(firewall: Firewall, address: str, *, proto: str = "tcp", port: int = 443) -> bool:
    """What the cluster's filter would do with a packet from the guest."""
    for rule in firewall.rules:
        values = dict(rule.values)
        if values["enable"] != "1" or values["type"] != "out":
            continue
        meets = any(IPv4Address(address) in IPv4Network(each) for each in values["dest"].split(","))
        meets = meets and values.get("proto", proto) == proto and values.get("dport", str(port)) == str(port)
        if meets and ("macro" not in values or port == 53):
            return values["action"] == "ACCEPT"
    return firewall.options["policy_out"] == "ACCEPT"


@pytest.mark.parametrize("network", BLOCKED_NETWORKS, ids=str)
def test_nat_reaches_nothing_of_what_is_not_the_public_internet(network: IPv4Network) -> None:
    policy = wanted(NAT)

    assert not allows(policy, str(network[0]))
    assert not allows(policy, str(network[-1]))


def test_nat_reaches_the_public_internet_names_and_the_guest_link() -> None:
    policy = wanted(NAT)

    assert allows(policy, "1.1.1.1")
    assert allows(policy, "8.8.8.8", proto="udp", port=9999)
    assert allows(policy, "10.77.0.1", proto="udp", port=53)
    assert allows(policy, "10.77.0.1", port=8765)


@pytest.mark.parametrize(
    ("address", "proto", "port"),
    [("10.77.0.1", "tcp", 22), ("10.77.0.1", "tcp", 8006), ("10.77.0.10", "tcp", 8765), ("169.254.169.254", "tcp", 80)],
)
def test_nat_reaches_neither_other_ports_of_the_gateway_nor_other_sandboxes(
    address: str, proto: str, port: int
) -> None:
    assert not allows(wanted(NAT), address, proto=proto, port=port)


def test_networks_of_the_site_are_blocked_too_public_ones_included() -> None:
    policy = wanted(Guest(mode=NetworkMode.NAT, address=None, link=LINK, on_link=(IPv4Network("203.0.113.0/24"),)))

    assert not allows(policy, "203.0.113.7")


def test_off_reaches_the_guest_link_alone() -> None:
    policy = wanted(OFF)

    assert allows(policy, "10.77.0.1", port=8765)
    assert not allows(policy, "1.1.1.1")
    assert not allows(policy, "10.77.0.1", proto="udp", port=53)
    assert len(policy.rules) == 1


def test_what_is_not_allowed_is_denied_in_both_directions_so_that_ipv6_is_too() -> None:
    for guest in (OFF, NAT):
        policy = wanted(guest)

        assert (policy.options["policy_in"], policy.options["policy_out"]) == ("DROP", "DROP")
        assert not any(value == "in" for rule in policy.rules for key, value in rule.values if key == "type")


def test_the_policy_is_few_calls_on_a_bare_vm_and_reads_back() -> None:
    cluster = Cluster()

    calls = cluster.reach(NAT)

    assert len(calls) == 7
    assert reads_back(wanted(NAT), cluster.seen())
    assert cluster.reach(NAT) == []


def test_a_clone_of_a_template_with_the_policy_needs_one_call_its_address() -> None:
    cluster = Cluster()
    cluster.reach(TEMPLATE)

    assert cluster.reach(NAT) == [Call(method="POST", path="/ipset/ipfilter-net0", params={"cidr": "10.77.0.9"})]
    assert reads_back(wanted(NAT), cluster.seen())


def test_the_other_mode_takes_away_only_what_is_too_much() -> None:
    cluster = Cluster()
    cluster.reach(NAT)

    assert [(call.method, call.path) for call in cluster.reach(OFF)] == [
        ("DELETE", "/rules/3"), ("DELETE", "/rules/2"), ("DELETE", "/rules/1"),
    ]  # fmt: skip
    assert reads_back(wanted(OFF), cluster.seen())


RULES: list[dict[str, object]] = [{**dict(rule.values), "pos": pos} for pos, rule in enumerate(wanted(NAT).rules)]
MEMBERS: list[dict[str, object]] = [{"cidr": "10.77.0.9", "digest": "d81d"}]


def test_what_the_cluster_adds_by_itself_does_not_matter() -> None:
    rules = [{**each, "digest": "x", "ipversion": 4, "log": "nolog", "comment": "hi"} for each in reversed(RULES)]

    assert reads_back(wanted(NAT), found(OPTIONS, rules, [{"cidr": "10.77.0.9/32", "digest": "x"}]))


@pytest.mark.parametrize(
    "change",
    [
        {"enable": 0}, {"ipfilter": 0}, {"macfilter": 0}, {"dhcp": 1}, {"ndp": 1}, {"radv": 1},
        {"policy_in": "ACCEPT"}, {"policy_out": "ACCEPT"}, {"policy_out": "REJECT"},
    ],
    ids=str,
)  # fmt: skip
def test_each_option_that_is_wrong_is_noticed(change: dict[str, object]) -> None:
    have = found({**OPTIONS, **change}, RULES, MEMBERS)

    assert not reads_back(wanted(NAT), have)
    assert [call.path for call in difference(wanted(NAT), have)] == ["/options"]


@pytest.mark.parametrize(("key", "fine"), [
    ("enable", False), ("ipfilter", False), ("macfilter", True), ("dhcp", True), ("ndp", False), ("radv", True),
    ("policy_in", True), ("policy_out", False),
])  # fmt: skip
def test_an_option_that_is_absent_has_its_default(key: str, fine: bool) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != key}

    assert reads_back(wanted(NAT), found(options, RULES, MEMBERS)) is fine


@pytest.mark.parametrize(
    "rules",
    [
        RULES[1:],
        RULES[:-1],
        [],
        [*RULES, {"type": "out", "action": "ACCEPT", "enable": 1, "dest": "10.0.0.0/8", "pos": 9}],
        [{"type": "group", "action": "web", "enable": 1, "pos": -1}, *RULES],
        [{"type": "in", "action": "ACCEPT", "enable": 1, "pos": -1}, *RULES],
        [*RULES[:2], {**RULES[2], "enable": 0}, *RULES[3:]],
        [*RULES[:2], {key: value for key, value in RULES[2].items() if key != "enable"}, *RULES[3:]],
        [*RULES[:2], {**RULES[2], "iface": "net1"}, *RULES[3:]],
        [*RULES[:2], {**RULES[2], "proto": "tcp"}, *RULES[3:]],
        [*RULES[:2], {**RULES[2], "action": "REJECT"}, *RULES[3:]],
        [*RULES[:2], {**RULES[2], "dest": "10.0.0.0/8"}, *RULES[3:]],
        [{**RULES[0], "pos": 3}, {**RULES[3], "pos": 0}, *RULES[1:3]],
    ],
    ids=range(13),
)
def test_every_rule_more_less_other_or_in_another_place_is_noticed(rules: list[dict[str, object]]) -> None:
    assert not reads_back(wanted(NAT), found(OPTIONS, rules, MEMBERS))


@pytest.mark.parametrize(
    "members",
    [None, [], [{"cidr": "10.77.0.10"}], [*MEMBERS, {"cidr": "10.77.0.10"}], [{"cidr": "10.77.0.9", "nomatch": 1}]],
    ids=str,
)
def test_every_address_more_less_or_other_is_noticed(members: list[dict[str, object]] | None) -> None:
    assert not reads_back(wanted(NAT), found(OPTIONS, RULES, members))


def test_a_list_of_addresses_is_within_the_limit_of_a_rule_or_becomes_several() -> None:
    many = tuple(IPv4Network(f"198.51.{n}.0/26") for n in range(100))
    policy = wanted(Guest(mode=NetworkMode.NAT, address=None, link=LINK, on_link=many))
    dests = [dict(rule.values)["dest"] for rule in policy.rules]

    assert max(map(len, dests)) <= ADDRESSES_CHARACTERS_MAX
    assert not allows(policy, "198.51.99.5")
    assert len(policy.rules) == 6


SOME = st.lists(st.sampled_from([*wanted(NAT).rules, Rule.of(type="in", action="ACCEPT", enable="1")]), max_size=8)


@given(
    SOME, st.none() | st.sets(st.sampled_from(["10.77.0.9", "10.77.0.10", "10.77.0.11"])), st.sampled_from([OFF, NAT])
)
def test_from_whatever_stands_the_calls_lead_to_the_policy(
    rules: list[Rule], members: set[str] | None, guest: Guest
) -> None:
    cluster = Cluster()
    cluster.rules = [dict(each.values) for each in rules]
    cluster.members = None if members is None else [{"cidr": each} for each in sorted(members)]

    cluster.reach(guest)

    assert reads_back(wanted(guest), cluster.seen())
