"""The table of privileges, and what is made of it."""

from __future__ import annotations

import pytest
from tests.unit.backends.proxmox import recordings

from agentlab.backends.proxmox.failures import permission_of
from agentlab.backends.proxmox.privileges import (
    PRIVILEGES,
    Grantee,
    Where,
    lacking,
    of_version,
    remedy,
    role_privileges,
    set_up,
)

GRANTEE = Grantee(
    token="agentlab@pve!daemon", pool="agentlab", templates=(9000,), storages=("local-zfs",), uploads=("local",)
)


def full(grantee: Grantee) -> dict[str, dict[str, int]]:
    """What the cluster tells a token that has everything."""
    return {
        path: dict.fromkeys(role_privileges(where, grantee.version), 1)
        for where in Where
        for path in grantee.paths(where)
    }


def test_the_agents_privilege_depends_on_the_version() -> None:
    old, new = role_privileges(Where.POOL, 8), role_privileges(Where.POOL, 9)

    assert set(old) ^ set(new) == {"VM.Monitor", "VM.GuestAgent.Unrestricted"}
    assert "VM.Monitor" in old


def test_a_newer_version_is_taken_for_the_newest_that_is_known_and_an_old_one_is_refused() -> None:
    assert of_version(10) == of_version(9)
    with pytest.raises(ValueError, match="7 is not supported"):
        of_version(7)


def test_no_row_stands_twice_and_none_is_about_the_root_of_the_tree() -> None:
    places = [(row.name, row.where) for row in PRIVILEGES]

    assert len(places) == len(set(places))
    assert not any(row.name in ("Sys.Modify", "Sys.Console", "Permissions.Modify") for row in PRIVILEGES)


def test_the_template_is_given_nothing_that_could_be_handed_on() -> None:
    assert role_privileges(Where.TEMPLATE, 9) == ("VM.Audit", "VM.Clone")


def test_set_up_makes_one_role_for_each_place_and_one_entry_for_user_and_token() -> None:
    commands = set_up(GRANTEE)

    assert 'pveum role add AgentLabTemplates --privs "VM.Audit VM.Clone"' in commands
    assert (
        "pveum acl modify /sdn/zones/localnetwork/vmbr0 --roles AgentLabNetwork --users 'agentlab@pve' "
        "--tokens 'agentlab@pve!daemon'"
    ) in commands
    assert len(commands) == 2 * len(Where)


def test_what_is_not_used_is_not_granted() -> None:
    assert not any("Uploads" in each for each in set_up(Grantee(token="a@pve!b", pool="p")))


def test_nothing_is_lacking_with_all_of_it() -> None:
    assert lacking(full(GRANTEE), GRANTEE) == []


@pytest.mark.parametrize("row", of_version(9), ids=lambda each: f"{each.where.name}-{each.name}")
def test_each_privilege_that_is_taken_away_is_named_with_its_path_and_command(row: object) -> None:
    permissions = full(GRANTEE)
    path = GRANTEE.paths(row.where)[0]  # type: ignore[attr-defined]
    del permissions[path][row.name]  # type: ignore[attr-defined]

    [lack] = lacking(permissions, GRANTEE)

    assert (lack.privilege, lack.path) == (row, path)
    assert f"pveum acl modify {path} " in lack.command
    assert f"--privs {row.name} " in lack.command  # type: ignore[attr-defined]


def test_a_token_without_entries_of_its_own_lacks_everything() -> None:
    assert len(lacking({}, GRANTEE)) == len(of_version(9))


def test_an_entry_further_up_counts_only_if_it_is_handed_down() -> None:
    handed, kept = ({"/": dict.fromkeys((row.name for row in PRIVILEGES), flag)} for flag in (1, 0))

    assert lacking(handed, GRANTEE) == []
    assert len(lacking(kept, GRANTEE)) == len(of_version(9))


def test_a_sandboxs_right_is_granted_at_the_pool_and_a_templates_at_the_template() -> None:
    assert "acl modify /pool/agentlab " in remedy("/vms/352", ["VM.Audit"], GRANTEE)
    assert "acl modify /vms/9000 --roles AgentLabTemplates" in remedy("/vms/9000", ["VM.Clone"], GRANTEE)
    assert "acl modify /nodes --roles AgentLabNodes" in remedy("/nodes/pve1", ["Sys.Audit"], GRANTEE)


def test_every_refusal_that_was_recorded_has_a_command_with_a_privilege_that_it_names() -> None:
    found = {permission for each in recordings.failures() if (permission := permission_of(each.text)) is not None}

    for permission in found:
        command = remedy(permission.path, permission.privileges, GRANTEE)
        assert any(f"--privs {each} " in command for each in permission.privileges), (permission, command)
