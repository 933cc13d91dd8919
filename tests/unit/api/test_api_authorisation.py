"""P10: every route is denied unless its row says who may: routes × roles × owners, over the real socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentlab.api.identity import GRANTS, Role
from agentlab.wire.routes import PARAMETER, ROUTES, Route

pytestmark = pytest.mark.anyio

MINE, THEIRS = "uid:1000", "uid:2000"
# What each target is called; `missing` has the shape of an id.
MISSING = {"sandbox": "sb-22222222", "job": "job-22222222"}
BODIES: dict[str, Any] = {
    "sandboxes.create": {},
    "sandboxes.renew": {"ttl_s": 60},
    "sandboxes.snapshot": {},
    "sandboxes.restore": {"snapshot": "s"},
    "sandboxes.fork": {},
    "sandboxes.execute": {"argv": ["true"], "timeout_s": 1},
    "jobs.create": {"task": "true"},
    "profiles.validate": {"text": "name: x\n"},
}
HTTP = [route for route in ROUTES.values() if route.stream != "sse" or route.target is not None]
OWNED = [route for route in HTTP if route.target in ("sandbox", "job")]


def _target(route: Route, named: str) -> str:
    values = {"sandbox": named, "job": named, "template": "base", "profile": "yolo-ephemeral", "digest": "0" * 64}
    return PARAMETER.sub(lambda match: values.get(match[1], "x"), route.path)


async def _ask(served: Any, route: Route, named: str) -> tuple[int, Any]:
    body = BODIES.get(route.name)
    headers = {}
    if route.stream == "websocket":
        headers = {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
    content = b"" if route.upload else None if body is None else json.dumps(body).encode()
    status, _, answer = await served.request(route.method, _target(route, named), content, headers)
    return status, json.loads(answer) if status >= 400 and answer else {}


async def _make(served: Any, noun: str, owner: str) -> str:
    served.become(owner, Role.USER)
    if noun == "sandbox":
        _, made = await served.json("POST", "/v1/sandboxes", {})
        await served.fail(made["id"])  # so that nothing waits for it to become ready
    else:
        _, made = await served.json("POST", "/v1/jobs", {"task": "true"})
        await served.json("POST", f"/v1/jobs/{made['id']}/cancel")
    identity: str = made["id"]
    return identity


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("route", HTTP, ids=lambda route: route.name)
async def test_a_role_without_the_permission_is_refused_whatever_the_target(idle, route, role):
    idle.become(MINE, role)
    status, problem = await _ask(idle, route, MISSING.get(route.target or "", "x"))
    refused = status == 403 and problem.get("code", "request/forbidden") == "request/forbidden"
    assert refused == (route.permission not in GRANTS[role])


@pytest.mark.parametrize("route", OWNED, ids=lambda route: route.name)
async def test_anothers_thing_and_a_missing_thing_are_told_alike_to_a_user(idle, route):
    theirs = await _make(idle, route.target, THEIRS)

    idle.become(MINE, Role.USER)
    foreign = await _ask(idle, route, theirs)
    missing = await _ask(idle, route, MISSING[route.target])

    def shape(answer: tuple[int, Any], named: str) -> str:
        text = json.dumps({name: value for name, value in answer[1].items() if name != "request_id"})
        return f"{answer[0]} {text}".replace(named, "ID")

    assert foreign[0] == 404
    assert shape(foreign, theirs) == shape(missing, MISSING[route.target])


@pytest.mark.parametrize("role", [Role.ADMIN, Role.VIEWER])
@pytest.mark.parametrize("route", OWNED, ids=lambda route: route.name)
async def test_an_admin_or_viewer_reaches_anothers_thing_as_far_as_the_role_permits(idle, route, role):
    theirs = await _make(idle, route.target, THEIRS)
    idle.become(MINE, role)
    status, problem = await _ask(idle, route, theirs)
    expected_refusal = route.permission not in GRANTS[role]
    assert (status == 403) == expected_refusal
    assert problem.get("code") != "not-found"


@pytest.mark.parametrize("route", OWNED, ids=lambda route: route.name)
async def test_the_owner_reaches_its_own_thing(idle, route):
    mine = await _make(idle, route.target, MINE)
    idle.become(MINE, Role.USER)
    status, problem = await _ask(idle, route, mine)
    assert status not in (401, 403)
    assert problem.get("code") != "not-found"


@pytest.mark.parametrize("noun", ["sandboxes", "jobs"])
async def test_a_list_shows_a_user_only_what_is_its_own(idle, noun):
    singular = {"sandboxes": "sandbox", "jobs": "job"}[noun]
    await _make(idle, singular, THEIRS)
    mine = await _make(idle, singular, MINE)
    idle.become(MINE, Role.USER)
    _, page = await idle.json("GET", f"/v1/{noun}")
    assert [row["id"] for row in page["items"]] == [mine]
    idle.become(MINE, Role.VIEWER)
    _, page = await idle.json("GET", f"/v1/{noun}")
    assert len(page["items"]) == 2


async def test_events_show_a_user_only_what_is_its_own(idle):
    await _make(idle, "sandbox", THEIRS)
    mine = await _make(idle, "sandbox", MINE)
    idle.become(MINE, Role.USER)
    _, page = await idle.json("GET", "/v1/events")
    assert {event["subject"] for event in page["items"]} == {mine}


async def test_the_hint_for_a_misspelt_name_never_names_anothers_thing(idle):
    idle.become(THEIRS, Role.USER)
    await idle.json("POST", "/v1/sandboxes", {"name": "their-secret"})
    idle.become(MINE, Role.USER)
    _, problem = await idle.json("GET", "/v1/sandboxes/their-secre")
    assert "their-secret" not in json.dumps(problem)


async def test_a_name_that_another_user_has_taken_does_not_show_whose_it_is(idle):
    idle.become(THEIRS, Role.USER)
    _, made = await idle.json("POST", "/v1/sandboxes", {"name": "taken"})
    idle.become(MINE, Role.USER)
    _, problem = await idle.json("POST", "/v1/sandboxes", {"name": "taken"})
    assert THEIRS not in json.dumps(problem)
    assert made["id"] not in json.dumps(problem)
