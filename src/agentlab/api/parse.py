"""Bodies and query strings into checked values; every problem is named with its place."""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError

from agentlab.base.text import did_you_mean, one_line
from agentlab.errors import Invalid

PROBLEMS_MAX = 20
QUERY_FIELDS_MAX = 100

T = TypeVar("T", bound=BaseModel)


def parse_body(kind: type[T], body: bytes) -> T:
    """The body as `kind`.  Raises Invalid naming every problem."""
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise _invalid(kind, error) from None


def parse_query(kind: type[T], query: bytes) -> T:
    """The query string as `kind`; only a field that is a list may be given twice.  Raises Invalid."""
    if not query:
        return _EMPTY.get(kind) or _EMPTY.setdefault(kind, kind())  # type: ignore[return-value]
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict",
            max_num_fields=QUERY_FIELDS_MAX,
        )  # fmt: skip
    except ValueError as error:
        raise Invalid(cause=f"the query string cannot be read: {one_line(str(error), 100)}") from None
    values: dict[str, Any] = {}
    for name, value in pairs:
        if _is_list(kind, name):
            values.setdefault(name, []).append(value)
        elif name in values:
            raise Invalid(cause=f"{name}: given twice")
        else:
            values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _invalid(kind, error) from None


_EMPTY: dict[type[BaseModel], BaseModel] = {}


def _is_list(kind: type[BaseModel], name: str) -> bool:
    known = kind.model_fields.get(name)
    return known is not None and get_origin(known.annotation) is list


def _invalid(kind: type[BaseModel], error: ValidationError) -> Invalid:
    found = [_problem(kind, each) for each in error.errors(include_url=False, include_input=False)[:PROBLEMS_MAX]]
    return Invalid(cause="; ".join(found), problems=found)


def _problem(kind: type[BaseModel], problem: Any) -> str:
    place = ".".join(one_line(str(part), 80) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        parent = _model_at(kind, problem["loc"][:-1])
        hint = did_you_mean(str(problem["loc"][-1]), parent.model_fields) if parent is not None else ""
        return f"{place}: unknown field.{hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {one_line(message)}" if place else one_line(message)


def _model_at(kind: type[BaseModel], place: tuple[Any, ...]) -> type[BaseModel] | None:
    for part in place:
        known = kind.model_fields.get(str(part))
        nested = [] if known is None else [known.annotation, *get_args(known.annotation)]
        models = [each for each in nested if isinstance(each, type) and issubclass(each, BaseModel)]
        if not models:
            return None
        kind = models[0]
    return kind
