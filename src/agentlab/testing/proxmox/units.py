"""Sizes, digests, identifiers: the small texts that configs are made of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from agentlab.base.entropy import Entropy

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_STEPS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
MAC_PREFIX = "BC:24:11"


def size_bytes(given: str, unit: str = "") -> int:
    """`10G` in bytes; a bare number counts in `unit`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", given)
    assert found is not None, given
    return int(float(found[1]) * _STEPS[found[2] or unit])


def size_text(bytes_count: int) -> str:
    """Bytes as a config words them: with the largest unit that leaves a whole number."""
    for unit in ("T", "G", "M", "K"):
        if bytes_count and bytes_count % _STEPS[unit] == 0:
            return f"{bytes_count // _STEPS[unit]}{unit}"
    return str(bytes_count)


def digest(values: Mapping[str, Any] | str) -> str:
    """The SHA-1 of a file of the cluster, here of its keys in order."""
    whole = values if isinstance(values, str) else "".join(f"{key}: {values[key]}\n" for key in sorted(values))
    return hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()


def stamp(values: object) -> str:
    """The digest of a part of a file; of nothing it is that of an empty file."""
    return digest(repr(values) if values else "")


def new_mac(entropy: Entropy) -> str:
    """An address with Proxmox's prefix."""
    tail = entropy.token(3).upper()
    return ":".join((MAC_PREFIX, tail[:2], tail[2:4], tail[4:]))


def new_uuid(entropy: Entropy) -> str:
    """A random UUID (version 4)."""
    raw = entropy.token(16)
    return f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-{'89ab'[int(raw[16], 16) % 4]}{raw[17:20]}-{raw[20:]}"


def printed(values: Mapping[str, Any], first: str) -> str:
    """A property string: the value of `first` bare, the rest in the order of their names."""
    rest = [f"{key}={values[key]}" for key in sorted(values) if key != first]
    return ",".join([str(values[first]), *rest])


def printed_nic(values: Mapping[str, Any]) -> str:
    """A NIC's property string: model and address first."""
    rest = [f"{key}={values[key]}" for key in sorted(values) if key not in ("model", "macaddr")]
    return ",".join([f"{values['model']}={values['macaddr']}", *rest])


def tags_text(given: str) -> str:
    """Tags as a config keeps them: lowered, without doubles, in order; none at all is one blank."""
    found = {each.lower() for each in re.split(r"[,; \0]+", given) if each}
    return ";".join(sorted(found)) or " "
