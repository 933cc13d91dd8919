"""JSON from strangers: parsed strictly, every value checked against a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

COUNT_MAX = (1 << 63) - 1
Check = Callable[[object], bool]
Data = bytes | bytearray


class Malformed(ValueError):
    """The text is not the JSON that was agreed on.  The message says what is wrong, without quoting values."""


def count(value: object) -> bool:
    """An integer from 0 to 2⁶³ - 1."""
    return type(value) is int and 0 <= value <= COUNT_MAX


def integer(value: object) -> bool:
    """An integer that fits 64 bits."""
    return type(value) is int and -COUNT_MAX <= value <= COUNT_MAX


def seconds(value: object) -> bool:
    """A finite number of seconds, not negative."""
    return type(value) in (int, float) and 0 <= value < 1e12  # type: ignore[operator]  # NaN compares false


def flag(value: object) -> bool:
    """true or false."""
    return type(value) is bool


def text(length_max: int) -> Check:
    """Unicode text of at most `length_max` characters that UTF-8 can express."""

    def check(value: object) -> bool:
        return type(value) is str and len(value) <= length_max and _encodable(value)

    return check


def one_of(*words: str) -> Check:
    """One of these words."""
    return lambda value: type(value) is str and value in words


def digest(value: object) -> bool:
    """A SHA-256 in 64 lower-case hexadecimal digits."""
    return type(value) is str and len(value) == 64 and all(letter in "0123456789abcdef" for letter in value)


def maybe(check: Check) -> Check:
    """Null, or what `check` allows.  Such a key may also be absent."""

    def maybe_check(value: object) -> bool:
        return value is None or check(value)

    maybe_check.optional = True  # type: ignore[attr-defined]
    return maybe_check


def list_of(check: Check, count_max: int) -> Check:
    """A list of at most `count_max` values that `check` allows."""
    return lambda value: type(value) is list and len(value) <= count_max and all(check(each) for each in value)


def map_of(check: Check, count_max: int) -> Check:
    """An object of at most `count_max` texts, its names not empty."""

    def map_check(value: object) -> bool:
        if type(value) is not dict or len(value) > count_max:
            return False
        return all(name and _encodable(name) and check(each) for name, each in value.items())

    return map_check


def parse_object(raw: Data) -> dict[str, Any]:
    """A JSON object.  Raises Malformed for anything else: bad UTF-8, NaN, twice the same name, endless nesting."""
    try:
        found = json.loads(str(raw, "utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except UnicodeDecodeError:
        raise Malformed("not UTF-8") from None
    except RecursionError:
        raise Malformed("nested too deeply") from None
    except Malformed:
        raise
    except ValueError:
        raise Malformed("not JSON") from None
    if type(found) is not dict:
        raise Malformed("not an object")
    return found


def checked(found: dict[str, Any], shape: Mapping[str, Check], what: str) -> dict[str, Any]:
    """`found`, its optional keys filled with None.  Raises Malformed naming a missing, unknown or mistyped key."""
    for name in found:
        if name not in shape:
            raise Malformed(f"{what}: unknown key {name[:40]!a}")
    for name, check in shape.items():
        if name not in found:
            if not getattr(check, "optional", False):
                raise Malformed(f"{what}: {name} is missing")
            found[name] = None
        elif not check(found[name]):
            raise Malformed(f"{what}: {name} has a wrong type or is out of range")
    return found


def dump(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a key occurs twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise Malformed("NaN or infinity")
