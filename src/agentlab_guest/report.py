"""The report: how a job ended, as its guest saw it."""

from __future__ import annotations

from agentlab_guest.record import fields, record
from agentlab_guest.strict import Data, checked, count, dump, integer, list_of, maybe, one_of, parse_object, text

OUTCOMES = ("succeeded", "failed", "timed_out", "cancelled", "lost")
SKIPPED_MAX = 1000  # entries; the last one says how many more there were
LINE_LENGTH_MAX = 1000

_line = text(LINE_LENGTH_MAX)
_SHAPE = {
    "outcome": one_of(*OUTCOMES),
    "exit_status": maybe(integer),
    "summary": _line,
    "base_commit": maybe(text(64)),
    "head_commit": maybe(text(64)),
    "files_changed": count,
    "lines_added": count,
    "lines_removed": count,
    "skipped": list_of(lambda value: type(value) is dict, SKIPPED_MAX),
    "failure": maybe(lambda value: type(value) is dict),
}


@record
class Skipped:
    """Something that was not brought back, and why.  Both are printable and free of secrets."""

    name: str
    reason: str


@record
class Failure:
    """What went wrong in which phase, and what to do about it."""

    phase: str
    cause: str
    remedy: str


@record
class Report:
    """`exit_status` is the agent's, 128 + n for signal n; None if it never ran or nobody saw its end.

    `failure` tells what AgentLab's own steps could not do; an agent that ends with a status other than 0 has none.
    """

    outcome: str
    exit_status: int | None
    summary: str
    base_commit: str | None = None
    head_commit: str | None = None
    files_changed: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    skipped: tuple[Skipped, ...] = ()
    failure: Failure | None = None

    def encode(self) -> bytes:
        """The JSON that `parse_report` reads."""
        skipped = [fields(each) for each in self.skipped]
        failure = None if self.failure is None else fields(self.failure)
        return dump(fields(self) | {"skipped": skipped, "failure": failure})


def parse_report(raw: Data) -> Report:
    """Raises Malformed naming the first key that is missing, unknown, mistyped or out of range."""
    found = checked(parse_object(raw), _SHAPE, "report")
    pair = {"name": _line, "reason": _line}
    skipped = tuple(Skipped(**checked(each, pair, "report.skipped")) for each in found["skipped"])
    failure = found["failure"]
    if failure is not None:
        triple = {"phase": text(64), "cause": _line, "remedy": _line}
        failure = Failure(**checked(failure, triple, "report.failure"))
    return Report(**found | {"skipped": skipped, "failure": failure})
