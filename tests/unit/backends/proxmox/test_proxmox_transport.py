"""Calls over the wire, against a real HTTPS server."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.backends.proxmox.api_server import LOST, Answer, ApiServer, Identity, Received, api_server, data
from tests.unit.backends.proxmox.conftest import Identities

from agentlab.backends.proxmox.answers import Distrusted, NoAnswer, ProxmoxError
from agentlab.backends.proxmox.certificate import Endpoint, Trust
from agentlab.backends.proxmox.lanes import CALLS_PER_NODE_MAX, CallClass
from agentlab.backends.proxmox.transport import CALL_S_MAX, Token, Transport
from agentlab.backends.proxmox.upload import Upload
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SeededEntropy
from agentlab.base.secret import Secret

pytestmark = pytest.mark.anyio

ALLOWED = {"/storage/local": {"Datastore.AllocateTemplate": 1}}
TOKEN = Token(id="agentlab@pve!daemon", secret=Secret("5ac2e7a1-very-secret"))


def pin(*identities: Identity) -> Trust:
    return Trust(fingerprints=frozenset(each.fingerprint for each in identities))


@asynccontextmanager
async def transport(trust: Trust, *servers: ApiServer | Endpoint, read_s: float = 5.0) -> AsyncIterator[Transport]:
    endpoints = [each.endpoint if isinstance(each, ApiServer) else each for each in servers]
    limits = {**CALL_S_MAX, CallClass.READ: read_s, CallClass.WRITE: read_s}
    made = Transport(endpoints, trust, TOKEN, clock=SystemClock(), entropy=SeededEntropy(1), call_s_max=limits)
    try:
        yield made
    finally:
        await made.close()


async def dead_endpoint(identity: Identity) -> Endpoint:
    async with api_server(identity) as server:
        return server.endpoint


class Failing:
    """Gives `first`, one a call, and then what is fine."""

    def __init__(self, *first: Answer) -> None:
        self._first = list(first)

    def __call__(self, _: Received) -> Answer:
        return self._first.pop(0) if self._first else data("fine")


async def test_a_call_bears_the_token_and_its_parameters_and_returns_the_data(identities: Identities) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = lambda _: data({"vmid": "100"})

        answer = await api.call("POST", "/nodes/pve1/qemu/9000/clone", {"newid": 100, "full": False})

    [request] = server.received
    assert answer == {"vmid": "100"}
    assert request.target == "/api2/json/nodes/pve1/qemu/9000/clone"
    assert request.headers["authorization"] == "PVEAPIToken=agentlab@pve!daemon=5ac2e7a1-very-secret"
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"newid": 100, "full": 0}


async def test_parameters_of_get_and_delete_go_into_the_query_and_quoted_parts_stay_quoted(
    identities: Identities,
) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        await api.call("DELETE", "/storage/content/local:import%2Fx", {"purge": True})
        await api.call("GET", "/nodes/pve1/tasks/UPID:a%21b:/log", {"limit": 50})
        await api.call("POST", "/nodes/pve1/qemu/100/status/start")

    deleted, got, posted = server.received
    assert (deleted.target, deleted.body) == ("/api2/json/storage/content/local:import%2Fx?purge=1", b"")
    assert got.target == "/api2/json/nodes/pve1/tasks/UPID:a%21b:/log?limit=50"
    assert (posted.body, posted.headers.get("content-length"), "content-type" in posted.headers) == (b"", "0", False)


async def test_a_certificate_that_is_not_the_pinned_one_gets_no_header_and_both_are_shown(
    identities: Identities,
) -> None:
    async with api_server(identities.renewed) as server, transport(pin(identities.node), server) as api:
        with pytest.raises(Distrusted) as caught:
            await api.call("GET", "/version")

    assert server.received == []
    assert identities.node.fingerprint in str(caught.value)
    assert identities.renewed.fingerprint in str(caught.value)


async def test_a_certificate_that_changes_meanwhile_is_refused_in_the_handshake(identities: Identities) -> None:
    async with transport(pin(identities.node), await dead_endpoint(identities.node)) as api:
        endpoint = next(iter(api._connections))
        async with api_server(identities.node, port=endpoint.port):
            assert await api.call("GET", "/version") == "fine"
        async with api_server(identities.renewed, port=endpoint.port) as changed:
            with pytest.raises(Distrusted, match=identities.renewed.fingerprint):
                await api.call("GET", "/version")

            assert changed.received == []
        async with api_server(identities.node, port=endpoint.port):
            assert await api.call("GET", "/version") == "fine"


async def test_one_of_several_pins_is_enough(identities: Identities) -> None:
    async with (
        api_server(identities.renewed) as server,
        transport(pin(identities.node, identities.renewed), server) as api,
    ):
        assert await api.call("GET", "/version") == "fine"


async def test_a_clusters_authority_vouches_for_its_members_by_name(identities: Identities) -> None:
    trust = Trust(ca_pem=identities.authority.pem)
    async with api_server(identities.member, name="pve2.example") as server, transport(trust, server) as api:
        assert await api.call("GET", "/version") == "fine"


async def test_a_member_under_another_name_is_refused(identities: Identities) -> None:
    trust = Trust(ca_pem=identities.authority.pem)
    async with api_server(identities.member, name="pve9.example") as server, transport(trust, server) as api:
        with pytest.raises(Distrusted, match=r"not valid for 'pve9\.example'"):
            await api.call("GET", "/version")

    assert server.received == []


async def test_an_authority_does_not_vouch_for_strangers(identities: Identities) -> None:
    trust = Trust(ca_pem=identities.authority.pem)
    async with api_server(identities.node, name="pve1.example") as server, transport(trust, server) as api:
        with pytest.raises(Distrusted, match="self-signed"):
            await api.call("GET", "/version")

    assert server.received == []


async def test_an_expired_certificate_is_refused_even_if_it_is_pinned(identities: Identities) -> None:
    for trust in (pin(identities.expired), Trust(ca_pem=identities.authority.pem)):
        async with api_server(identities.expired, name="pve3.example") as server, transport(trust, server) as api:
            with pytest.raises(Distrusted, match="expired"):
                await api.call("GET", "/version")

        assert server.received == []


@pytest.mark.parametrize("trust", [{}, {"system": True, "ca_pem": "x"}])
def test_trust_is_exactly_one_thing(trust: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one of"):
        Trust(**trust)  # type: ignore[arg-type]


async def test_a_dead_endpoint_is_passed_over_by_every_method_and_then_put_aside(identities: Identities) -> None:
    dead = await dead_endpoint(identities.node)
    async with api_server(identities.node) as server, transport(pin(identities.node), dead, server) as api:
        await api.call("POST", "/nodes/pve1/qemu", {"vmid": 100})
        sent = api.calls_sent
        await api.call("GET", "/version")

        assert api.calls_sent - sent == 1
        assert "refused" in api.troubles[dead].lower() or "connect" in api.troubles[dead].lower()
    assert len(server.received) == 2


async def test_when_no_endpoint_is_there_the_call_was_certainly_not_sent(identities: Identities) -> None:
    async with transport(pin(identities.node), await dead_endpoint(identities.node)) as api:
        with pytest.raises(NoAnswer) as caught:
            await api.call("POST", "/nodes/pve1/qemu", {"vmid": 100})

    assert not caught.value.sent


async def test_of_several_endpoints_that_fail_the_untrusted_one_is_told(identities: Identities) -> None:
    dead = await dead_endpoint(identities.node)
    async with api_server(identities.renewed) as server, transport(pin(identities.node), server, dead) as api:
        with pytest.raises(Distrusted):
            await api.call("GET", "/version")


async def test_connections_are_kept_alive_for_calls_in_a_row(identities: Identities) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        for _ in range(5):
            await api.call("GET", "/version")

    assert len({each.connection for each in server.received}) == 1


async def test_an_error_closes_its_connection_and_the_next_call_has_another(identities: Identities) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = Failing(Answer(status=500, reason="VM 310 not running", body=b'{"data":null}'))
        with pytest.raises(ProxmoxError):
            await api.call("POST", "/nodes/pve1/qemu/310/status/reset")

        assert await api.call("POST", "/nodes/pve1/qemu/310/status/start") == "fine"

    first, second = server.received
    assert first.connection != second.connection


@pytest.mark.parametrize("failure", [LOST, Answer(status=595, reason="Connection refused", body=b"")])
async def test_a_get_is_tried_again_after_a_loss(identities: Identities, failure: Answer) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = Failing(failure)

        assert await api.call("GET", "/cluster/resources") == "fine"

    assert len(server.received) == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("failure", [LOST, Answer(status=596, reason="Broken pipe", body=b"")])
async def test_nothing_else_is_ever_tried_again(identities: Identities, method: str, failure: Answer) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server, server) as api:
        server.handler = Failing(failure)

        with pytest.raises(ProxmoxError) as caught:
            await api.call(method, "/nodes/pve1/qemu/100")

    assert len(server.received) == 1
    assert not isinstance(caught.value, NoAnswer) or caught.value.sent


async def test_a_lost_post_does_not_go_to_another_endpoint(identities: Identities) -> None:
    async with (
        api_server(identities.node) as first,
        api_server(identities.node) as second,
        transport(pin(identities.node), first, second) as api,
    ):
        first.handler = Failing(LOST)
        with pytest.raises(NoAnswer):
            await api.call("POST", "/nodes/pve1/qemu/100/status/start")

        assert await api.call("POST", "/nodes/pve1/qemu/100/status/start") == "fine"

    assert (len(first.received), len(second.received)) == (1, 1)


async def test_a_server_that_stays_silent_is_given_up_after_the_limit_of_the_calls_class(
    identities: Identities,
) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server, read_s=0.2) as api:
        server.handler = lambda _: Answer(after_s=2.0)
        began = time.monotonic()

        with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s") as caught:
            await api.call("POST", "/nodes/pve1/qemu/100/status/start")

    assert caught.value.sent
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(status=401, reason="Authentication failed!", body=b""), "Authentication failed!"),
        (Answer(status=596, reason="Broken pipe", body=b""), "Broken pipe"),
        (Answer(status=501, reason="Unexpected content", body=b"plain words"), "plain words"),
        (Answer(status=500, reason="größer als", body=b""), "größer als"),
        (Answer(status=200, reason="OK", body=b"<html>"), "its answer could not be read: <html>"),
    ],
)
async def test_an_answer_without_json_is_an_error_in_the_servers_words(
    identities: Identities, answer: Answer, words: str
) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = lambda _: answer

        with pytest.raises(ProxmoxError) as caught:
            await api.call("POST", "/access/x")

    assert caught.value.words == words
    assert caught.value.status == answer.status


async def test_an_error_keeps_what_was_said_of_each_parameter(identities: Identities) -> None:
    body = {"data": None, "errors": {"memory": "not a number\n", "bogus": "unknown"}, "message": "Bad parameters.\n"}
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = lambda _: Answer(status=400, reason="Bad parameters.", body=json.dumps(body).encode())

        with pytest.raises(ProxmoxError) as caught:
            await api.call("POST", "/nodes/pve1/qemu", {"memory": "abc", "password": Secret("hunter2hunter2")})

    assert str(caught.value) == "POST /nodes/pve1/qemu: 400 Bad parameters. bogus: unknown; memory: not a number"
    assert caught.value.errors == {"memory": "not a number\n", "bogus": "unknown"}


async def test_the_token_is_in_no_log_and_no_error(identities: Identities, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with api_server(identities.node) as server, transport(pin(identities.node), server, read_s=0.2) as api:
        server.handler = Failing(LOST, Answer(status=500, reason="no"))
        errors = []
        for _ in range(2):
            with pytest.raises(ProxmoxError) as caught:
                await api.call("POST", "/x", {"a": Secret("other-secret")})
            errors.append(repr(caught.value) + str(caught.value))
        await api.call("GET", "/version")

    said = caplog.text + "".join(str(vars(each)) for each in caplog.records) + "".join(errors) + repr(TOKEN)
    assert "5ac2e7a1-very-secret" not in said
    assert "other-secret" not in said


async def test_a_node_never_has_more_calls_at_once_than_the_limit(identities: Identities) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = lambda _: Answer(after_s=0.02)

        await asyncio.gather(*(api.call("GET", f"/nodes/pve1/qemu/{each}/config") for each in range(100, 140)))

    assert server.in_flight_max == CALLS_PER_NODE_MAX
    assert len(server.received) == 40


async def test_agent_calls_leave_room_for_others(identities: Identities) -> None:
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = lambda each: Answer(after_s=0.5 if "agent" in each.target else 0.0)
        pings = [asyncio.create_task(api.call("POST", f"/nodes/pve1/qemu/{n}/agent/ping")) for n in range(100, 104)]
        await asyncio.sleep(0.1)
        began = time.monotonic()

        await api.call("GET", "/nodes/pve1/status")

        assert time.monotonic() - began < 0.3
        await asyncio.gather(*pings)


async def test_an_upload_has_its_fields_in_the_fixed_order_and_a_known_length(
    identities: Identities, tmp_path: Path
) -> None:
    file = tmp_path / "image.qcow2"
    file.write_bytes(bytes(range(256)) * 10_000)
    upload = Upload(file=file, name="base-1.qcow2", content="import", sha256="ab" * 32, boundary="edge")
    told: list[tuple[int, int]] = []
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = lambda each: data("UPID:x" if each.method == "POST" else ALLOWED)

        assert await api.upload("pve1", "local", upload, lambda *both: told.append(both)) == "UPID:x"

    request = server.received[-1]
    head, body = request.body[:600], request.body
    order = [
        head.index(f'name="{each}"'.encode()) for each in ("content", "checksum-algorithm", "checksum", "filename")
    ]
    assert order == sorted(order)
    assert request.target == "/api2/json/nodes/pve1/storage/local/upload"
    assert request.headers["content-type"] == "multipart/form-data; boundary=edge"
    assert "transfer-encoding" not in request.headers
    assert file.read_bytes() in body
    assert told[-1] == (2_560_000, 2_560_000)


async def test_an_upload_that_is_not_allowed_is_refused_before_the_file_is_sent(
    identities: Identities, tmp_path: Path
) -> None:
    file = tmp_path / "image.qcow2"
    file.write_bytes(b"x")
    upload = Upload(file=file, name="a.qcow2", content="import", boundary="edge")
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.handler = lambda _: data({"/storage/local": {"Datastore.Audit": 1}})

        with pytest.raises(ProxmoxError, match=r"\(/storage/local, Datastore\.AllocateTemplate\)") as caught:
            await api.upload("pve1", "local", upload)

    assert caught.value.status == 403
    assert [each.target for each in server.received] == ["/api2/json/access/permissions?path=%2Fstorage%2Flocal"]


@pytest.mark.parametrize("hasty", [False, True])
async def test_an_upload_that_is_refused_meanwhile_ends_and_is_not_sent_again(
    identities: Identities, tmp_path: Path, hasty: bool
) -> None:
    file = tmp_path / "image.qcow2"
    file.write_bytes(b"x" * 8_000_000)
    upload = Upload(file=file, name="a.qcow2", content="import", boundary="edge")
    async with api_server(identities.node) as server, transport(pin(identities.node), server) as api:
        server.hasty = hasty
        refused = Answer(status=500, reason="storage 'local' does not support 'import' content", body=b"")
        server.handler = lambda each: refused if each.method == "POST" else data(ALLOWED)

        with pytest.raises(ProxmoxError, match=r"connection broke|does not support"):
            await api.upload("pve1", "local", upload)

    assert [each.method for each in server.received] == ["GET", "POST"]


@pytest.mark.parametrize("name", ['a"b.iso', "../x.iso", "ä.iso", ""])
def test_a_name_that_could_end_the_upload_early_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        _ = Upload(file=tmp_path, name=name, content="iso", boundary="edge").head


@pytest.mark.parametrize("text", ["root@pam", "root!x", "a b@pve!x", "root@pam!x=secret"])
def test_what_is_no_token_is_refused_before_anything_is_sent(text: str) -> None:
    with pytest.raises(ValueError, match="user@realm!name"):
        Token(id=text, secret=Secret("x"))
