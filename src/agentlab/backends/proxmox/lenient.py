"""What answers hold, read leniently: integers as text, booleans as 0 and 1, absent keys as their default.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Row = Mapping[str, object]


def integer(row: Row, key: str, default: int = 0) -> int:
    """A whole number, given as a number or as text; `default` if it is absent or is none."""
    value = row.get(key)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value == value and abs(value) != float("inf") else default
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return integer({key: _number(value)}, key, default)
    return default


def number(row: Row, key: str, default: float = 0.0) -> float:
    """A number, given as a number or as text."""
    value = row.get(key)
    if isinstance(value, int | float):
        return float(value)
    found = _number(value) if isinstance(value, str) else None
    return default if found is None else found


def truth(row: Row, key: str, default: bool = False) -> bool:
    """A boolean: true, 1, "1", "yes" and "on" are true."""
    value = row.get(key)
    if value is None:
        return default
    return str(value).lower() in ("1", "true", "yes", "on")


def text(row: Row, key: str, default: str = "") -> str:
    """A text; a number becomes one."""
    value = row.get(key)
    if value is None or isinstance(value, Mapping | list):
        return default
    return str(int(value)) if isinstance(value, bool) else str(value)


def row(value: object) -> Row:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def rows(value: object) -> Sequence[Row]:
    """The objects of a list; what is none is passed over."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
