"""Sandboxes: their life, their walls, their leases, on real containers."""

from __future__ import annotations

import time

import pytest
from tests.e2e.support import Lab, until

from agentlab.errors import AgentLabError, Invalid, NameTaken, NotFound, WrongState

pytestmark = [pytest.mark.root]


def test_a_sandbox_goes_through_its_whole_life(each_lab: Lab) -> None:
    sandbox, call = each_lab.sandbox(name="life"), each_lab.client.call
    assert each_lab.execute(sandbox, "sh", "-c", "echo kept > /root/f; cat /root/f") == (0, "kept\n")

    call("sandboxes.pause", sandbox=sandbox)
    each_lab.settled(sandbox, "paused")
    call("sandboxes.resume", sandbox=sandbox)
    each_lab.settled(sandbox, "ready")
    call("sandboxes.stop", sandbox=sandbox)
    each_lab.settled(sandbox, "stopped")
    call("sandboxes.start", sandbox=sandbox)
    each_lab.settled(sandbox, "ready")

    assert each_lab.execute(sandbox, "cat", "/root/f") == (0, "kept\n")
    call("sandboxes.destroy", sandbox="life")
    each_lab.settled(sandbox, "destroyed")
    assert call("sandboxes.destroy", sandbox=sandbox)["state"] == "destroyed"


def test_a_sandbox_is_found_by_name_and_by_unique_prefix(each_lab: Lab) -> None:
    first, second = each_lab.sandbox(name="first"), each_lab.sandbox()

    assert each_lab.client.call("sandboxes.get", sandbox="first")["id"] == first
    assert each_lab.client.call("sandboxes.get", sandbox=second[:9])["id"] == second
    with pytest.raises(NotFound, match="first"):
        each_lab.client.call("sandboxes.get", sandbox="frist")
    with pytest.raises(NameTaken):
        each_lab.client.call("sandboxes.create", name="first")
    for each in (first, second):
        each_lab.client.call("sandboxes.destroy", sandbox=each)


def test_steps_tell_what_was_done_with_their_times(each_lab: Lab) -> None:
    sandbox = each_lab.sandbox()

    steps = each_lab.client.call("sandboxes.steps", sandbox=sandbox)["items"]

    assert [each["step"] for each in steps] == ["reserve", "create", "arm", "policy", "start"]
    assert all(each["outcome"] == "done" for each in steps)
    each_lab.client.call("sandboxes.destroy", sandbox=sandbox)


def test_an_ended_lease_destroys_the_sandbox_and_says_so(each_lab: Lab) -> None:
    sandbox = each_lab.sandbox(ttl_s=2)

    until(lambda: each_lab.client.call("sandboxes.get", sandbox=sandbox)["state"] == "destroyed", "the lease's end", 20)

    types = [each["type"] for each in each_lab.events(subject=sandbox)]
    assert "lease.ended" in types
    assert "sandbox.destroyed" in types


def test_a_renewed_lease_reaches_further_and_is_never_shortened(each_lab: Lab) -> None:
    sandbox = each_lab.sandbox(ttl_s=100)
    before = each_lab.client.call("sandboxes.get", sandbox=sandbox)["lease_until"]

    longer = each_lab.client.call("sandboxes.renew", sandbox=sandbox, ttl_s=5000)["lease_until"]
    same = each_lab.client.call("sandboxes.renew", sandbox=sandbox, ttl_s=10)["lease_until"]

    assert before < longer == same
    each_lab.client.call("sandboxes.destroy", sandbox=sandbox)


def test_a_lease_that_ends_soon_is_announced_as_an_event(each_lab: Lab) -> None:
    sandbox = each_lab.sandbox(ttl_s=62)

    until(lambda: "lease.warned" in [each["type"] for each in each_lab.events(subject=sandbox)], "the warning", 15)

    each_lab.client.call("sandboxes.destroy", sandbox=sandbox)


