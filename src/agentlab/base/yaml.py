"""Strict YAML: every value knows its place, every problem is told at once.

Scalars are resolved by the YAML 1.2 core schema, so `off`, `on`, `yes` and `no` are the words that were written and
never turn into booleans; tags, anchors and aliases are refused, and so are keys that are given twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError

from agentlab.base.complaints import describe
from agentlab.base.text import one_line
from agentlab.base.units import parse_bytes, parse_seconds
from agentlab.errors import SettingsInvalid

YAML_BYTES_MAX = 256 << 10
YAML_DEPTH_MAX = 32
PROBLEMS_SHOWN_MAX = 100

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]


def _bytes(value: object) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return parse_bytes(value)
    raise ValueError(f"{value!r} is not a size; write for example 512MiB or 20GiB")


def _seconds(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return parse_seconds(value)
    raise ValueError(f"{value!r} is not a duration; write for example 90s, 15m or 1h30m")


Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]  # accepts whole numbers too
Bytes = Annotated[int, BeforeValidator(_bytes)]
Seconds = Annotated[float, BeforeValidator(_seconds)]


class StrictModel(BaseModel):
    """Base of what YAML is read into: frozen, and a key that is not a field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something stands; lines and columns count from 1."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, and where."""

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document as plain values.  `places` knows where each value stands, `keys` where each key does."""

    value: Any
    place: Place
    places: dict[Path, Place]
    keys: dict[Path, Place]
    raw: dict[Path, str]  # scalars as they were written
    problems: tuple[Problem, ...] = ()  # keys that cannot count; `check_documents` tells them with all others


@dataclass(frozen=True, slots=True, kw_only=True)
class Located(Generic[M]):
    """A checked document, and where it came from."""

    value: M
    source: str
    line: int

    @property
    def place(self) -> str:
        """`file:line`, for messages."""
        return f"{self.source}:{self.line}"


def load_documents(text: bytes, source: str, model: type[M]) -> list[Located[M]]:
    """Every non-empty document of `text`, checked against `model`.

    Raises SettingsInvalid naming all problems of all documents, one `file:line:column: message` a line.
    """
    return check_documents(read_documents(text, source), model)


def check_documents(documents: list[Document], model: type[M]) -> list[Located[M]]:
    """The second half of `load_documents`, for those who look at the plain values first."""
    found: list[Located[M]] = []
    problems: list[Problem] = []
    for document in documents:
        problems += document.problems
        try:
            value = model.model_validate(document.value)
        except ValidationError as error:
            problems += _from_pydantic(error, document, model)
        else:
            found.append(Located(value=value, source=document.place.source, line=document.place.line))
    refuse(problems)
    return found


def refuse(problems: list[Problem]) -> None:
    """Raise SettingsInvalid with these problems in the order of the file; quiet if there are none."""
    if not problems:
        return
    problems = sorted(problems, key=lambda each: (each.place.source, each.place.line, each.place.column))
    lines = [str(each) for each in problems[:PROBLEMS_SHOWN_MAX]]
    if (more := len(problems) - PROBLEMS_SHOWN_MAX) > 0:
        lines.append(f"and {more} more")
    raise SettingsInvalid(problems="\n".join(lines))


def read_documents(text: bytes, source: str) -> list[Document]:
    """The documents of `text` as plain values with their places; empty documents are left out.

    Raises SettingsInvalid for what is not acceptable YAML whatever it means.
    """
    decoded = _decode(text, source)
    try:
        _refuse_exotic(decoded, source)
        nodes = list(yaml.compose_all(decoded, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(part for part in (error.context, error.problem) if part)
        refuse([Problem(place=_place(source, mark), message=f"not valid YAML: {one_line(message)}")])
    except yaml.reader.ReaderError as error:
        place = _place_of_offset(decoded, error.position, source)
        refuse([Problem(place=place, message=f"the character U+{_code_point(error):04X} is not allowed in YAML")])
    return [_Reading(source).document(node) for node in nodes if not _is_empty(node)]


class _Loader(yaml.SafeLoader):
    """PyYAML's loader without its YAML 1.1 idea of what a word means."""

    yaml_implicit_resolvers = {}


