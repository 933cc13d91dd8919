"""The route table, the requests and the problems."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from agentlab import errors
from agentlab.base.secret import Secret
from agentlab.wire import requests, responses
from agentlab.wire.problem import from_problem, to_problem
from agentlab.wire.routes import ROUTES, Route

ALL = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


@ALL
def test_every_type_that_a_row_names_exists(route: Route) -> None:
    for named, kind in (
        (route.request, route.request_type),
        (route.query, route.query_type),
        (route.response, route.response_type),
    ):
        assert (named is None) == (kind is None)


@ALL
def test_every_row_says_who_may_and_what_it_does(route: Route) -> None:
    assert ":" in route.permission
    assert route.doc.endswith((".", "`"))
    assert route.path.startswith("/v1/")


@ALL
def test_a_row_that_names_a_noun_in_its_path_lets_the_nouns_owner_decide(route: Route) -> None:
    owned = [name for name in route.parameters if name in ("sandbox", "job", "template", "profile")]
    assert [route.target] == (owned or [None])


@ALL
def test_reading_never_takes_a_key_and_never_needs_write_permission(route: Route) -> None:
    if route.method in ("GET", "HEAD") and route.stream != "websocket" and route.name != "blobs.head":
        assert not route.mutates
        assert route.permission.endswith(":read")


def _classes(module: Any, base: type) -> list[type[BaseModel]]:
    return [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, base) and each is not base and each.__module__ == module.__name__
    ]


@pytest.mark.parametrize("kind", [*_classes(requests, requests.Body), *_classes(requests, requests.Query)])
def test_every_request_refuses_unknown_fields(kind: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="surprise"):
        kind.model_validate({"surprise": 1})


@pytest.mark.parametrize("kind", _classes(responses, responses.Answer))
def test_every_answer_passes_over_fields_of_a_newer_daemon(kind: type[BaseModel]) -> None:
    assert kind.model_config["extra"] == "ignore"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (requests.CreateSandbox, b'{"ttl_s": "60"}'),
        (requests.CreateSandbox, b'{"ttl_s": 0}'),
        (requests.CreateSandbox, b'{"ttl_s": 1e400}'),
        (requests.CreateSandbox, b'{"memory_bytes": 1}'),
        (requests.CreateSandbox, b'{"memory_bytes": 1e30}'),
        (requests.CreateSandbox, b'{"name": "sb-looks-like-an-id"}'),
        (requests.CreateSandbox, b'{"name": "a\\u001b[31m"}'),
        (requests.CreateSandbox, b'{"network": "open"}'),
        (requests.CreateJob, b'{"task": "x", "env": {"1A": "x"}}'),
        (requests.CreateJob, b'{"task": "x", "env": {"A": "x\\u0000"}}'),
        (requests.CreateJob, b'{"task": "\\ud800"}'),
        (requests.CreateJob, b'{"task": "\xff"}'),
        (requests.CreateJob, b'{"task": "x", "repo": {"url": "--upload-pack=x"}}'),
        (requests.CreateJob, b'{"task": "x", "repo": {"ref": "--output=x"}}'),
        (requests.CreateJob, b'{"task": "x", "repo": {"bundle": "../../etc/passwd"}}'),
        (requests.CreateJob, b'{"task": "x", "artifact_globs": [""]}'),
        (requests.Execute, b'{"argv": []}'),
        (requests.Execute, b'{"argv": ["a\\u0000b"]}'),
        (requests.Execute, b'{"argv": ["a"], "stdin_b64": "!"}'),
        (requests.Execute, b'{"argv": ["a"], "timeout_s": 1e9}'),
        (requests.RenewLease, b"{}"),
        (requests.RenewLease, b"[]"),
        (requests.RenewLease, b"nonsense"),
    ],
)
def test_a_value_outside_of_its_bounds_is_refused(kind: type[BaseModel], body: bytes) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate_json(body)


def test_a_validation_error_does_not_repeat_the_values_that_were_sent() -> None:
    with pytest.raises(ValidationError) as caught:
        requests.CreateJob.model_validate_json(b'{"task": "x", "env": {"A": "hunter2\\u0000"}}')
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", errors.ERRORS.values(), ids=errors.ERRORS)
def test_an_error_arrives_at_the_client_as_what_it_was(kind: type[errors.AgentLabError]) -> None:
    told = kind.received(message="what {happened}", cause="why", remedy="do {this}", facts={"a": 1})
    arrived = from_problem(to_problem(told, "r-1"))
    assert type(arrived) is kind
    assert (str(arrived), arrived.cause, arrived.advice) == ("what {happened}", "why", "do {this}")
    assert arrived.request_id == "r-1"


def test_a_problem_with_an_unknown_code_still_says_everything() -> None:
    arrived = from_problem({"code": "from/the-future", "message": "m", "cause": "c", "remedy": "r"})
    assert (str(arrived), arrived.cause, arrived.advice) == ("m", "c", "r")


def test_a_problem_never_carries_a_secret() -> None:
    error = errors.Internal(cause="x", key=Secret("hunter2"))
    assert "hunter2" not in str(to_problem(error))