def test_p8_a_retried_request_with_its_key_makes_one_sandbox(each_lab: Lab) -> None:
    import http.client
    import json
    import socket

    def post() -> str:
        connection = http.client.HTTPConnection("agentlab")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(each_lab.daemon.socket))
        headers = {"Idempotency-Key": "retry-me-1", "Content-Type": "application/json"}
        connection.request("POST", "/v1/sandboxes", body='{"name": "once"}', headers=headers)
        found: str = json.loads(connection.getresponse().read())["id"]
        return found

    first, second = post(), post()

    assert first == second
    each_lab.settled(first, "ready")
    each_lab.client.call("sandboxes.destroy", sandbox=first)


def test_a_sandbox_without_network_has_only_loopback(limited_lab: Lab) -> None:
    sandbox = limited_lab.sandbox(network="off")

    status, out = limited_lab.execute(sandbox, "ls", "/sys/class/net")

    assert (status, out.split()) == (0, ["lo"])
    limited_lab.client.call("sandboxes.destroy", sandbox=sandbox)


def test_two_sandboxes_have_different_addresses_ids_and_names(limited_lab: Lab) -> None:
    one, two = limited_lab.sandbox(), limited_lab.sandbox()
    script = "cat /sys/class/net/eth0/address; hostname; ip -4 -o addr show eth0"

    first, second = (limited_lab.execute(each, "sh", "-c", script)[1].split("\n") for each in (one, two))

    assert all(mine != other for mine, other in zip(first[:3], second[:3], strict=True))
    for each in (one, two):
        limited_lab.client.call("sandboxes.destroy", sandbox=each)


def test_two_containers_have_different_users_of_the_host(each_lab: Lab) -> None:
    if each_lab.backend != "oci":
        pytest.skip("a virtual machine's users are its own kernel's")
    one, two = each_lab.sandbox(), each_lab.sandbox()

    first, second = (each_lab.execute(each, "cat", "/proc/self/uid_map")[1] for each in (one, two))

    assert first != second


def test_a_command_in_a_stopped_sandbox_is_refused_with_its_state(each_lab: Lab) -> None:
    sandbox = each_lab.sandbox()
    each_lab.client.call("sandboxes.stop", sandbox=sandbox)
    each_lab.settled(sandbox, "stopped")

    with pytest.raises(WrongState, match="stopped"):
        each_lab.execute(sandbox, "true")

    each_lab.client.call("sandboxes.destroy", sandbox=sandbox)


def test_limits_below_the_minimum_and_unknown_fields_are_refused(each_lab: Lab) -> None:
    with pytest.raises(AgentLabError, match="memory"):
        each_lab.client.call("sandboxes.create", memory_bytes=1)
    with pytest.raises(Invalid):
        each_lab.client.call("sandboxes.create", ttl_s=10**9)
    with pytest.raises(NotFound):
        each_lab.client.call("sandboxes.create", profile="nothing-like-this")


def test_p3_a_sandbox_that_cannot_be_made_fails_with_step_cause_and_remedy(lab: Lab) -> None:
    """The template's files vanish: create or arm must fail, and say so everywhere."""
    templates = lab.folder / "state" / "templates"
    templates.unlink()
    templates.mkdir()

    row = lab.client.call("sandboxes.create")
    until(lambda: lab.client.call("sandboxes.get", sandbox=row["id"])["state"] == "failed", "the failure", 30)

    failed = lab.client.call("sandboxes.get", sandbox=row["id"])
    assert failed["failure"]["step"]
    assert failed["failure"]["cause"]
    assert failed["failure"]["remedy"]
    kinds = {each["type"] for each in lab.events(subject=row["id"])}
    assert {"step.failed", "sandbox.failed"} <= kinds


def test_p6_a_flushed_rule_set_is_noticed_and_put_back(lab: Lab) -> None:
    import subprocess

    sandbox = lab.sandbox()
    installation = lab.daemon.installation()
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    ours = [line.removeprefix("table ") for line in tables.splitlines() if installation in line]
    assert ours

    for table in ours:
        subprocess.run(["nft", "delete", "table", *table.split()], check=True)

    until(lambda: "network.policy-broken" in [each["type"] for each in lab.events()], "the alarm", 20)
    time.sleep(1)
    again = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert all(table in again for table in ours)
    assert lab.execute(sandbox, "true")[0] == 0
