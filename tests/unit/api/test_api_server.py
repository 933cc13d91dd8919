"""The served API, over its real socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from pathlib import Path

import pytest

from agentlab.errors import AddressInUse
from agentlab.wire.requests import REQUEST_BYTES_MAX

pytestmark = pytest.mark.anyio


async def test_the_caller_is_who_the_kernel_says(served):
    status, answer = await served.json("GET", "/v1/whoami")
    assert (status, answer["name"], answer["role"]) == (200, f"uid:{os.getuid()}", "admin")


async def test_a_sandbox_is_made_and_can_be_waited_for(served):
    status, made = await served.json("POST", "/v1/sandboxes", {"name": "one"})
    assert status == 202
    status, row = await served.json("GET", f"/v1/sandboxes/{made['id']}?wait_s=20")
    assert (status, row["state"], row["name"]) == (200, "ready", "one")
    status, steps = await served.json("GET", "/v1/sandboxes/one/steps")
    assert status == 200
    assert all(step["outcome"] == "done" for step in steps["items"])


async def test_waiting_ends_with_the_row_as_it_is(idle):
    _, made = await idle.json("POST", "/v1/sandboxes", {})
    status, row = await idle.json("GET", f"/v1/sandboxes/{made['id']}?wait_s=0.1")
    assert (status, row["state"]) == (200, "requested")


async def test_the_same_key_makes_one_sandbox(idle):
    answers = await asyncio.gather(*(idle.json("POST", "/v1/sandboxes", {}, idempotency_key="k-1") for _ in range(5)))
    assert len({answer["id"] for _, answer in answers}) == 1
    _, page = await idle.json("GET", "/v1/sandboxes")
    assert len(page["items"]) == 1


async def test_the_same_key_for_something_else_is_refused(idle):
    await idle.json("POST", "/v1/sandboxes", {}, idempotency_key="k-1")
    status, problem = await idle.json("POST", "/v1/sandboxes", {"name": "other"}, idempotency_key="k-1")
    assert (status, problem["code"]) == (409, "request/key-reused")


async def test_a_key_is_its_users_own(idle):
    from agentlab.api.identity import Role

    _, first = await idle.json("POST", "/v1/sandboxes", {}, idempotency_key="k-1")
    idle.become("uid:1000", Role.USER)
    status, second = await idle.json("POST", "/v1/sandboxes", {}, idempotency_key="k-1")
    assert status == 202
    assert first["id"] != second["id"]


@pytest.mark.parametrize("key", ["", "x" * 201, "caf\xe9"])
async def test_a_key_that_cannot_be_kept_is_refused(idle, key):
    status, problem = await idle.json("POST", "/v1/sandboxes", {}, idempotency_key=key)
    assert (status, problem["code"]) == (400, "request/invalid")


async def test_an_unknown_path_is_told_with_its_method(idle):
    status, problem = await idle.json("GET", "/v1/sandboxen")
    assert (status, problem["code"]) == (404, "request/no-route")
    assert problem["request_id"]


async def test_a_query_or_body_where_none_belongs_is_refused(idle):
    assert (await idle.json("GET", "/v1/whoami?x=1"))[0] == 400
    assert (await idle.json("POST", "/v1/reload", {"x": 1}))[0] == 400


async def test_a_body_beyond_the_limit_is_refused_and_the_caller_sees_why(idle):
    status, _, body = await idle.request("POST", "/v1/jobs", b" " * (REQUEST_BYTES_MAX + 1))
    assert status == 413
    assert "REQUEST_BYTES_MAX" in json.loads(body)["message"]


async def test_a_task_of_10_mb_is_refused_with_the_limits_name(idle):
    status, problem = await idle.json("POST", "/v1/jobs", {"task": "x" * 10_000_000})
    assert (status, problem["code"]) == (413, "request/too-large")


async def test_invalid_utf8_is_refused(idle):
    status, _, body = await idle.request("POST", "/v1/jobs", b'{"task": "\xff"}')
    assert (status, json.loads(body)["code"]) == (400, "request/invalid")


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ({"profile": "yolo-ephemerl"}, "not-found", "yolo-ephemeral"),
        ({"template": "bse"}, "template/not-ready", "bse"),
        ({"backend": "fak"}, "backend/unknown", "fake"),
        ({"nmae": "x"}, "request/invalid", "name"),
    ],
)
async def test_what_is_misspelt_is_told_with_the_nearest_name(idle, body, code, word):
    status, problem = await idle.json("POST", "/v1/sandboxes", body)
    assert (status >= 400, problem["code"]) == (True, code)
    assert word in problem["message"]
    assert problem["remedy"]


async def test_two_living_sandboxes_cannot_have_one_name(idle):
    await idle.json("POST", "/v1/sandboxes", {"name": "one"})
    status, problem = await idle.json("POST", "/v1/sandboxes", {"name": "one"})
    assert (status, problem["code"]) == (409, "name/taken")


async def test_a_command_is_run_and_its_outcome_returned(served):
    _, made = await served.json("POST", "/v1/sandboxes", {})
    body = {"argv": ["sh", "-c", "cat; echo err >&2; exit 3"], "stdin_b64": base64.b64encode(b"hello").decode()}
    status, done = await served.json("POST", f"/v1/sandboxes/{made['id']}/exec", body)
    assert status == 200
    assert (done["exit_code"], base64.b64decode(done["stdout_b64"])) == (3, b"hello")
    assert base64.b64decode(done["stderr_b64"]) == b"err\n"


async def test_what_a_command_writes_beyond_the_limit_is_dropped_and_said(served):
    _, made = await served.json("POST", "/v1/sandboxes", {})
    body = {"argv": ["cat"], "stdin_b64": base64.b64encode(b"x" * 3_000_000).decode()}
    _, done = await served.json("POST", f"/v1/sandboxes/{made['id']}/exec", body)
    assert (done["exit_code"], done["truncated"], len(base64.b64decode(done["stdout_b64"]))) == (0, True, 1 << 20)


async def test_a_command_that_takes_too_long_is_ended_and_what_it_wrote_is_kept(served):
    _, made = await served.json("POST", "/v1/sandboxes", {})
    body = {"argv": ["sh", "-c", "echo begun; sleep 60"], "timeout_s": 0.5}
    _, done = await served.json("POST", f"/v1/sandboxes/{made['id']}/exec", body)
    assert (done["exit_code"], done["timed_out"], base64.b64decode(done["stdout_b64"])) == (None, True, b"begun\n")


async def test_a_job_goes_through_the_queue_and_its_end_can_be_followed(idle):
    status, made = await idle.json("POST", "/v1/jobs", {"task": "true", "env": {"TOKEN": "hunter2"}})
    assert (status, made["state"], made["queue_position"]) == (202, "queued", 1)
    assert made["env_names"] == ["TOKEN"]
    follower = asyncio.ensure_future(idle.request("GET", f"/v1/jobs/{made['id']}/output/stream"))
    await asyncio.sleep(0.2)
    status, cancelled = await idle.json("POST", f"/v1/jobs/{made['id']}/cancel")
    assert (status, cancelled["state"]) == (202, "cancelled")
    _, headers, stream = await asyncio.wait_for(follower, 5)
    assert headers["content-type"].startswith("text/event-stream")
    kinds = [line.removeprefix("event: ") for line in stream.decode().splitlines() if line.startswith("event: ")]
    assert (kinds[0], kinds[-1]) == ("state", "end")
    assert b"hunter2" not in stream


async def test_output_is_followed_from_any_offset_and_resumes_by_the_last_id(idle):
    _, made = await idle.json("POST", "/v1/jobs", {"task": "true"})
    idle.ground.outputs.append(made["id"], 0, b"0123456789")
    await idle.json("POST", f"/v1/jobs/{made['id']}/cancel")
    _, _, stream = await idle.request("GET", f"/v1/jobs/{made['id']}/output/stream", None, {"last-event-id": "4"})
    [output] = [line for line in stream.decode().splitlines() if "data_b64" in line]
    assert base64.b64decode(json.loads(output.removeprefix("data: "))["data_b64"]) == b"456789"
    _, headers, part = await idle.request("GET", f"/v1/jobs/{made['id']}/output?offset=8&limit=100")
    assert (part, headers["output-size"]) == (b"89", "10")


async def test_events_are_listed_followed_and_resumed(idle):
    _, made = await idle.json("POST", "/v1/sandboxes", {})
    _, page = await idle.json("GET", f"/v1/events?subject={made['id']}")
    assert [event["type"] for event in page["items"]] == ["sandbox.requested"]
    follower = asyncio.ensure_future(idle.request("GET", "/v1/events/stream?types=job.queued"))
    await asyncio.sleep(0.2)
    await idle.json("POST", "/v1/jobs", {"task": "true"})
    await asyncio.sleep(0.2)
    idle.services.events.close()
    _, _, stream = await asyncio.wait_for(follower, 5)
    assert stream.count(b"event: job.queued\n") == 1


async def test_an_upload_is_kept_under_its_digest_and_a_false_one_is_refused(idle):
    content = os.urandom(3_000_000)
    digest = hashlib.sha256(content).hexdigest()
    assert (await idle.request("HEAD", f"/v1/blobs/{digest}"))[0] == 404
    status, _, body = await idle.request("PUT", f"/v1/blobs/{digest}", content)
    assert (status, json.loads(body)["bytes_count"]) == (201, len(content))
    assert (await idle.request("HEAD", f"/v1/blobs/{digest}"))[0] == 200
    assert (await idle.request("PUT", f"/v1/blobs/{digest}", content))[0] == 201
    status, _, body = await idle.request("PUT", f"/v1/blobs/{'0' * 64}", content)
    assert (status, json.loads(body)["code"]) == (400, "request/invalid")
    assert not idle.ground.blobs.has("0" * 64)


async def test_an_upload_that_breaks_off_leaves_nothing(idle):
    digest = hashlib.sha256(b"x" * 100).hexdigest()
    _, writer = await asyncio.open_unix_connection(str(idle.socket))
    writer.write(f"PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n".encode() + b"x" * 50)
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.sleep(0.2)
    assert not idle.ground.blobs.has(digest)
    assert list((idle.ground.state_dir / "blobs" / "partial").iterdir()) == []


async def test_a_profile_is_validated_with_every_problem_and_its_place(idle):
    status, problem = await idle.json(
        "POST", "/v1/profiles/validate", {"text": "name: x\nagnt: y\n", "source": "p.yaml"}
    )
    assert (status, problem["code"]) == (400, "settings/invalid")
    assert "p.yaml:2" in problem["message"]


async def test_templates_profiles_agents_status_and_findings_are_told(idle):
    assert (await idle.json("GET", "/v1/templates/base"))[1]["state"] == "ready"
    assert "yolo-ephemeral" in {each["name"] for each in (await idle.json("GET", "/v1/profiles"))[1]["items"]}
    assert (await idle.json("GET", "/v1/profiles/yolo-ephemeral"))[1]["resources"]["cpus"] > 0
    assert {"shell", "claude"} <= {each["name"] for each in (await idle.json("GET", "/v1/agents"))[1]["items"]}
    assert (await idle.json("GET", "/v1/status"))[1]["facts"]["pid"] == os.getpid()
    assert (await idle.json("GET", "/v1/doctor"))[1]["items"]
    assert (await idle.json("GET", "/v1/openapi.json"))[1]["openapi"] == "3.1.0"
    assert (await idle.json("POST", "/v1/reload"))[1] == {"changed": True}


async def test_metrics_count_what_was_answered(idle):
    await idle.json("GET", "/v1/whoami")
    await idle.json("GET", "/v1/sandboxes/nobody")
    text = (await idle.request("GET", "/v1/metrics"))[2].decode()
    assert 'agentlab_requests_total{route="daemon.whoami",status="200"} 1.0' in text
    assert 'agentlab_requests_total{route="sandboxes.get",status="404"} 1.0' in text


async def test_an_unforeseen_failure_tells_the_request_and_not_its_inside(idle, caplog):
    idle.ground.outputs.close()
    idle.services.jobs._outputs = None
    _, made = await idle.json("POST", "/v1/jobs", {"task": "true"})
    status, problem = await idle.json("GET", f"/v1/jobs/{made['id']}/output")
    assert (status, problem["code"]) == (500, "internal")
    assert problem["request_id"] in problem["cause"]
    assert "NoneType" not in problem["message"].replace("AttributeError", "")
    assert any(record.exc_info for record in caplog.records)


async def test_a_stop_ends_streams_and_long_polls_and_removes_the_socket(idle):
    _, made = await idle.json("POST", "/v1/sandboxes", {})
    poll = asyncio.ensure_future(idle.json("GET", f"/v1/sandboxes/{made['id']}?wait_s=60"))
    stream = asyncio.ensure_future(idle.request("GET", "/v1/events/stream"))
    await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        await idle.server.stop()
        status, problem = await poll
        assert (status, problem["code"]) == (503, "daemon/draining")
        assert (await stream)[0] == 200
    assert not idle.socket.exists()


async def test_a_second_daemon_cannot_take_the_socket(idle, tmp_path: Path):
    from agentlab.api.listener import listen

    with pytest.raises(AddressInUse):
        listen(idle.socket)


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000, b"GET /\xff HTTP/1.1\r\n\r\n"]
)
async def test_garbage_on_the_socket_does_no_harm(idle, garbage):
    reader, writer = await asyncio.open_unix_connection(str(idle.socket))
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    assert (await idle.json("GET", "/v1/whoami"))[0] == 200
