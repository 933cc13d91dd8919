"""The simulated Proxmox VE over real sockets: TLS, habits of closing, what it refuses to read."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from agentlab.testing.proxmox.faults import Fault
from agentlab.testing.proxmox.images import small_qcow2
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.server import ProxmoxSim

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sim() -> AsyncIterator[ProxmoxSim]:
    async with ProxmoxSim(version="9.2", nodes=("pve1",), seed=0, latency=Latency.none(), idle_s=0.3) as sim:
        sim.add_template(9000)
        yield sim


class Raw:
    """A connection that shows every byte."""

    def __init__(self, sim: ProxmoxSim, token: str) -> None:
        self._sim, self._token = sim, token

    async def __aenter__(self) -> Raw:
        context = ssl.create_default_context(cadata=self._sim.ca_pem)
        port = int(self._sim.url.rpartition(":")[2])
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, line: str, *headers: str, body: bytes = b"") -> tuple[str, dict[str, str], bytes]:
        """Status line, headers and body of the answer."""
        head = [f"{line} HTTP/1.1", "Host: pve1", f"Authorization: PVEAPIToken={self._token}", *headers]
        self.writer.write("\r\n".join([*head, "", ""]).encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = dict(each.lower().split(": ", 1) for each in lines[1:] if each)
        return lines[0], found, await self.reader.readexactly(int(found["content-length"]))

    async def ended(self) -> bool:
        """Whether the other side has closed."""
        return await asyncio.wait_for(self.reader.read(1), 5) == b""


async def test_a_client_that_trusts_the_authority_reads_the_version(sim: ProxmoxSim) -> None:
    context = ssl.create_default_context(cadata=sim.ca_pem)
    async with httpx2.AsyncClient(base_url=sim.url, verify=context) as client:
        found = await client.get("/api2/json/version", headers={"Authorization": f"PVEAPIToken={sim.token()}"})

    assert found.json() == {"data": {"release": "9.2", "repoid": "14a22df3", "version": "9.2.11"}}


async def test_the_fingerprint_is_that_of_the_certificate_and_of_the_list_of_nodes(sim: ProxmoxSim) -> None:
    import hashlib

    async with Raw(sim, sim.token()) as raw:
        der = raw.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        _, _, body = await raw.ask("GET /api2/json/nodes")

    assert hashlib.sha256(der).hexdigest().upper() == sim.fingerprint.replace(":", "")
    assert json.loads(body)["data"][0]["ssl_fingerprint"] == sim.fingerprint


async def test_an_administrator_logs_in_and_needs_the_token_against_forgery_to_write(sim: ProxmoxSim) -> None:
    user, password = sim.administrator
    context = ssl.create_default_context(cadata=sim.ca_pem)
    async with httpx2.AsyncClient(base_url=f"{sim.url}/api2/json", verify=context) as client:
        ticket = (await client.post("/access/ticket", data={"username": user, "password": password})).json()["data"]
        cookie = {"Cookie": f"PVEAuthCookie={ticket['ticket']}"}
        without = await client.post("/pools", data={"poolid": "x"}, headers=cookie)
        headers = cookie | {"CSRFPreventionToken": ticket["CSRFPreventionToken"]}
        with_token = await client.post("/pools", data={"poolid": "x"}, headers=headers)

    assert (without.status_code, without.reason_phrase) == (401, "Permission denied - invalid csrf token")
    assert with_token.status_code == 200


async def test_a_connection_is_closed_after_every_refusal(sim: ProxmoxSim) -> None:
    async with Raw(sim, sim.token()) as raw:
        line, headers, _ = await raw.ask("GET /api2/json/nodes/pve1/qemu/999/config")

        assert line == "HTTP/1.1 403 Permission check failed (/vms/999, VM.Audit)"
        assert headers["connection"] == "close"
        assert await raw.ended()


async def test_a_connection_is_closed_after_a_hundred_requests(sim: ProxmoxSim) -> None:
    async with Raw(sim, sim.token()) as raw:
        answers = [await raw.ask("GET /api2/json/version") for _ in range(100)]

        assert [headers["connection"] for _, headers, _ in answers].count("close") == 1
        assert answers[-1][1]["connection"] == "close"
        assert await raw.ended()


async def test_an_idle_connection_is_closed(sim: ProxmoxSim) -> None:
    async with Raw(sim, sim.token()) as raw:
        await raw.ask("GET /api2/json/version")

        assert await raw.ended()


@pytest.mark.parametrize(
    ("line", "headers", "body", "status"),
    [
        ("HEAD /api2/json/version", (), b"", 501),
        ("DELETE /api2/json/nodes/pve1/qemu/101", ("Content-Length: 7",), b"purge=1", 501),
        ("POST /api2/json/pools", ("Transfer-Encoding: chunked",), b"3\r\na=b\r\n0\r\n\r\n", 501),
        ("POST /api2/json/pools", ("Content-Length: 600000",), b"", 501),
        ("GET /api2/json/nonexist", (), b"", 501),
    ],
    ids=["HEAD", "DELETE with a body", "chunked", "too large", "unknown path"],
)
async def test_what_the_server_does_not_do_is_501(
    sim: ProxmoxSim, line: str, headers: tuple[str, ...], body: bytes, status: int
) -> None:
    async with Raw(sim, sim.token()) as raw:
        found, _, _ = await raw.ask(line, *headers, body=body)

    assert found.split(" ")[1] == str(status)


async def test_a_value_with_a_bare_equals_sign_is_cut(sim: ProxmoxSim) -> None:
    sim.cluster.access.roles["AgentLabVms"] = sim.setup.privileges
    token = sim.token()
    path = "/api2/json/nodes/pve1/qemu/9000/config"
    sim.cluster.access.set_acl("/vms/9000", "user", "agentlab@pve", "Administrator", 1)
    sim.cluster.access.set_acl("/vms/9000", "token", "agentlab@pve!sandboxes", "Administrator", 1)
    kind = "Content-Type: application/x-www-form-urlencoded"
    async with Raw(sim, token) as raw:
        body = b"boot=order=scsi0"
        line, _, said = await raw.ask(f"PUT {path}", kind, f"Content-Length: {len(body)}", body=body)
    async with Raw(sim, token) as raw:
        body = json.dumps({"boot": "order=scsi0"}).encode()
        json_line, _, _ = await raw.ask(
            f"PUT {path}", "Content-Type: application/json", f"Content-Length: {len(body)}", body=body
        )

    assert "400 Parameter verification failed." in line
    assert "boot.legacy: value does not match the regex pattern" in json.loads(said)["errors"]["boot"]
    assert json_line == "HTTP/1.1 200 OK"


async def test_an_uploaded_image_is_a_file_and_can_be_imported(tmp_path: Path) -> None:
    image = small_qcow2(64 << 20) + bytes(5 << 20)  # large enough to go through a file
    async with ProxmoxSim(folder=tmp_path) as sim:
        token = sim.token()
        context = ssl.create_default_context(cadata=sim.ca_pem)
        headers = {"Authorization": f"PVEAPIToken={token}"}
        async with httpx2.AsyncClient(base_url=f"{sim.url}/api2/json", verify=context, headers=headers) as client:
            files = {"content": (None, "import"), "filename": ("x.qcow2", image)}
            await client.post("/nodes/pve1/storage/local/upload", files=files)
            await asyncio.gather(*(task.ended.wait() for task in sim.cluster.tasks.tasks.values()))
            made = {"vmid": "101", "pool": "agentlab", "scsi0": "local:0,import-from=local:import/x.qcow2"}
            await client.post("/nodes/pve1/qemu", data=made)
            await asyncio.gather(*(task.ended.wait() for task in sim.cluster.tasks.tasks.values()))
            config = (await client.get("/nodes/pve1/qemu/101/config")).json()["data"]

        assert (tmp_path / "pve1" / "import" / "x.qcow2").read_bytes() == image
        assert config["scsi0"] == "local:101/vm-101-disk-0.qcow2,size=64M"
        assert (tmp_path / "pve1" / "images" / "101" / "vm-101-disk-0.qcow2").is_file()


async def test_fields_of_an_upload_in_another_order_are_refused_without_a_word(sim: ProxmoxSim) -> None:
    context = ssl.create_default_context(cadata=sim.ca_pem)
    headers = {"Authorization": f"PVEAPIToken={sim.token()}"}
    async with httpx2.AsyncClient(base_url=f"{sim.url}/api2/json", verify=context, headers=headers) as client:
        files = {"filename": ("x.iso", b"x"), "content": (None, "iso")}
        found = await client.post("/nodes/pve1/storage/local/upload", files=files)

    assert (found.status_code, found.reason_phrase, found.text) == (400, "Bad Request", "")


async def test_a_lost_answer_is_a_closed_connection(sim: ProxmoxSim) -> None:
    sim.cluster.faults.plan("GET", "/version$", Fault.REPLY_LOST)
    context = ssl.create_default_context(cadata=sim.ca_pem)
    async with httpx2.AsyncClient(base_url=sim.url, verify=context) as client:
        with pytest.raises(httpx2.TransportError):
            await client.get("/api2/json/version", headers={"Authorization": f"PVEAPIToken={sim.token()}"})

    assert sim.cluster.calls == [("GET", "/version")]


async def test_an_expired_certificate_is_refused_by_a_client_that_looks(sim: ProxmoxSim) -> None:
    before = sim.fingerprint
    await sim.change_certificate(expired=True)
    context = ssl.create_default_context(cadata=sim.ca_pem)

    async with httpx2.AsyncClient(base_url=sim.url, verify=context) as client:
        with pytest.raises(httpx2.ConnectError, match="expired"):
            await client.get("/api2/json/version")

    assert sim.fingerprint != before


async def test_another_node_of_the_cluster_answers_when_the_first_is_gone() -> None:
    async with ProxmoxSim(nodes=("pve1", "pve2")) as sim:
        sim.cluster.node_offline("pve1")
        context = ssl.create_default_context(cadata=sim.ca_pem)
        headers = {"Authorization": f"PVEAPIToken={sim.token()}"}
        async with httpx2.AsyncClient(verify=context, headers=headers) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get(f"{sim.endpoints['pve1']}/api2/json/version")
            found = await client.get(f"{sim.endpoints['pve2']}/api2/json/nodes")

    assert [(row["node"], row["status"]) for row in found.json()["data"]] == [("pve1", "offline"), ("pve2", "online")]
