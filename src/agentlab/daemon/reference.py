"""The settings as rows, for the reference documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from agentlab.base.units import format_bytes, format_seconds
from agentlab.daemon.schema import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One setting as the reference shows it."""

    name: str  # dotted
    kind: str
    default: str
    description: str


def setting_rows(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[SettingRow]:
    """Every setting with its default and description, in the order of the definition; groups are flattened."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from setting_rows(annotation, f"{prefix}{name}.")
            continue
        if field.is_required():
            default = "by user and directory"
        else:
            default = _shown(name, field.get_default(call_default_factory=True))
        yield SettingRow(
            name=prefix + name, kind=_kind(name, annotation), default=default, description=field.description or ""
        )


def _shown(name: str, value: object) -> str:
    if value is None:
        return "unset"
    if name.endswith("_bytes") or "_bytes_" in name:
        return format_bytes(int(str(value)))
    if name.endswith(("_s", "_s_max")):
        return format_seconds(float(str(value)))
    return str(value)


def _kind(name: str, annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    if name.endswith("_bytes") or "_bytes_" in name:
        return "size"
    if name.endswith(("_s", "_s_max")):
        return "duration"
    if name.endswith("_dirs"):
        return "list of absolute paths"
    if annotation is Path:
        return "absolute path"
    return "whole number" if annotation is int else "text"
