"""Set-up by an administrator, against the simulated Proxmox VE: what it makes, keeps, refuses and says."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from tests.contract.proxmox_setup import GRANTEE, Bench, Scripted, bench

from agentlab.backends.proxmox.certificate import Trust
from agentlab.backends.proxmox.privileges import ROLES, Where, role_privileges
from agentlab.backends.proxmox.setup_steps import Call
from agentlab.errors import PermissionMissing, SetupFailed
from agentlab.testing.proxmox.faults import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["8.4", "9.2"])
async def on(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Both versions."""
    async with bench(tmp_path, request.param) as found:
        yield found


@pytest.fixture
async def on9(tmp_path: Path) -> AsyncIterator[Bench]:
    """The newest version."""
    async with bench(tmp_path) as found:
        yield found


# What it makes


async def test_a_fresh_cluster_is_set_up_and_the_token_lacks_nothing(on: Bench) -> None:
    outcome = await on.set_up()

    access = on.sim.cluster.access
    assert outcome.lacks == []
    assert outcome.good
    assert outcome.done == len(outcome.plan.steps) > 10
    assert {name: access.roles[name] for name in ROLES.values() if name in access.roles} == {
        ROLES[where]: frozenset(role_privileges(where, on.sim.cluster.major)) for where in Where if GRANTEE.paths(where)
    }
    assert access.users["agentlab@pve"].password is None
    assert access.users["agentlab@pve"].tokens["daemon"].privsep == 1


async def test_the_token_goes_to_a_file_that_nobody_else_may_read(on9: Bench) -> None:
    await on9.set_up()

    file = on9.folder / "proxmox.token"
    secret = on9.sim.cluster.access.users["agentlab@pve"].tokens["daemon"].secret
    assert file.read_text() == f"agentlab@pve!daemon={secret}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not any(secret in line for line in on9.person.heard)


async def test_a_second_run_changes_nothing_and_says_what_is_right(on: Bench) -> None:
    await on.set_up()
    before = on.written()

    outcome = await on.set_up()

    assert on.written() == before
    assert outcome.plan.steps == ()
    assert outcome.lacks == []
    assert "  ✓ the token agentlab@pve!daemon is there, and its secret is at hand" in on.person.heard


async def test_what_is_optional_can_be_left_out(on9: Bench) -> None:
    outcome = await on9.set_up(minimal=True)

    assert outcome.lacks is not None
    assert {each.privilege.name for each in outcome.lacks} == {"Datastore.Allocate", "VM.GuestAgent.Unrestricted"}
    assert outcome.good


async def test_a_vnet_is_granted_in_its_own_zone(on9: Bench) -> None:
    await on9.as_administrator([
        Call(method="POST", path="/cluster/sdn/zones", params={"type": "simple", "zone": "lab"}),
        Call(method="POST", path="/cluster/sdn/vnets", params={"vnet": "guests", "zone": "lab"}),
        Call(method="PUT", path="/cluster/sdn"),
    ])  # fmt: skip

    outcome = await on9.set_up(grantee=replace(GRANTEE, bridge="guests"))

    assert outcome.lacks == []
    assert outcome.plan.grantee.zone == "lab"
    assert ("token", "agentlab@pve!daemon") in on9.sim.cluster.access.acl["/sdn/zones/lab/guests"]


# What it keeps


async def test_a_role_that_holds_less_is_extended_and_one_that_holds_more_keeps_it(on9: Bench) -> None:
    roles = on9.sim.cluster.access.roles
    roles["AgentLabSandboxes"] = frozenset({"VM.Audit", "VM.Migrate"})
    roles["AgentLabNodes"] = frozenset({"Sys.Audit", "Sys.Syslog"})

    await on9.set_up()

    assert roles["AgentLabSandboxes"] == {*role_privileges(Where.POOL, 9), "VM.Migrate"}
    assert roles["AgentLabNodes"] == {"Sys.Audit", "Sys.Syslog"}


async def test_entries_of_others_stay(on9: Bench) -> None:
    access = on9.sim.cluster.access
    access.set_acl("/pool/agentlab", "user", "root@pam", "PVEAuditor", 1)
    access.set_acl("/storage/thin", "user", "root@pam", "PVEDatastoreUser", 0)

    await on9.set_up()

    assert access.acl["/pool/agentlab"]["user", "root@pam"] == {"PVEAuditor": 1}
    assert access.acl["/storage/thin"]["user", "root@pam"] == {"PVEDatastoreUser": 0}


