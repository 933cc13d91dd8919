"""What pydantic found, in the words of the person who wrote the file."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from agentlab.base.text import did_you_mean, nearest, one_line
from agentlab.base.units import format_bytes

_EXPECTED = {
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "dict_type": "a mapping (key: value)",
    "mapping_type": "a mapping (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
}
_TRUE, _FALSE = frozenset(("yes", "on", "y")), frozenset(("no", "off", "n"))


def describe(error: ErrorDetails, path: tuple[str | int, ...], raw: str | None, model: type[BaseModel]) -> str:
    """One sentence for one error.  `path` is where it stands, `raw` the scalar there as it was written."""
    kind, value = error["type"], error["input"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    name = _dotted(path)
    if kind == "extra_forbidden":
        return f"unknown key {_shown(path[-1] if path else '')}." + did_you_mean(
            str(path[-1]) if path else "", known_keys(model, path[:-1])
        )
    if kind == "missing":
        return f"{_dotted(error['loc'])!r} is missing"
    if kind in ("enum", "literal_error"):
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        best = nearest(str(value), known)
        hint = f"; did you mean {best!r}?" if best else ""
        return f"{name}: {_shown(value)} is not one of {', '.join(known)}{hint}"
    if kind in _EXPECTED:
        found = _described(value, raw) + _remedy(kind, value, raw)
        return f"{name or 'this document'}: expected {_EXPECTED[kind]}, not {found}"
    if kind == "value_error":
        return f"{name}: {one_line(str(context['error']))}" if name else one_line(str(context["error"]))
    if kind == "greater_than_equal":
        least = context["ge"]
        return f"{name}: must be at least {format_bytes(least) if least >= 1 << 20 else least}"
    return f"{name}: {one_line(error['msg'].replace('Input should be', 'must be'))}".removeprefix(": ")


def known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand in the mapping at `path` of a `model`; none if it takes any."""
    here: Any = model
    for part in path:
        if isinstance(part, int):
            here = _only(typing.get_args(here))
        elif isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = _unwrapped(here.model_fields[part].annotation)
        elif typing.get_args(here):
            here = _unwrapped(typing.get_args(here)[-1])  # the values of a dict
    if isinstance(here, type) and issubclass(here, BaseModel):
        return list(here.model_fields)
    return []


def _only(arguments: tuple[Any, ...]) -> Any:
    return _unwrapped(arguments[0]) if arguments else None


def _unwrapped(annotation: Any) -> Any:
    """The model or container inside Optional and Annotated."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _unwrapped(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return _only(tuple(each for each in typing.get_args(annotation) if each is not type(None)))
    return annotation


def _dotted(path: tuple[str | int, ...]) -> str:
    """`base.suite`, `files[2].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return one_line(text.removeprefix("."), 120)


def _shown(value: object) -> str:
    return repr(one_line(str(value), 60))


def _described(value: object, raw: str | None) -> str:
    match value:
        case None:
            return "nothing"
        case bool() | int() | float():
            return f"{raw if raw is not None else value}"
        case str():
            return _shown(value)
        case list() | tuple():
            return "a list"
        case _:
            return "a mapping"


def _remedy(kind: str, value: object, raw: str | None) -> str:
    if kind == "string_type" and raw is not None and value is not None:
        return f'; put it in quotes: "{one_line(raw, 60)}"'
    if kind == "bool_type" and str(value).lower() in _TRUE | _FALSE:
        return f"; write {'true' if str(value).lower() in _TRUE else 'false'}"
    return ""
