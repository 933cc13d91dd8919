"""From a method and a path to a row."""

from __future__ import annotations

import pytest

from agentlab.api.match import Matcher
from agentlab.wire.routes import PARAMETER, ROUTES, Route

MATCHER = Matcher(ROUTES.values())


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_every_row_is_found_by_its_own_path(route: Route) -> None:
    found = MATCHER.find(route.method, PARAMETER.sub(r"my-\1", route.path))
    assert found == (route, {name: f"my-{name}" for name in route.parameters})


def test_an_artifacts_name_may_have_slashes() -> None:
    found = MATCHER.find("GET", "/v1/jobs/j/artifacts/a/b//c")
    assert found is not None
    assert found[1] == {"job": "j", "name": "a/b//c"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("GET", "/v1/sandboxes/"),
        ("GET", "//v1/sandboxes"),
        ("GET", "/v1/sandboxes/x/y/z"),
        ("GET", "/v1/sandboxes/x/"),
        ("GET", "/v1/jobs//artifacts"),
        ("GET", "/v1/jobs/j/artifacts/"),
        ("PATCH", "/v1/sandboxes/x"),
        ("get", "/v1/sandboxes"),
        ("GET", "/v2/sandboxes"),
        ("POST", "/v1/profiles/other"),
    ],
)
def test_what_is_no_row_is_not_found(method: str, path: str) -> None:
    assert MATCHER.find(method, path) is None


def test_a_literal_comes_before_a_parameter() -> None:
    found = MATCHER.find("POST", "/v1/profiles/validate")
    assert found is not None
    assert found[0].name == "profiles.validate"
