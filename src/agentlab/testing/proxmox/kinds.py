"""What a parameter may be, with the words in which Proxmox VE refuses it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentlab.testing.proxmox.refusal import invalid

TRUE, FALSE = frozenset({"1", "on", "yes", "true"}), frozenset({"0", "off", "no", "false"})
UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"
MISSING = "property is missing and it is not optional"
PATTERN = "value does not match the regex pattern"


class Malformed(ValueError):
    """A value does not have its format; the text is Proxmox VE's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The type and limits of one parameter or one key of a property string.

    `check` raises Malformed.  `fields` makes it a property string; `default_key` may stand there without its name.
    `alias` and `names` are for keys such as the `virtio=<mac>` of a NIC: the value belongs to the key `alias`, the
    key's own name to the key `names`.  `since`: the major version that brought it.
    """

    type: str = "string"
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    length_min: int | None = None
    length_max: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    check: Callable[[str], object] | None = None
    fields: Mapping[str, Kind] | None = None
    default_key: str | None = None
    alias: str | None = None
    names: str | None = None
    requires: str | None = None
    required: bool = False
    since: int = 8


def need(kind: Kind) -> Kind:
    """The same, but it must be there."""
    return replace(kind, required=True)


def newer(kind: Kind, since: int = 9) -> Kind:
    """The same, but only from this major version on."""
    return replace(kind, since=since)


def integer(minimum: float | None = None, maximum: float | None = None) -> Kind:
    """A whole number."""
    return Kind(type="integer", minimum=minimum, maximum=maximum)


def text(length_max: int | None = None, length_min: int | None = None) -> Kind:
    """Any text of these lengths, in characters."""
    return Kind(length_max=length_max, length_min=length_min)


def one_of(*choices: str) -> Kind:
    """One of these words."""
    return Kind(choices=choices)


def matching(pattern: str, length_max: int | None = None, length_min: int | None = None) -> Kind:
    """A text that matches as a whole."""
    return Kind(pattern=pattern, length_max=length_max, length_min=length_min)


def requiring(kind: Kind, other: str) -> Kind:
    """The same, but only together with another parameter."""
    return replace(kind, requires=other)


FLAG = Kind(type="boolean")
NUMBER = Kind(type="number")
WORDS = Kind(type="array")


def validated(kinds: Mapping[str, Kind], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a call in their types.  Raises Refused (400) that names every field that is wrong."""
    errors: dict[str, str] = {}
    values = {name: _value(name, kinds[name], raw, errors) for name, raw in given.items() if name in kinds}
    for name in given:
        if name not in kinds:
            errors.setdefault(name, UNKNOWN)
    for name, kind in kinds.items():
        if kind.required and name not in given:
            errors.setdefault(name, MISSING)
        if kind.requires and name in given and kind.requires not in given:
            errors.setdefault(kind.requires, f"missing property required by '{name}'")
    if errors:
        raise invalid(errors)
    return values


def parsed(kind: Kind, given: str, path: str = "") -> dict[str, Any]:
    """A property string as its keys and values.  Raises Malformed in Proxmox VE's words, lines included."""
    assert kind.fields is not None
    found = _split(kind, given)
    errors: dict[str, str] = {}
    values = {
        name: _value(f"{path}.{name}", kind.fields[name], raw, errors) for name, raw in found.items() if raw is not None
    }
    for name, each in kind.fields.items():
        if each.required and name not in found:
            errors.setdefault(f"{path}.{name}", MISSING)
    if errors:
        raise Malformed("format error\n" + "\n".join(f"{key}: {error}" for key, error in sorted(errors.items())))
    return values


def _split(kind: Kind, given: str) -> dict[str, str]:
    assert kind.fields is not None
    found: dict[str, str] = {}
    for part in given.split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals:
            if kind.default_key is None:
                raise Malformed("value without key, but schema does not define a default key")
            name, value = kind.default_key, part
        elif not name or not value:
            raise Malformed("missing key in comma-separated list property")
        field = kind.fields.get(name)
        if field is None:
            raise Malformed(f"invalid key in comma-separated list property: {name}")
        if field.alias is not None:
            if field.names is not None:
                found[field.names] = name
            name = field.alias
        if name in found:
            raise Malformed(f"duplicate key in comma-separated list property: {name}")
        found[name] = value
    return found


def _value(path: str, kind: Kind, raw: Any, errors: dict[str, str]) -> Any:
    if kind.type == "array":
        return [str(each) for each in raw] if isinstance(raw, list) else [str(raw)]
    if isinstance(raw, bool):
        raw = int(raw)
    if isinstance(raw, (list, dict)):
        errors[path] = f"type check ('{kind.type}') failed - got '{'ARRAY' if isinstance(raw, list) else 'HASH'}'"
        return None
    given = "" if raw is None else str(raw)
    if (value := _typed(kind, given)) is None:
        errors[path] = f"type check ('{kind.type}') failed - got '{given}'"
        return None
    try:
        if kind.check is not None:
            kind.check(given)
        if kind.fields is not None:
            parsed(kind, given, path)
    except Malformed as error:
        errors[path] = f"invalid format - {error}\n"
    if complaint := _limits(kind, given, value):
        errors.setdefault(path, complaint)
    return value


def _typed(kind: Kind, given: str) -> Any:
    if kind.type == "boolean":
        return 1 if given.lower() in TRUE else 0 if given.lower() in FALSE else None
    if kind.type == "integer":
        return int(given) if re.fullmatch(r"[+-]?\d+", given) else None
    if kind.type == "number":
        return _number(given) if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", given) else None
    return given


def _number(given: str) -> int | float:
    number = float(given)
    return int(number) if number.is_integer() else number


def _limits(kind: Kind, given: str, value: Any) -> str | None:
    if kind.length_max is not None and len(given) > kind.length_max:
        return f"value may only be {kind.length_max} characters long"
    if kind.length_min is not None and len(given) < kind.length_min:
        return f"value must be at least {kind.length_min} characters long"
    if kind.pattern is not None and not re.fullmatch(kind.pattern, given):
        return PATTERN
    if kind.choices and given not in kind.choices:
        return f"value '{given}' does not have a value in the enumeration '{', '.join(kind.choices)}'"
    if kind.minimum is not None and value < kind.minimum:
        return f"value must have a minimum value of {kind.minimum:g}"
    if kind.maximum is not None and value > kind.maximum:
        return f"value must have a maximum value of {kind.maximum:.10g}"
    return None
