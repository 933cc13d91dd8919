"""How values are written for Proxmox VE, and how its property strings are read.  Pure.

Each rule here was measured on 9.2: forms split at every `=`, `&` and `;`, so that bodies are JSON; chunked bodies and
bodies of DELETE are refused; booleans are 0 and 1; keys of SSH are quoted once more than the transport quotes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from agentlab.base.secret import Secret

Value = str | int | float | bool | Secret | Sequence[str] | None
Params = Mapping[str, Value]

SMBIOS_CHARACTERS_MAX = 512  # of the whole property `smbios1`
SMBIOS_SERIAL_BYTES_MAX = 339  # what fits into that beside a uuid, before base64
DESCRIPTION_CHARACTERS_MAX = 8192  # characters, not bytes
BODY_BYTES_MAX = 512 << 10  # the server refuses a larger body that is not an upload

_PATH_SAFE = ":@"  # everything else is quoted: the `!` of a token's UPID, the `/` of a volume's name


def path(*parts: str | int) -> str:
    """`path("nodes", node, "qemu", 100, "config")` as `/nodes/…/qemu/100/config`, each part quoted."""
    assert all(str(part) for part in parts), parts
    return "".join("/" + quote(str(part), safe=_PATH_SAFE) for part in parts)


def body(params: Params) -> bytes:
    """The JSON body of a POST or PUT; absent (None) values are left out.  ValueError beyond BODY_BYTES_MAX."""
    text = json.dumps({key: _json(value) for key, value in params.items() if value is not None}).encode()
    if len(text) > BODY_BYTES_MAX:
        raise ValueError(f"the request has {len(text)} bytes; Proxmox VE takes {BODY_BYTES_MAX}")
    return text


def query(params: Params) -> str:
    """The query of a GET or DELETE, without `?`; a list repeats its key."""
    pairs: list[tuple[str, str]] = []
    for key, value in params.items():
        if value is None:
            continue
        found = _json(value)
        pairs += [(key, str(each)) for each in (found if isinstance(found, list) else [found])]
    return urlencode(pairs, quote_via=quote, safe="")


def parse_properties(text: str, default_key: str | None = None) -> dict[str, str]:
    """`virtio=BC:24:…,bridge=vmbr0` as a dict, in order; a value without a key belongs to `default_key`.

    Raises ValueError for a value without a key where there is no default, and for a key that stands twice.
    """
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        key, equals, value = part.partition("=")
        if not equals:
            if default_key is None:
                raise ValueError(f"{part!r} has no key, in {text!r}")
            key, value = default_key, part
        if key in found:
            raise ValueError(f"{key!r} stands twice in {text!r}")
        found[key] = value
    return found


def format_properties(values: Mapping[str, str | int | bool | None], default_key: str | None = None) -> str:
    """The opposite: the default key's value first and bare, None left out.  ValueError for what cannot be written."""
    parts: list[str] = []
    for key, value in values.items():
        if value is None:
            continue
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if not text or any(each in text for each in ",\n\0"):
            raise ValueError(f"{key}={text!r} cannot be part of a property string")
        if key == default_key:
            parts.insert(0, text)
        else:
            parts.append(f"{key}={text}")
    return ",".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smbios:
    """What the guest reads from DMI.  The property is replaced as a whole: whoever sets one part must write both."""

    uuid: str = ""
    serial: bytes = b""


def format_smbios(smbios: Smbios) -> str:
    """The value of `smbios1`.  ValueError if it does not fit into SMBIOS_CHARACTERS_MAX."""
    serial = base64.b64encode(smbios.serial).decode() if smbios.serial else None
    text = format_properties({"base64": 1 if serial else None, "serial": serial, "uuid": smbios.uuid or None})
    if len(text) > SMBIOS_CHARACTERS_MAX:
        raise ValueError(
            f"a serial of {len(smbios.serial)} bytes is too long; with a uuid {SMBIOS_SERIAL_BYTES_MAX} fit"
        )
    return text


def parse_smbios(text: str) -> Smbios:
    """What `smbios1` holds; a serial that cannot be decoded is kept as its bytes."""
    values = parse_properties(text)
    serial = values.get("serial", "").encode()
    if serial and values.get("base64") == "1":
        try:
            serial = base64.b64decode(serial, validate=True)
        except binascii.Error:
            pass
    return Smbios(uuid=values.get("uuid", "").lower(), serial=serial)


def ssh_keys(keys: str) -> str:
    """The value of `sshkeys`: quoted already before it becomes a parameter; a `+` for a blank is refused."""
    return quote(keys, safe="")


def same_description(wanted: str, found: str) -> bool:
    """Whether a description came back: everything is kept but newlines at the end."""
    return wanted.rstrip() == found.rstrip()


def _json(value: Value) -> str | int | float | list[str]:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Secret):
        return value.reveal()  # only an administrator's password and ticket come here, never the token
    if isinstance(value, str | int | float):
        return value
    assert value is not None
    return list(value)
