"""Snapshots, restores and forks over the API: what is refused and why, and what comes of what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agentlab.backends.interface import Capability, Unavailable
from agentlab.store import events, sandboxes

pytestmark = pytest.mark.anyio


async def ready(served: Any, **asked: Any) -> str:
    _, made = await served.json("POST", "/v1/sandboxes", asked)
    _, row = await served.json("GET", f"/v1/sandboxes/{made['id']}?wait_s=20")
    assert row["state"] == "ready", row
    return str(row["id"])


async def settled(served: Any, sandbox: str) -> Any:
    _, row = await served.json("GET", f"/v1/sandboxes/{sandbox}?wait_s=20")
    return row


async def kept(served: Any, sandbox: str, **asked: Any) -> Any:
    status, record = await served.json("POST", f"/v1/sandboxes/{sandbox}/snapshots", asked)
    assert status == 202, record
    _, found = await served.json("GET", f"/v1/sandboxes/{sandbox}/snapshots?wait_s=20")
    return next(each for each in found["items"] if each["name"] == record["name"])


def files(served: Any, sandbox: str) -> Any:
    return served.ground.backends["fake"].backend.sandboxes[sandbox].storage.files


def types(served: Any, subject: str) -> list[str]:
    return [each.type for each in served.ground.database.read(lambda tx: events.since(tx, 0, subject=subject))]


async def test_a_snapshot_is_requested_taken_listed_and_removed(served):
    sandbox = await ready(served)

    record = await kept(served, sandbox, name="here", memory=True)
    status, _ = await served.json("DELETE", f"/v1/sandboxes/{sandbox}/snapshots/here")
    _, left = await served.json("GET", f"/v1/sandboxes/{sandbox}/snapshots?wait_s=20")

    assert (record["state"], record["memory"], record["failure"]) == ("ready", True, None)
    assert record["taken_at"] is not None
    assert (status, left["items"]) == (202, [])
    assert [each for each in types(served, sandbox) if each.startswith("snapshot")] == [
        "snapshot.taken",
        "snapshot.removed",
    ]


async def test_a_retried_request_takes_one_snapshot_and_makes_its_forks_once(served):
    sandbox = await ready(served)

    first = await served.json("POST", f"/v1/sandboxes/{sandbox}/snapshots", {}, idempotency_key="k1")
    again = await served.json("POST", f"/v1/sandboxes/{sandbox}/snapshots", {}, idempotency_key="k1")
    forks = await served.json("POST", f"/v1/sandboxes/{sandbox}/fork", {"count": 2}, idempotency_key="k2")
    twice = await served.json("POST", f"/v1/sandboxes/{sandbox}/fork", {"count": 2}, idempotency_key="k2")

    assert first[1]["name"] == again[1]["name"]
    assert [each["id"] for each in forks[1]["items"]] == [each["id"] for each in twice[1]["items"]]
    assert len(served.ground.database.read(sandboxes.living)) == 3


async def test_a_retried_removal_is_quiet_after_it_is_done(served):
    sandbox = await ready(served)
    await kept(served, sandbox, name="here")
    path = f"/v1/sandboxes/{sandbox}/snapshots/here"

    first = await served.json("DELETE", path, idempotency_key="k")
    await served.json("GET", f"/v1/sandboxes/{sandbox}/snapshots?wait_s=20")
    again = await served.json("DELETE", path, idempotency_key="k")
    anew = await served.json("DELETE", path)

    assert (first[0], again[0]) == (202, 202)
    assert (anew[0], anew[1]["code"]) == (404, "snapshot/not-found")


async def test_a_restored_sandbox_runs_again_as_it_was(served):
    sandbox = await ready(served)
    files(served, sandbox)["/root/f"] = b"then"
    await kept(served, sandbox, name="here")
    files(served, sandbox)["/root/f"] = b"later"

    status, asked = await served.json("POST", f"/v1/sandboxes/{sandbox}/restore", {"snapshot": "here"})
    row = await settled(served, sandbox)

    assert (status, asked["restore_to"]) == (202, "here")
    assert (row["state"], row["restore_to"], row["failure"]) == ("ready", None, None)
    assert files(served, sandbox)["/root/f"] == b"then"
    assert "sandbox.restored" in types(served, sandbox)


async def test_a_paused_sandbox_runs_after_a_restore(served):
    sandbox = await ready(served)
    await kept(served, sandbox, name="here")
    await served.json("POST", f"/v1/sandboxes/{sandbox}/pause")
    await settled(served, sandbox)

    await served.json("POST", f"/v1/sandboxes/{sandbox}/restore", {"snapshot": "here"})

    assert (await settled(served, sandbox))["state"] == "ready"


async def test_a_restore_that_fails_leaves_a_stopped_sandbox_and_says_why(served):
    sandbox = await ready(served)
    await kept(served, sandbox, name="here")
    served.ground.backends["fake"].backend.sandboxes[sandbox].storage.snapshots.clear()

    await served.json("POST", f"/v1/sandboxes/{sandbox}/restore", {"snapshot": "here"})
    row = await settled(served, sandbox)

    assert (row["state"], row["wish"], row["restore_to"]) == ("stopped", "stopped", None)
    assert (row["failure"]["step"], row["failure"]["code"]) == ("restore", "backend/gone")


async def test_forks_begin_as_the_origin_is_and_the_snapshot_between_goes_away(served):
    origin = await ready(served, name="one")
    files(served, origin)["/dev/shm/f"] = b"in memory"

    _, made = await served.json("POST", f"/v1/sandboxes/{origin}/fork", {"count": 3, "name": "two"})
    rows = [await settled(served, each["id"]) for each in made["items"]]
    _, left = await served.json("GET", f"/v1/sandboxes/{origin}/snapshots?wait_s=20")

    assert [(row["name"], row["state"]) for row in rows] == [("two-1", "ready"), ("two-2", "ready"), ("two-3", "ready")]
    assert {row["origin"]["sandbox"] for row in rows} == {origin}
    assert [files(served, row["id"])["/dev/shm/f"] for row in rows] == [b"in memory"] * 3
    assert len({row["address"] for row in rows} | {(await settled(served, origin))["address"]}) == 4
    assert left["items"] == []
    assert types(served, rows[0]["id"])[:2] == ["sandbox.requested", "sandbox.forked"]
    _, steps = await served.json("GET", f"/v1/sandboxes/{rows[0]['id']}/steps")
    assert {(step["step"], step["outcome"]) for step in steps["items"]} >= {("snapshot", "done"), ("create", "done")}


async def test_forks_of_a_named_snapshot_leave_it(served):
    origin = await ready(served)
    await kept(served, origin, name="here")

    _, made = await served.json("POST", f"/v1/sandboxes/{origin}/fork", {"snapshot": "here"})
    row = await settled(served, made["items"][0]["id"])
    _, left = await served.json("GET", f"/v1/sandboxes/{origin}/snapshots?wait_s=20")

    assert row["origin"] == {"sandbox": origin, "snapshot": "here"}
    assert [each["name"] for each in left["items"]] == ["here"]


async def test_a_snapshot_that_fails_fails_its_forks_with_its_cause(served):
    origin = await ready(served)
    backend = served.ground.backends["fake"].backend

    async def full(*_: object, **__: object) -> None:
        raise Unavailable("no space for the memory of a VM", "Free some space.")

    backend.snapshots.take = full
    served.ground.backends["fake"].backend.fault_rate = 0
    _, made = await served.json("POST", f"/v1/sandboxes/{origin}/fork", {"count": 2})
    rows = [await settled(served, each["id"]) for each in made["items"]]

    assert [row["state"] for row in rows] == ["failed", "failed"]
    assert "no space for the memory" in rows[0]["failure"]["cause"]
    assert rows[0]["failure"]["remedy"] == "Free some space."
    assert (await settled(served, origin))["state"] == "ready"


async def test_a_sandbox_that_vanishes_takes_its_unfinished_snapshot_and_forks_with_it(served):
    origin = await ready(served)
    backend = served.ground.backends["fake"].backend

    async def vanish(*_: object, **__: object) -> None:
        backend.sandboxes.pop(origin, None)
        raise Unavailable("it was there a moment ago")

    backend.snapshots.take = vanish
    _, made = await served.json("POST", f"/v1/sandboxes/{origin}/fork", {})
    fork = await settled(served, made["items"][0]["id"])

    assert (await settled(served, origin))["state"] == "failed"
    assert fork["state"] == "failed"
    assert "it disappeared from its backend" in fork["failure"]["cause"]


@pytest.mark.parametrize(
    ("path", "body"), [("snapshots", {"memory": True}), ("restore", {"snapshot": "s"}), ("fork", {})]
)
async def test_a_sandbox_in_which_a_job_works_keeps_its_grant_and_secrets_to_itself(served, path, body):
    _, job = await served.json("POST", "/v1/jobs", {"task": "true"})
    sandbox = await its_sandbox(served, job["id"])

    status, problem = await served.json("POST", f"/v1/sandboxes/{sandbox}/{path}", body)

    assert (status, problem["code"]) == (409, "sandbox/has-job")
    assert job["id"] in problem["remedy"]


async def its_sandbox(served: Any, job: str) -> str:
    made = await anext(served.services.events.subscribe(0, types=["sandbox.requested"]))
    row = await settled(served, made.subject)
    assert (row["state"], row["job"]) == ("ready", job)
    return str(row["id"])


async def test_memory_cannot_be_kept_of_what_does_not_run(served):
    sandbox = await ready(served)
    await served.json("POST", f"/v1/sandboxes/{sandbox}/stop")
    await settled(served, sandbox)

    status, problem = await served.json("POST", f"/v1/sandboxes/{sandbox}/snapshots", {"memory": True})

    assert (status, problem["code"]) == (409, "state/wrong")
    assert "ready or paused" in problem["message"]
    assert (await kept(served, sandbox))["state"] == "ready"


async def test_what_is_not_ready_yet_is_neither_kept_nor_forked(idle):
    _, made = await idle.json("POST", "/v1/sandboxes", {})

    answers = [
        await idle.json("POST", f"/v1/sandboxes/{made['id']}/snapshots", {}),
        await idle.json("POST", f"/v1/sandboxes/{made['id']}/fork", {}),
    ]

    assert [(status, problem["code"]) for status, problem in answers] == [(409, "state/wrong"), (409, "state/wrong")]


async def test_a_backend_without_snapshots_is_named(served):
    sandbox = await ready(served)
    entry = served.ground.backends["fake"]
    probe = replace(entry.probe, capabilities=frozenset({Capability.EXEC, Capability.NETWORK}))
    served.ground.backends["fake"] = replace(entry, probe=probe)

    status, problem = await served.json("POST", f"/v1/sandboxes/{sandbox}/fork", {})

    assert (status, problem["code"]) == (503, "backend/unusable")
    assert "fake" in problem["message"]
    assert "fork" in problem["cause"]


async def test_a_name_that_is_taken_is_refused(served):
    sandbox = await ready(served)
    await kept(served, sandbox, name="here")

    status, problem = await served.json("POST", f"/v1/sandboxes/{sandbox}/snapshots", {"name": "here"})

    assert (status, problem["code"]) == (409, "snapshot/exists")


async def test_p9_a_sandbox_has_at_most_snapshots_max(served):
    sandbox = await ready(served)
    limit = served.services.snapshots._limits.snapshots_max
    for _ in range(limit):
        await served.json("POST", f"/v1/sandboxes/{sandbox}/snapshots", {})

    status, problem = await served.json("POST", f"/v1/sandboxes/{sandbox}/snapshots", {})

    assert (status, problem["code"]) == (429, "limit/reached")
    assert f"snapshots_max = {limit}" in problem["message"]


async def test_p9_a_request_makes_at_most_forks_max_and_all_or_none(served):
    sandbox = await ready(served)

    too_many = await served.json("POST", f"/v1/sandboxes/{sandbox}/fork", {"count": 17})
    await ready(served, name="two-2")
    taken = await served.json("POST", f"/v1/sandboxes/{sandbox}/fork", {"count": 3, "name": "two"})
    _, left = await served.json("GET", f"/v1/sandboxes/{sandbox}/snapshots")

    assert (too_many[0], "forks_max = 16" in too_many[1]["message"]) == (429, True)
    assert (taken[0], taken[1]["code"]) == (409, "name/taken")
    assert len(served.ground.database.read(sandboxes.living)) == 2
    assert left["items"] == []


async def test_a_snapshot_from_which_a_fork_is_being_made_cannot_be_removed(idle):
    _, made = await idle.json("POST", "/v1/sandboxes", {})
    await idle.ground.database.write(lambda tx: _make_ready(tx, made["id"], idle.ground.clock.now()))
    await idle.json("POST", f"/v1/sandboxes/{made['id']}/snapshots", {"name": "here"})
    _, forks = await idle.json("POST", f"/v1/sandboxes/{made['id']}/fork", {"snapshot": "here"})

    status, problem = await idle.json("DELETE", f"/v1/sandboxes/{made['id']}/snapshots/here")

    assert (status, problem["code"]) == (409, "snapshot/unusable")
    assert forks["items"][0]["id"] in problem["cause"]


async def test_a_snapshot_that_is_being_restored_cannot_be_removed_and_no_other_is_taken(idle):
    _, made = await idle.json("POST", "/v1/sandboxes", {})
    await idle.ground.database.write(lambda tx: _make_ready(tx, made["id"], idle.ground.clock.now()))
    await idle.json("POST", f"/v1/sandboxes/{made['id']}/snapshots", {"name": "here"})
    await idle.json("POST", f"/v1/sandboxes/{made['id']}/restore", {"snapshot": "here"})

    removal = await idle.json("DELETE", f"/v1/sandboxes/{made['id']}/snapshots/here")
    another = await idle.json("POST", f"/v1/sandboxes/{made['id']}/snapshots", {})

    assert (removal[0], removal[1]["code"]) == (409, "snapshot/unusable")
    assert (another[0], another[1]["code"]) == (409, "state/wrong")


def _make_ready(tx: Any, sandbox: str, now: float) -> None:
    sandboxes.transition(tx, sandbox, sandboxes.SandboxState.PROVISIONING, now)
    sandboxes.transition(tx, sandbox, sandboxes.SandboxState.READY, now)
