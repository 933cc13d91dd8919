"""The cluster's firewall as a set of rules for nftables, for guests that send real packets.  Pure.

A bridge's table, for kernels that follow no connections there: what a guest begins is noted by addresses and ports,
and what comes the other way is let in.  Less than the real thing in what nobody here uses: sets and groups of the
datacenter, answers to what was let in from outside, IPv6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentlab.testing.proxmox.state import Firewall

TABLE = "pve"
TALK_S = 300  # for how long an answer may come
_ON = {"ACCEPT": "goto noted", "DROP": "drop", "REJECT": "drop"}
_IN = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop"}
_DNS = ("udp dport 53", "tcp dport 53")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """One network card: the interface through which its frames come, and whether its rules apply."""

    interface: str
    index: int
    mac: str
    vmid: int
    firewalled: bool


def render(datacenter: Firewall, plugs: Iterable[tuple[Plug, Firewall]]) -> str:
    """A whole new table in place of the last one; empty of rules while the datacenter's firewall is off."""
    live = [
        (plug, rules)
        for plug, rules in plugs
        if _flag(datacenter.options, "enable", False) and plug.firewalled and _flag(rules.options, "enable", False)
    ]
    lines = [f"table bridge {TABLE}", f"delete table bridge {TABLE}", f"table bridge {TABLE} {{", *_talks()]
    for plug, rules in live:
        lines += [f"chain from_{plug.vmid}_{plug.index} {{", *_leaving(plug, rules), "}"]
        lines += [f"chain to_{plug.vmid}_{plug.index} {{", *_arriving(rules), "}"]
    for hook, word, way in (("prerouting", "iifname", "from"), ("postrouting", "oifname", "to")):
        lines += [f"chain {hook} {{", f"type filter hook {hook} priority 0; policy accept;"]
        lines += [f'{word} "{plug.interface}" goto {way}_{plug.vmid}_{plug.index}' for plug, _ in live]
        lines.append("}")
    return "\n".join([*lines, "}", ""])


def _talks() -> list[str]:
    talk = "type ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service"
    note = f"ip saddr . ip protocol . th sport . ip daddr . th dport timeout {TALK_S}s"
    return [
        f"set talks {{ {talk}; size 65535; flags dynamic,timeout; }}",
        "chain noted {",
        f"ip protocol {{ tcp, udp }} update @talks {{ {note} }}",
        "accept",
        "}",
    ]


def _leaving(plug: Plug, rules: Firewall) -> Iterator[str]:
    if _flag(rules.options, "macfilter", True):
        yield f"ether saddr != {plug.mac.lower()} drop"
    members = rules.ipsets.get(f"ipfilter-net{plug.index}")
    if _flag(rules.options, "ipfilter", False):
        own = ", ".join(sorted(each for each in members or {} if ":" not in each))
        for word in ("arp saddr ip", "ip saddr"):
            yield f"{word} != {{ {own} }} drop" if own else f"ether type {'arp' if 'arp' in word else 'ip'} drop"
    yield "ether type arp accept"
    yield from _lines(rules, "out", _ON)
    yield "goto noted" if str(rules.options.get("policy_out", "ACCEPT")) == "ACCEPT" else "drop"


def _arriving(rules: Firewall) -> Iterator[str]:
    yield "ether type arp accept"
    yield "ip daddr . ip protocol . th dport . ip saddr . th sport @talks accept"
    yield "icmp type { echo-reply, destination-unreachable, time-exceeded } accept"
    yield from _lines(rules, "in", _IN)
    yield "accept" if str(rules.options.get("policy_in", "DROP")) == "ACCEPT" else "drop"


def _lines(rules: Firewall, way: str, verdicts: Mapping[str, str]) -> Iterator[str]:
    for rule in rules.rules:
        if rule.get("type") == way and _flag(rule, "enable", False) and rule.get("action") in verdicts:
            for match in _matches(rule):
                yield f"{match} {verdicts[str(rule['action'])]}".strip()


def _matches(rule: Mapping[str, Any]) -> list[str]:
    """What a rule meets, in one line or more; what is not understood lets nothing through, and holds everything."""
    places = [(word, str(rule[key])) for key, word in (("source", "ip saddr"), ("dest", "ip daddr")) if key in rule]
    macro = rule.get("macro")
    if any(not text[:1].isdigit() for _, text in places) or macro not in (None, "DNS"):
        return [] if rule["action"] == "ACCEPT" else [""]
    where = " ".join(f"{word} {{ {', '.join(text.split(','))} }}" for word, text in places)
    if macro == "DNS":
        return [f"{where} {each}".strip() for each in _DNS]
    proto = rule.get("proto")
    if proto is None:
        return [where]
    ports = [f"{proto} {key} {{ {str(rule[key]).replace(':', '-')} }}" for key in ("sport", "dport") if rule.get(key)]
    return [" ".join([where, *(ports or [f"ip protocol {proto}"])]).strip()]


def _flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    return str(values.get(key, int(default))) in ("1", "True", "true", "yes", "on")
