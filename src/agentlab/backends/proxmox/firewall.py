"""What a sandbox's firewall on the cluster must hold, whether it does, and the calls that make it so.  Pure.

Everything is denied that is not allowed by a rule, in both directions, so that IPv6 needs no rule at all.  Rules are
few, because each is a call, and a template bears them already: a clone copies its template's firewall, and only the
address in the set of the network card differs.  New rules go to the top, so the last is written first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from agentlab.backends.proxmox import encode, lenient
from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.lenient import Row
from agentlab.model.network import BLOCKED_NETWORKS, NetworkMode

IPSET = "ipfilter-net0"  # its members are the only addresses that the first network card may use
ADDRESSES_CHARACTERS_MAX = 512  # of a rule's destination
EVERYWHERE = "0.0.0.0/0"

# The option's default, where it has another meaning to leave it out than what we want, is another value.
OPTIONS: Mapping[str, str] = {
    "enable": "1",
    "ipfilter": "1",
    "macfilter": "1",
    "dhcp": "0",
    "ndp": "0",
    "radv": "0",
    "policy_in": "DROP",
    "policy_out": "DROP",
}
_DEFAULTS = {"enable": "0", "ipfilter": "0", "macfilter": "1", "dhcp": "0", "ndp": "1", "radv": "0"}
_DEFAULTS |= {"policy_in": "DROP", "policy_out": "ACCEPT"}
_FLAGS = frozenset(_DEFAULTS) - {"policy_in", "policy_out"}

# What says nothing about which packets a rule meets.
_REMARKS = frozenset({"pos", "digest", "comment", "log", "ipversion"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What the policy depends on.  `address` is None for a template, whose set of addresses is empty."""

    mode: NetworkMode
    address: IPv4Address | None
    link: tuple[IPv4Address, int]  # where the guest link is served: address and TCP port
    nameserver: IPv4Address | None = None
    on_link: tuple[IPv4Network, ...] = ()  # further networks that no sandbox may reach: public ones of the cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, in the values that are compared."""

    values: tuple[tuple[str, str], ...]

    @staticmethod
    def of(**values: str) -> Rule:
        """With `_` for `-` in names."""
        return Rule(values=tuple(sorted((key.replace("_", "-"), value) for key, value in values.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """What stands for one VM: its options, its rules from the top, and the members of the card's set, if it exists."""

    options: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    addresses: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call; `path` begins behind `…/qemu/{vmid}/firewall`."""

    method: str
    path: str
    params: Params = field(default_factory=dict)


def wanted(guest: Guest) -> Firewall:
    """The policy.  `off`: the guest link alone; `nat`: also names, and the public internet."""
    address, port = guest.link
    rules = [_allow(dest=str(address), proto="tcp", dport=str(port))]
    if guest.mode is NetworkMode.NAT:
        if guest.nameserver is not None:
            rules.append(_allow(dest=str(guest.nameserver), macro="DNS"))
        blocked = collapse_addresses([*BLOCKED_NETWORKS, *guest.on_link])
        rules += [Rule.of(type="out", action="DROP", enable="1", dest=each) for each in _lists(blocked)]
        rules.append(_allow(dest=EVERYWHERE))
    addresses = frozenset() if guest.address is None else frozenset({str(guest.address)})
    return Firewall(options=OPTIONS, rules=tuple(rules), addresses=addresses)


def found(options: object, rules: object, members: object | None) -> Firewall:
    """What `GET` of options, rules and the card's set answered; `members` None if there is no such set."""
    given = lenient.row(options)
    return Firewall(
        options={key: _option(given, key) for key in OPTIONS},
        rules=tuple(_rule(each) for each in sorted(lenient.rows(rules), key=lambda row: lenient.integer(row, "pos"))),
        addresses=None if members is None else frozenset(_member(each) for each in lenient.rows(members)),
    )


def reads_back(want: Firewall, have: Firewall) -> bool:
    """Whether what stands is what was wanted: no option, rule or address more, less or in another order."""
    return not difference(want, have)


def difference(want: Firewall, have: Firewall) -> list[Call]:
    """The calls that lead from `have` to `want`; none if it reads back.  The VM must not run meanwhile."""
    calls: list[Call] = []
    if any(have.options.get(key, _DEFAULTS[key]) != value for key, value in want.options.items()):
        calls.append(Call(method="PUT", path="/options", params=dict(want.options)))
    calls += _rules_difference(want.rules, have.rules)
    members = want.addresses or frozenset()
    if have.addresses is None and want.addresses is not None:
        calls.append(Call(method="POST", path="/ipset", params={"name": IPSET}))
    standing = have.addresses or frozenset()
    calls += [
        Call(method="DELETE", path=encode.path("ipset", IPSET, each.removeprefix("!")))
        for each in sorted(standing - members)
    ]
    calls += [Call(method="POST", path=f"/ipset/{IPSET}", params={"cidr": each}) for each in sorted(members - standing)]
    return calls


def _rules_difference(want: Sequence[Rule], have: Sequence[Rule]) -> Iterable[Call]:
    """Keep the longest end of what is wanted that stands already; take the rest away, then put what lacks on top."""
    kept, positions = _kept(want, have)
    for position in reversed(range(len(have))):
        if position not in positions:
            yield Call(method="DELETE", path=f"/rules/{position}")
    for rule in reversed(want[: len(want) - kept]):
        yield Call(method="POST", path="/rules", params=dict(rule.values))


def _kept(want: Sequence[Rule], have: Sequence[Rule]) -> tuple[int, set[int]]:
    """How many rules of the end of `want` occur in `have` in this order, and at which positions."""
    kept, positions = 0, set[int]()
    for position in reversed(range(len(have))):
        if kept < len(want) and have[position] == want[len(want) - 1 - kept]:
            kept += 1
            positions.add(position)
    return kept, positions


def _allow(**values: str) -> Rule:
    return Rule.of(type="out", action="ACCEPT", enable="1", **values)


def _lists(networks: Iterable[IPv4Network]) -> list[str]:
    """As few lists as their length allows."""
    lists: list[str] = []
    for each in map(str, networks):
        if lists and len(lists[-1]) + 1 + len(each) <= ADDRESSES_CHARACTERS_MAX:
            lists[-1] += f",{each}"
        else:
            lists.append(each)
    return lists


def _option(options: Row, key: str) -> str:
    if key in _FLAGS:
        return str(int(lenient.truth(options, key, _DEFAULTS[key] == "1")))
    return lenient.text(options, key, _DEFAULTS[key]).upper()


def _rule(row: Row) -> Rule:
    """Everything that narrows or widens it; a rule without `enable` does not work."""
    values = {key: lenient.text(row, key) for key in row if key not in _REMARKS}
    values["enable"] = str(int(lenient.truth(row, "enable")))
    for key in ("source", "dest"):
        if key in values:
            values[key] = _addresses(values[key])
    return Rule(values=tuple(sorted((key, value) for key, value in values.items() if value)))


def _addresses(text: str) -> str:
    """The same networks in the same words; what is no list of networks stays as it is."""
    try:
        networks = [IPv4Network(each.strip()) for each in text.split(",")]
    except ValueError:
        return text
    return ",".join(str(each.network_address) if each.prefixlen == 32 else str(each) for each in sorted(networks))


def _member(row: Row) -> str:
    """An address of the set; one that is excluded bears a mark, so that it is never the one that is wanted."""
    text = _addresses(lenient.text(row, "cidr"))
    return f"!{text}" if lenient.truth(row, "nomatch") else text
