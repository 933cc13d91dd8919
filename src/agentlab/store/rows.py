"""How values that are not columns are written into rows, and what pages of rows share."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable

from agentlab import errors
from agentlab.base.clock import milliseconds
from agentlab.model.failure import Failure
from agentlab.model.ids import is_id

PAGE_ROWS_MAX = 1_000
FOUND_SHOWN_MAX = 6  # ids that an error "fits several" names
HINT_NAMES_MAX = 200  # names that "did you mean" compares with
BEFORE_ALL = (1 << 62, "")  # the place before the newest row of a list
AFTER_ALL_PREFIXED = "\U0010ffff"  # greater than every letter of an id


def instant(value_ms: int) -> float:
    """Milliseconds of a row as the model's seconds."""
    return value_ms / 1000


def instant_or_none(value_ms: int | None) -> float | None:
    """The same where the row may hold NULL."""
    return None if value_ms is None else value_ms / 1000


def ms_or_none(seconds: float | None) -> int | None:
    """The model's seconds as the row's milliseconds, or NULL."""
    return None if seconds is None else milliseconds(seconds)


def texts_json(texts: Iterable[str]) -> str:
    """A list of texts as one column."""
    return json.dumps(list(texts), separators=(",", ":"))


def texts(column: str) -> tuple[str, ...]:
    """The inverse of `texts_json`."""
    if column == "[]":  # nearly always, and a tick of the reconciler reads every living sandbox
        return ()
    found = json.loads(column)
    assert all(isinstance(each, str) for each in found), f"{column!r} is no list of texts"
    return tuple(found)


def failure_json(failure: Failure | None) -> str | None:
    """A failure as one column."""
    if failure is None:
        return None
    return json.dumps(
        {
            "code": failure.code,
            "step": failure.step,
            "cause": failure.cause,
            "remedy": failure.remedy,
            "at_ms": milliseconds(failure.at),
        }
    )


def failure(column: str | None) -> Failure | None:
    """The inverse of `failure_json`."""
    if column is None:
        return None
    found = json.loads(column)
    return Failure(
        code=found["code"],
        step=found["step"],
        cause=found["cause"],
        remedy=found["remedy"],
        at=instant(found["at_ms"]),
    )


def cursor_text(at_ms: int, id: str) -> str:
    """An opaque place in a list that is ordered by time and id."""
    return base64.urlsafe_b64encode(f"{at_ms}:{id}".encode()).decode().rstrip("=")


def cursor_place(text: str) -> tuple[int, str]:
    """The inverse of `cursor_text`.  Raises Invalid for anything else."""
    try:
        at_ms, _, id = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(":")
        place = int(at_ms), id
    except (ValueError, binascii.Error):
        raise errors.Invalid(cause="`after` is not a cursor that a list has returned") from None
    if not is_id(place[1]) or abs(place[0]) >= BEFORE_ALL[0]:
        raise errors.Invalid(cause="`after` is not a cursor that a list has returned")
    return place
