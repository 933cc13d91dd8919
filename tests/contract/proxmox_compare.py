"""What two answers have in common: status, reason, message, errors, keys, types, and the values that do not drift."""

from __future__ import annotations

import re
from typing import Any

from agentlab.testing.proxmox.codec import Answer

UPID = re.compile(r"UPID:[^/\s]*?:[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:")
TEMPORARY = re.compile(r"pveupload-[0-9a-f]+")
# Figures of the machine, times, and what is made at random.
DRIFTING = frozenset({
    "cpu", "mem", "disk", "maxdisk", "maxmem", "maxcpu", "uptime", "ctime", "starttime", "endtime", "pid", "pstart",
    "upid",
    "digest", "used", "avail", "total", "used_fraction", "snaptime", "balloon", "ballooninfo", "blockstat", "netin",
    "netout",
    "diskread", "diskwrite", "freemem", "nics", "meta", "smbios1", "vmgenid", "net0", "ssl_fingerprint", "value",
    "content",
    "ticket", "CSRFPreventionToken", "cpuinfo", "current-kernel", "kversion", "loadavg", "memory_", "rootfs", "swap",
    "idle",
    "wait", "ksm", "out-data", "err-data", "changes", "n", "t", "descr", "macro", "supported_commands", "version",
    "size",
    "pressurecpusome", "saved", "privs", "statistics", "ip-addresses", "expire", "used-bytes", "result", "memory",
    "pveversion",
})  # fmt: skip


def differences(recorded: dict[str, Any], answer: Answer) -> list[str]:
    """What is not the same: what a client decides by.  Empty if all of it is."""
    found = []
    for name, ours in (("status", answer.status), ("reason", _plain(answer.reason))):
        theirs = _plain(recorded[name]) if isinstance(recorded[name], str) else recorded[name]
        if theirs != ours:
            found.append(f"{name}: {theirs!r} here {ours!r}")
    theirs, ours = recorded["body"], answer.json()
    if isinstance(theirs, dict) != isinstance(ours, dict):
        return [*found, f"body: {theirs!r:.80} here {ours!r:.80}"]
    if not isinstance(theirs, dict):
        return found
    if theirs.keys() != ours.keys():
        found.append(f"keys beside data: {sorted(theirs)} here {sorted(ours)}")
    for name in ("message", "errors"):
        if _plain(theirs.get(name)) != _plain(ours.get(name)):
            found.append(f"{name}: {theirs.get(name)!r} here {ours.get(name)!r}")
    if shape(theirs.get("data")) != shape(ours.get("data")):
        found += _unlike(theirs.get("data"), ours.get("data"))
    return found


def drifted(recorded: dict[str, Any], answer: Answer) -> list[str]:
    """Values that differ although neither time nor chance has a hand in them."""
    theirs, ours = recorded["body"], answer.json()
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return []
    return list(_values("data", theirs.get("data"), ours.get("data")))


def shape(value: Any) -> Any:
    """Keys and types, without values; a list is the set of the shapes in it."""
    if isinstance(value, dict):
        return frozenset((key, shape(each)) for key, each in value.items())
    if isinstance(value, list):
        return ("list", frozenset(shape(each) for each in value))
    if isinstance(value, bool) or value is None:
        return type(value).__name__
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def _unlike(theirs: Any, ours: Any) -> list[str]:
    """Say it shortly."""
    if isinstance(theirs, list) and isinstance(ours, list):
        missing = {shape(each) for each in theirs} - {shape(each) for each in ours}
        extra = {shape(each) for each in ours} - {shape(each) for each in theirs}
        texts = [f"rows only there: {_said(each)}" for each in missing] + [
            f"rows only here: {_said(each)}" for each in extra
        ]
        return [f"data ({len(theirs)} rows here {len(ours)}): " + "; ".join(texts)]
    if isinstance(theirs, dict) and isinstance(ours, dict):
        only = sorted(theirs.keys() ^ ours.keys())
        other = [key for key in theirs.keys() & ours.keys() if shape(theirs[key]) != shape(ours[key])]
        return [f"data: keys on one side {only}; other types {[(key, theirs[key], ours[key]) for key in other]!r:.300}"]
    return [f"data: {theirs!r:.200} here {ours!r:.200}"]


def _said(value: Any) -> str:
    return str(sorted(f"{key}:{kind}" for key, kind in value) if isinstance(value, frozenset) else value)[:420]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return TEMPORARY.sub("pveupload", UPID.sub("UPID:", value))
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _values(place: str, theirs: Any, ours: Any) -> Any:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() & ours.keys():
            if key not in DRIFTING:
                yield from _values(f"{place}.{key}", theirs[key], ours[key])
    elif isinstance(theirs, list) and isinstance(ours, list):
        for names in (("volid",), ("vmid",), ("userid",), ("path", "ugid", "roleid"), ("roleid",), ("key",), ("name",)):
            if theirs and ours and all(isinstance(each, dict) and names[0] in each for each in theirs + ours):
                known = {tuple(each.get(name) for name in names): each for each in ours}
                for each in theirs:
                    which = tuple(each.get(name) for name in names)
                    if which not in known:
                        yield f"{place}: no {which}"
                    else:
                        yield from _values(f"{place}{which}", each, known[which])
                break
        if len(theirs) != len(ours):
            yield f"{place}: {len(theirs)} rows here {len(ours)}"
    elif _plain(theirs) != _plain(ours):
        yield f"{place}: {theirs!r:.160} here {ours!r:.160}"
