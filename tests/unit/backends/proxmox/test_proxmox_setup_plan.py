"""The steps of a set-up, by what is wanted and seen; and the lines for a shell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.backends.proxmox.privileges import ROLES, Grantee, Where, role_privileges
from agentlab.backends.proxmox.setup import SetupPlan, Wanted, fresh, plan, script
from agentlab.backends.proxmox.setup_seen import Seen, SeenFirewall, SeenStorage, SeenToken

GOLDEN = Path(__file__).parents[3] / "golden" / "proxmox"
GRANTEE = Grantee(token="agentlab@pve!daemon", pool="agentlab", storages=("local-lvm",), uploads=("local",))
WANTED = Wanted(grantee=GRANTEE)
FRESH = replace(
    fresh(GRANTEE, now=1_700_000_000.0),
    storages={
        "local": SeenStorage(type="dir", content=("backup", "import", "iso")),
        "local-lvm": SeenStorage(type="lvmthin", content=("images", "rootdir")),
    },
    bridges={"pve1": frozenset({"vmbr0"})},
    firewall=SeenFirewall(enabled=True),
)
SUBJECTS = ("agentlab@pve", "agentlab@pve!daemon")
DONE = replace(
    FRESH,
    roles={ROLES[where]: frozenset(role_privileges(where, 9)) for where in Where},
    users={"agentlab@pve": True},
    tokens={"daemon": SeenToken(separated=True)},
    pools=frozenset({"agentlab"}),
    entries=frozenset(
        (path, subject, ROLES[where]) for where in Where for path in GRANTEE.paths(where) for subject in SUBJECTS
    ),
)


def findings(made: SetupPlan) -> dict[str, str]:
    return {each.name: each.detail for each in made.findings}


@pytest.mark.parametrize("version", [8, 9])
def test_the_lines_for_a_shell_are_the_golden_ones(version: int) -> None:
    lines = script(replace(WANTED, grantee=replace(GRANTEE, version=version)))

    assert "\n".join(lines) + "\n" == (GOLDEN / f"setup-{version}.txt").read_text()


def test_a_fresh_cluster_needs_everything_in_an_order_in_which_each_step_finds_what_it_needs() -> None:
    made = plan(WANTED, FRESH)

    paths = [each.calls[-1].path for each in made.steps]
    assert paths == [
        "/pools", *["/access/roles"] * 5, "/access/users", "/access/users/agentlab@pve/token/daemon",
        *["/access/acl"] * 5,
    ]  # fmt: skip
    assert made.findings == ()


def test_nothing_is_left_to_do_once_it_is_done_and_the_secret_is_at_hand() -> None:
    made = plan(replace(WANTED, token_works=True), DONE)

    assert made.steps == ()
    assert made.findings == ()


def test_nothing_but_what_is_agentlabs_own_is_ever_named_in_a_call_that_was_not_asked_for() -> None:
    made = plan(WANTED, replace(FRESH, firewall=SeenFirewall(enabled=False), storages={}))

    assert not any(each.path.startswith(("/storage", "/cluster")) for step in made.steps for each in step.calls)


@pytest.mark.parametrize("missing", SUBJECTS)
def test_an_entry_is_given_to_whoever_lacks_it(missing: str) -> None:
    entries = frozenset(each for each in DONE.entries if each[:2] != ("/pool/agentlab", missing))

    [step] = plan(replace(WANTED, token_works=True), replace(DONE, entries=entries)).steps

    whom = "tokens" if "!" in missing else "users"
    assert step.calls[0].params == {
        "path": "/pool/agentlab", "roles": "AgentLabSandboxes", "propagate": True, whom: missing,
    }  # fmt: skip


def test_a_token_that_is_made_anew_is_given_all_its_entries_again() -> None:
    made = plan(replace(WANTED, regenerate=True), DONE)

    assert [each.method for each in made.steps[0].calls] == ["DELETE", "POST"]
    assert len(made.steps) == 1 + 5
    assert all("users" not in each.calls[0].params for each in made.steps[1:])


def test_a_token_without_separation_is_told_but_not_changed() -> None:
    seen = replace(DONE, tokens={"daemon": SeenToken(separated=False)})

    made = plan(replace(WANTED, token_works=True), seen)

    assert made.steps == ()
    assert made.refusals == ()
    assert findings(made) == {"token": "agentlab@pve!daemon has all rights of its user"}


def test_a_disabled_user_is_refused_with_the_command_that_enables_it() -> None:
    [refusal] = plan(replace(WANTED, token_works=True), replace(DONE, users={"agentlab@pve": False})).refusals

    assert "pveum user modify agentlab@pve --enable 1 --expire 0" in refusal.remedy


def test_the_bridge_must_be_on_every_node_or_those_without_are_named() -> None:
    seen = replace(FRESH, bridges={"pve1": frozenset({"vmbr0", "vmbr1"}), "pve2": frozenset({"vmbr1"})})

    made = plan(WANTED, seen)

    assert findings(made) == {"bridge": "vmbr0 is not to be seen on pve2"}
    assert made.refusals == ()


def test_a_storage_that_cannot_hold_files_is_refused_for_uploads_with_those_that_can() -> None:
    [refusal] = plan(replace(WANTED, grantee=replace(GRANTEE, uploads=("local-lvm",))), FRESH).refusals

    assert refusal.detail == "local-lvm (lvmthin) cannot hold images as files"
    assert "--uploads: local." in refusal.remedy


def test_a_vm_that_is_no_template_is_refused() -> None:
    wanted = replace(WANTED, grantee=replace(GRANTEE, templates=(9000, 9001, 9002)))

    made = plan(wanted, replace(FRESH, vms={9000: True, 9001: False}))

    assert [each.detail for each in made.refusals] == ["VM 9001 is no template", "there is no VM 9002"]


@pytest.mark.parametrize(
    ("firewall", "params"),
    [
        (SeenFirewall(enabled=False), {"enable": True, "digest": None, "policy_in": "ACCEPT"}),
        (SeenFirewall(enabled=False, policy_in="ACCEPT"), {"enable": True, "digest": None}),
        (SeenFirewall(enabled=False, policy_in="DROP", lets_in=True), {"enable": True, "digest": None}),
    ],
)
def test_the_firewall_is_enabled_so_that_whoever_gets_in_now_still_does(
    firewall: SeenFirewall, params: dict[str, object]
) -> None:
    made = plan(replace(WANTED, enable_firewall=True), replace(FRESH, firewall=firewall))

    assert made.steps[-1].calls[0].params == params


def test_the_firewall_is_not_enabled_where_it_might_lock_somebody_out_unless_somebody_answers_for_it() -> None:
    seen = replace(FRESH, firewall=SeenFirewall(enabled=False, policy_in="DROP"))
    wanted = replace(WANTED, enable_firewall=True)

    assert [each.name for each in plan(wanted, seen).refusals] == ["datacenter firewall"]
    assert plan(replace(wanted, access_assured=True), seen).refusals == ()


def test_a_version_that_is_not_supported_is_refused() -> None:
    with pytest.raises(ValueError, match="7 is not supported"):
        plan(WANTED, Seen(version="7.4-3", now=0))


def test_somebody_without_rights_is_told_which_are_missing() -> None:
    [refusal] = plan(WANTED, replace(FRESH, permissions={"/pool": {"Pool.Allocate": 1}})).refusals

    assert refusal.detail == "this user lacks Permissions.Modify, Sys.Modify, User.Modify"
