"""The client without I/O."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentlab.client.core import StreamParser, answer_of, may_retry, request_of
from agentlab.errors import AgentLabError, Draining, NotFound, WrongState
from agentlab.wire.problem import to_problem
from agentlab.wire.routes import ROUTES


def test_values_in_the_path_cannot_leave_their_place() -> None:
    request = request_of(ROUTES["sandboxes.get"], {"sandbox": "../jobs?x#y", "wait_s": 5})
    assert request.target == "/v1/sandboxes/..%2Fjobs%3Fx%23y?wait_s=5"


def test_an_artifacts_name_keeps_its_slashes() -> None:
    request = request_of(ROUTES["jobs.artifact"], {"job": "j", "name": "a b/c%"})
    assert request.target == "/v1/jobs/j/artifacts/a%20b/c%25"


def test_what_is_none_is_left_out_and_the_rest_is_the_body() -> None:
    request = request_of(ROUTES["sandboxes.create"], {"name": "x", "ttl_s": None})
    assert json.loads(request.body or b"") == {"name": "x"}


def test_lists_and_switches_become_query_fields() -> None:
    request = request_of(ROUTES["sandboxes.list"], {"state": ["ready", "failed"], "all": True})
    assert request.target.endswith("?state=ready&state=failed&all=true")


def test_a_key_goes_with_mutations_only() -> None:
    assert request_of(ROUTES["sandboxes.create"], {}, "k").headers["idempotency-key"] == "k"
    assert "idempotency-key" not in request_of(ROUTES["sandboxes.list"], {}, "k").headers


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("sandboxes.get", {}), ("daemon.status", {"surprise": 1}), ("jobs.cancel", {"sandbox": "x"})],
)
def test_arguments_that_do_not_fit_the_row_are_a_type_error(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        request_of(ROUTES[name], arguments)


def test_an_error_of_the_daemon_is_raised_as_its_own_class() -> None:
    told = NotFound(noun="sandbox", name="x", hint=" Did you mean 'y'?")
    with pytest.raises(NotFound, match=r"no sandbox 'x'\. Did you mean 'y'") as caught:
        answer_of(404, "application/problem+json", json.dumps(to_problem(told, "r")).encode())
    assert caught.value.request_id == "r"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'"x"', b"\xff"])
def test_an_answer_that_is_no_problem_still_becomes_an_error(body: bytes) -> None:
    with pytest.raises(AgentLabError, match="502"):
        answer_of(502, "text/html", body)


def test_only_what_cannot_happen_twice_is_sent_again_after_a_cut() -> None:
    cut = ConnectionResetError()
    assert may_retry(ROUTES["sandboxes.get"], None, cut)
    assert may_retry(ROUTES["sandboxes.create"], "k", cut)
    assert not may_retry(ROUTES["sandboxes.create"], None, cut)
    assert not may_retry(ROUTES["sandboxes.execute"], "k", cut)


def test_a_draining_daemon_did_nothing_so_everything_may_be_sent_again() -> None:
    assert may_retry(ROUTES["sandboxes.execute"], None, Draining())
    assert not may_retry(ROUTES["sandboxes.get"], None, WrongState(noun="x", name="x", state="x", needed="x"))


STREAM = b": hello\n\nid: 5\nevent: output\ndata: {}\n\ndata: a\ndata: b\n\nevent: end\nid: 7\ndata: x: y\n\n"
EXPECTED = [("output", "{}", "5"), ("message", "a\nb", "5"), ("end", "x: y", "7")]


@given(some.lists(some.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    parser, found = StreamParser(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(places):
        found += [(each.kind, each.data, each.id) for each in parser.feed(STREAM[start:end])]
    assert found == EXPECTED


def test_an_event_without_an_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlab.client.core.EVENT_BYTES_MAX", 1000)
    parser = StreamParser()
    parser.feed(b"data: " + b"x" * 900)
    with pytest.raises(ValueError, match="too long"):
        parser.feed(b"x" * 900)
