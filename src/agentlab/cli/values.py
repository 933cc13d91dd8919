"""Options whose values people write in their own way."""

from __future__ import annotations

from typing import Any

import click

from agentlab.base.units import parse_bytes, parse_seconds


class Duration(click.ParamType[float]):
    """`90s`, `15m`, `1h30m`, or seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """`512MiB`, `2GB`, or bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION, SIZE = Duration(), Size()