async def test_only_a_look_changes_nothing(on9: Bench) -> None:
    outcome = await on9.set_up(dry_run=True)

    assert outcome.lacks is None
    assert outcome.plan.steps
    assert on9.written() == []
    assert not (on9.folder / "proxmox.token").exists()


async def test_a_no_changes_nothing(on9: Bench) -> None:
    on9.person.answers = [False]

    with pytest.raises(click.Abort):
        await on9.set_up(yes=False)

    assert on9.written() == []


async def test_every_step_is_shown_with_its_command_before_the_question(on9: Bench) -> None:
    on9.person.answers = [True]

    outcome = await on9.set_up(yes=False)

    before = on9.person.heard[: on9.person.heard.index("Do this?")]
    assert [each.command for each in outcome.plan.steps if f"       {each.command}" not in before] == []


# Storages and the firewall


async def test_content_import_is_added_only_when_asked_for_and_the_rest_stays(on9: Bench) -> None:
    store = on9.sim.cluster.stores["local"]
    store.content = ["iso", "backup"]

    first = await on9.set_up()
    between = list(store.content)
    second = await on9.set_up(enable_import=True)

    assert [each.name for each in first.plan.findings] == ["uploads"]
    assert "pvesm set local --content backup,iso,import" in first.plan.findings[0].remedy
    assert between == ["iso", "backup"]
    assert set(store.content) == {"iso", "backup", "import"}
    assert second.plan.findings == ()


async def test_the_firewall_is_enabled_only_when_asked_for_and_the_nodes_stay_open(on9: Bench) -> None:
    options = on9.sim.cluster.firewall.options
    options.clear()

    first = await on9.set_up()
    between = dict(options)
    await on9.set_up(enable_firewall=True)

    assert [each.name for each in first.plan.findings] == ["datacenter firewall"]
    assert between == {}
    assert options == {"enable": 1, "policy_in": "ACCEPT"}


async def test_a_firewall_that_would_lock_somebody_out_is_not_enabled(on9: Bench) -> None:
    options = on9.sim.cluster.firewall.options
    options.clear()
    options["policy_in"] = "DROP"

    with pytest.raises(SetupFailed, match="may lock you out") as refused:
        await on9.set_up(enable_firewall=True)

    assert "--i-have-access" in refused.value.advice
    assert on9.written() == []


async def test_a_set_management_or_rules_for_both_ports_let_the_firewall_be_enabled(on9: Bench) -> None:
    firewall = on9.sim.cluster.firewall
    firewall.options.clear()
    firewall.options["policy_in"] = "DROP"
    firewall.rules += [
        {"type": "in", "action": "ACCEPT", "enable": 1, "proto": "tcp", "dport": "8000:8010"},
        {"type": "in", "action": "ACCEPT", "enable": 1, "macro": "SSH"},
    ]

    await on9.set_up(enable_firewall=True)

    assert firewall.options == {"enable": 1, "policy_in": "DROP"}


async def test_a_storage_that_is_not_there_is_refused_with_those_that_are(on9: Bench) -> None:
    with pytest.raises(SetupFailed, match="there is no storage fast") as refused:
        await on9.set_up(grantee=replace(GRANTEE, storages=("fast",)))

    assert "there are: local, thin" in refused.value.advice
    assert on9.written() == []


# Bad days


async def test_a_wrong_password_is_told_as_such(on9: Bench) -> None:
    on9.person = Scripted(password="guessed")

    with pytest.raises(SetupFailed, match="does not accept the log-in of root@pam: authentication failure"):
        await on9.set_up()


async def test_a_wrong_fingerprint_ends_it_before_the_password_is_sent(on9: Bench) -> None:
    with pytest.raises(SetupFailed, match="has the SHA-256 fingerprint") as refused:
        await on9.set_up(trust=Trust(fingerprints=frozenset({"AB:" * 31 + "AB"})))

    assert on9.sim.cluster.calls == []
    assert "pvenode cert info" in refused.value.advice


async def test_without_a_fingerprint_it_is_shown_and_asked_for_before_the_password(on9: Bench) -> None:
    on9.person.answers = [True]

    outcome = await on9.set_up(trust=None)

    heard = on9.person.heard
    assert (
        heard.index(f"  {on9.sim.fingerprint}") < heard.index("Is it the same?") < heard.index("Password of root@pam")
    )
    assert outcome.trust == on9.trust


async def test_a_second_factor_is_told_with_the_ways_around(on9: Bench) -> None:
    on9.sim.cluster.access.users["root@pam"].second_factor = True

    with pytest.raises(SetupFailed, match="second factor") as refused:
        await on9.set_up()

    assert "--print" in refused.value.advice
    assert "API token" in refused.value.advice