def _decode(text: bytes, source: str) -> str:
    if len(text) > YAML_BYTES_MAX:
        message = f"larger than its limit: YAML_BYTES_MAX = {YAML_BYTES_MAX} bytes"
        refuse([Problem(place=Place(source=source, line=1, column=1), message=message)])
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode(errors="replace")
        place = _place_of_offset(before, len(before), source)
        refuse([Problem(place=place, message=f"not UTF-8: byte 0x{text[error.start]:02x}")])
    raise AssertionError("unreachable")


def _code_point(error: yaml.reader.ReaderError) -> int:
    return error.character if isinstance(error.character, int) else ord(error.character)


def _place_of_offset(text: str, offset: int, source: str) -> Place:
    before = text[:offset]
    return Place(source=source, line=before.count("\n") + 1, column=offset - (before.rfind("\n") + 1) + 1)


def _place(source: str, mark: Any) -> Place:
    return Place(source=source, line=mark.line + 1 if mark else 1, column=mark.column + 1 if mark else 1)


def _refuse_exotic(text: str, source: str) -> None:
    """Tags, anchors and aliases make values that do not stand where they are read; depth could exhaust the stack."""
    problems: list[Problem] = []
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        place = _place(source, event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            problems.append(Problem(place=place, message=f"aliases are refused: write out what *{event.anchor} means"))
        elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            problems.append(Problem(place=place, message=f"anchors are refused: remove &{event.anchor}"))
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            problems.append(Problem(place=place, message=f"tags are refused: remove {one_line(event.tag)}"))
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > YAML_DEPTH_MAX:
                message = f"nested deeper than the limit: YAML_DEPTH_MAX = {YAML_DEPTH_MAX}"
                refuse([*problems, Problem(place=place, message=message)])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    refuse(problems)


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and _plain(node.value) is None


@dataclass(slots=True)
class _Reading:
    """Turns the nodes of one document into plain values and notes their places."""

    source: str
    problems: list[Problem] = field(default_factory=list)
    places: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    raw: dict[Path, str] = field(default_factory=dict)

    def document(self, node: yaml.Node) -> Document:
        value = self._value(node, ())
        return Document(
            value=value,
            place=self.places[()],
            places=self.places,
            keys=self.keys,
            raw=self.raw,
            problems=tuple(self.problems),
        )

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self.places[path] = _place(self.source, node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(each, (*path, index)) for index, each in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        self.raw[path] = node.value
        return _plain(node.value) if node.style is None else node.value

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _place(self.source, key_node.start_mark)
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not key:
                self.problems.append(Problem(place=place, message="a key must be a word"))
            elif key in values:
                first = self.keys[(*path, key)]
                message = f"the key {one_line(key, 60)!r} is given twice; the first is in line {first.line}"
                self.problems.append(Problem(place=place, message=message))
            else:
                self.keys[(*path, key)] = place
                values[key] = self._value(value_node, (*path, key))
        return values


_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")  # 0755 stays text: YAML 1.1 and 1.2 disagree about its value
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def _plain(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar means by the YAML 1.2 core schema; numbers that could be read two ways stay text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and not re.match(r"[-+]?0[0-9]", text) and not text.lstrip("+-").isdigit():
        return float(text)
    return text


def _from_pydantic(error: ValidationError, document: Document, model: type[BaseModel]) -> list[Problem]:
    problems = []
    for each in error.errors(include_url=False):
        path = _known_prefix(each["loc"], document)
        places = document.keys if each["type"] == "extra_forbidden" else document.places
        place = places.get(path, document.place)
        problems.append(Problem(place=place, message=describe(each, path, document.raw.get(path), model)))
    return problems


def _known_prefix(location: Path, document: Document) -> Path:
    """The longest beginning of pydantic's location that stands in the file; pydantic adds parts such as `[key]`."""
    while location and location not in document.places:
        location = location[:-1]
    return location
