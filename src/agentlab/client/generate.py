"""Writes the typed methods of the SDK from the rows: `python -m agentlab.client.generate`.  A test compares."""

from __future__ import annotations

import enum
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agentlab.wire.routes import ROUTES, Route

HEAD = '''"""The SDK's methods, {kind}.  Written by agentlab.client.generate from the route table: do not edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agentlab.wire import requests, responses


class Link(Protocol):
    """What carries out a call."""

    {async_}def typed(self, name: str, answer: Any, arguments: dict[str, Any]) -> Any:
        """The answer of the row `name` as the type `answer`; bytes where that is None."""
        ...
'''


def render(*, asynchronous: bool) -> str:
    """The module's text."""
    async_, await_ = ("async ", "await ") if asynchronous else ("", "")
    text = HEAD.format(kind="asynchronous" if asynchronous else "synchronous", async_=async_)
    groups: dict[str, list[Route]] = {}
    for route in ROUTES.values():
        if route.stream not in ("sse", "websocket") and not route.upload and route.method != "HEAD":
            groups.setdefault(route.name.partition(".")[0], []).append(route)
    for group, routes in groups.items():
        text += f'\n\nclass {group.capitalize()}:\n    """The rows `{group}.*`."""\n\n'
        text += "    def __init__(self, link: Link) -> None:\n        self._link = link\n"
        for route in routes:
            text += "\n" + _method(route, async_, await_)
    return text


def _method(route: Route, async_: str, await_: str) -> str:
    verb = route.name.partition(".")[2]
    answer = "bytes" if route.response is None else f"responses.{route.response}"
    fields = _fields(route)
    required = [f"{name}: {kind}" for name, (kind, needed) in fields.items() if needed]
    optional = [f"{name}: {kind} = None" for name, (kind, needed) in fields.items() if not needed]
    parameters = ["self", *(f"{name}: str" for name in route.parameters)]
    if fields:
        parameters += ["*", *required, *optional]
    names = [*route.parameters, *fields]
    arguments = "{" + ", ".join(f'"{name}": {name}' for name in names) + "}"
    kind = "None" if route.response is None else f"responses.{route.response}"
    errors = ", ".join(error.__name__ for error in route.errors)
    doc = route.doc + (f"\n\n        Raises {errors}." if errors else "")
    head = f"    {async_}def {verb}({', '.join(parameters)}) -> {answer}:"
    if len(head) > 120:
        lines = "".join(f"        {each},\n" for each in parameters)
        head = f"    {async_}def {verb}(\n{lines}    ) -> {answer}:"
    call = f'{await_}self._link.typed("{route.name}", {kind}, {arguments})'
    body = f"        found: {answer} = {call}"
    if len(body) > 120:
        lines = "".join(f'            "{name}": {name},\n' for name in names)
        body = f"        arguments: dict[str, Any] = {{\n{lines}        }}\n"
        body += f'        found: {answer} = {await_}self._link.typed("{route.name}", {kind}, arguments)'
    return f'{head}\n        """{_wrapped(doc)}"""\n{body}\n        return found\n'


def _wrapped(doc: str) -> str:
    first, *rest = doc.split("\n\n")
    paragraphs = [first, *(each.strip() for each in rest)]
    filled = [textwrap.fill(each, 108, subsequent_indent="        ") for each in paragraphs]
    text = "\n\n        ".join(filled)
    return text + ("\n        " if "\n" in text else "")


def _fields(route: Route) -> dict[str, tuple[str, bool]]:
    kind = route.request_type or route.query_type
    return {} if kind is None else {name: _field(each) for name, each in kind.model_fields.items()}


def _field(each: FieldInfo) -> tuple[str, bool]:
    text = _text(each.annotation)
    if each.is_required():
        return text, True
    return (text if text.endswith("| None") else f"{text} | None"), False


def _text(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        return _text(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return " | ".join(_text(each) for each in get_args(kind))
    if origin in (list, dict):
        name = "Sequence" if origin is list else "Mapping"
        return f"{name}[{', '.join(_text(each) for each in get_args(kind))}]"
    if kind is type(None):
        return "None"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "str"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"requests.{kind.__name__}"
    return str(kind.__name__)


def main() -> None:
    """Write both modules beside this one."""
    here = Path(__file__).parent
    (here / "methods.py").write_text(render(asynchronous=False))
    (here / "async_methods.py").write_text(render(asynchronous=True))


if __name__ == "__main__":
    main()