async def test_an_administrators_token_does_instead_of_a_password(on9: Bench) -> None:
    [made] = await on9.as_administrator(
        [Call(method="POST", path="/access/users/root@pam/token/setup", params={"privsep": 0})]
    )
    on9.person = Scripted(password=made["value"])

    outcome = await on9.set_up(admin="root@pam!setup")

    assert outcome.lacks == []


async def test_somebody_who_may_not_set_up_is_told_before_anything_is_changed(on9: Bench) -> None:
    access = on9.sim.cluster.access
    await on9.as_administrator(
        [
            Call(method="POST", path="/access/users", params={"userid": "kim@pve", "password": "long enough"}),
            Call(method="PUT", path="/access/acl", params={"path": "/", "users": "kim@pve", "roles": "PVEAdmin"}),
        ]
    )
    before = on9.written()
    on9.person = Scripted(password="long enough")

    with pytest.raises(SetupFailed, match=r"lacks Permissions\.Modify, Sys\.Modify"):
        await on9.set_up(admin="kim@pve")

    assert on9.written() == before
    assert "agentlab" not in access.pools


async def test_a_token_whose_secret_is_lost_is_made_anew_only_when_asked_for(on: Bench) -> None:
    await on.set_up()
    (on.folder / "proxmox.token").unlink()
    before = on.written()

    with pytest.raises(SetupFailed, match="its secret cannot be read again") as refused:
        await on.set_up()
    between = on.written()
    outcome = await on.set_up(regenerate=True)

    assert "--regenerate" in refused.value.advice
    assert between == before
    assert outcome.lacks == []


async def test_another_clusters_token_file_is_not_overwritten(on9: Bench) -> None:
    file = on9.folder / "proxmox.token"
    file.write_text("agentlab@pve!daemon=of-another-cluster\n")

    with pytest.raises(SetupFailed, match="maybe another cluster's"):
        await on9.set_up()
    kept = file.read_text()
    outcome = await on9.set_up(force=True)

    assert kept == "agentlab@pve!daemon=of-another-cluster\n"
    assert outcome.lacks == []
    assert file.read_text() != kept


async def test_a_place_where_the_token_cannot_be_kept_is_refused_before_anybody_logs_in(on9: Bench) -> None:
    (on9.folder / "file").write_text("")

    with pytest.raises(PermissionMissing):
        await on9.set_up(token_file=on9.folder / "file" / "proxmox.token")

    assert on9.sim.cluster.calls == []


async def test_an_expired_token_is_told_with_the_command_that_renews_it(on9: Bench) -> None:
    await on9.set_up()
    on9.sim.cluster.access.users["agentlab@pve"].tokens["daemon"].expire = 1_000_000_000

    with pytest.raises(SetupFailed, match="has expired") as refused:
        await on9.set_up()

    assert "pveum user token modify agentlab@pve daemon --expire 0" in refused.value.advice


async def test_a_token_without_entries_of_its_own_is_given_them(on9: Bench) -> None:
    await on9.set_up()
    for entries in on9.sim.cluster.access.acl.values():
        entries.pop(("token", "agentlab@pve!daemon"), None)

    outcome = await on9.set_up()

    assert {each.calls[0].path for each in outcome.plan.steps} == {"/access/acl"}
    assert all("users" not in each.calls[0].params for each in outcome.plan.steps)
    assert outcome.lacks == []


async def test_what_takes_rights_away_again_is_told_by_the_token_itself(on9: Bench) -> None:
    access = on9.sim.cluster.access
    await on9.set_up()
    access.set_acl("/storage/thin", "token", "agentlab@pve!daemon", "NoAccess", 1)

    outcome = await on9.set_up()

    assert outcome.lacks is not None
    assert {each.path for each in outcome.lacks} == {"/storage/thin"}
    assert not outcome.good


async def test_when_a_step_fails_what_was_done_is_told_and_the_next_run_goes_on(on9: Bench) -> None:
    on9.sim.cluster.faults.plan("PUT", "^/access/acl$", Fault.PROXY_LATE)

    with pytest.raises(
        SetupFailed, match=r"give .* the role AgentLabSandboxes on /pool/agentlab.*8 of 13 steps were done"
    ):
        await on9.set_up()
    outcome = await on9.set_up()

    assert {each.calls[0].path for each in outcome.plan.steps} == {"/access/acl"}
    assert len(outcome.plan.steps) == 4  # the one whose answer was lost had been carried out
    assert outcome.lacks == []
