"""Bodies and query strings into checked values."""

from __future__ import annotations

import pytest

from agentlab.api.parse import parse_body, parse_query
from agentlab.errors import Invalid
from agentlab.wire.requests import CreateJob, CreateSandbox, ListSandboxes, WaitSettled


def _cause(body: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        parse_body(CreateJob, body)
    return caught.value.cause


def test_an_unknown_field_is_refused_with_what_was_probably_meant() -> None:
    assert "taks: unknown field. Did you mean 'task'?" in _cause(b'{"taks": "x"}')


def test_an_unknown_field_inside_another_is_told_with_its_place() -> None:
    assert "repo.urll: unknown field. Did you mean 'url'?" in _cause(b'{"task": "x", "repo": {"urll": "x"}}')


def test_every_problem_is_told_at_once() -> None:
    cause = _cause(b'{"ttl_s": -1, "timeout_s": "x", "surprise": 1}')
    assert all(word in cause for word in ("task:", "ttl_s:", "timeout_s:", "surprise:"))


def test_broken_json_is_told_with_its_line() -> None:
    assert "line 2" in _cause(b'{"task":\n nonsense}')


def test_an_empty_body_stands_for_an_empty_object() -> None:
    assert parse_body(CreateSandbox, b"") == CreateSandbox()


def test_control_characters_in_a_field_name_do_not_reach_the_message() -> None:
    assert "\x1b" not in _cause(b'{"\\u001b[31mred": 1}')


def test_a_list_in_a_query_may_be_repeated() -> None:
    assert parse_query(ListSandboxes, b"state=ready&state=failed&limit=5").limit == 5
    assert [*parse_query(ListSandboxes, b"state=ready&state=failed").state] == ["ready", "failed"]


@pytest.mark.parametrize(
    "query",
    [b"limit=5&limit=6", b"limit=x", b"limit=0", b"limit=100000", b"surprise=1", b"state=odd", b"=", b"&", b"limit",
     b"cursor=%00", b"cursor=%FF", b"&".join([b"state=ready"] * 200)],
)  # fmt: skip
def test_a_query_that_is_not_understood_is_refused(query: bytes) -> None:
    with pytest.raises(Invalid):
        parse_query(ListSandboxes, query)


def test_no_query_gives_the_defaults() -> None:
    assert parse_query(WaitSettled, b"").wait_s == 0


def test_waiting_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(Invalid, match="wait_s"):
        parse_query(WaitSettled, b"wait_s=61")
