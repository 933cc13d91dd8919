"""What the cluster's texts mean, held to recordings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.backends.proxmox import recordings

from agentlab.backends.interface import BackendError, Gone, Refused, Unavailable
from agentlab.backends.proxmox.answers import Distrusted, NoAnswer, ProxmoxError
from agentlab.backends.proxmox.failures import (
    OUTCOMES,
    TEXTS,
    Kind,
    Permission,
    failed_task,
    kind_of,
    kind_of_text,
    permission_of,
    translated,
)
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.wording import plain

GOLDEN = Path(__file__).with_name("kinds.txt")
GRANTEE = Grantee(token="agentlab@pve!daemon", pool="agentlab", templates=(9000,), storages=("local-zfs",))


def error(status: int, reason: str, **more: object) -> ProxmoxError:
    return ProxmoxError(status=status, reason=reason, method="POST", path="/nodes/pve1/qemu", **more)  # type: ignore[arg-type]


def listing() -> str:
    lines = {f"{kind_of(each).value:15} {each.status} {each.words[:160]}" for each in recordings.failures()}
    lines |= {f"{kind_of_text(each).value:15} task {plain(each, 160)}" for each in recordings.exit_statuses()}
    general = {re.sub(r"[0-9a-f]{32,64}", "…", line) for line in lines}
    return "".join(f"{line.rstrip()}\n" for line in sorted(general))


def test_every_failure_that_was_recorded_has_the_meaning_that_a_person_gave_it() -> None:
    assert listing() == GOLDEN.read_text()


def test_nothing_that_was_recorded_is_without_a_meaning_but_for_a_program_that_failed() -> None:
    unknown = [each for each in recordings.failures() if kind_of(each) is Kind.UNKNOWN]
    tasks = [each for each in recordings.exit_statuses() if kind_of_text(each) is Kind.UNKNOWN]

    assert unknown == []
    assert len(tasks) == 1
    assert tasks[0].startswith("command '/usr/bin/qemu-img resize ")


def test_every_pattern_names_a_kind_and_every_kind_has_an_outcome_with_a_remedy() -> None:
    assert {kind for _, kind in TEXTS} <= set(Kind)
    assert [kind for kind, (_, remedy) in OUTCOMES.items() if len(remedy) < 10] == []


@pytest.mark.parametrize("failure", recordings.failures(), ids=lambda each: f"{each.status}-{each.words[:40]}")
def test_every_recorded_failure_is_told_in_the_clusters_own_words(failure: ProxmoxError) -> None:
    told = translated(failure, "making sb-22222222", GRANTEE)

    assert isinstance(told, BackendError)
    assert told.cause.startswith(f"making sb-22222222: {failure.words}")
    assert told.remedy


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("unable to create VM 150: config file already exists", Kind.EXISTS),
        ("cluster not ready - no quorum?", Kind.NO_QUORUM),
        ("unable to open file '/etc/pve/nodes/pve1/qemu-server/1.conf.tmp.9' - Permission denied", Kind.NO_QUORUM),
        ("cfs-lock 'storage-nfs' error: got lock request timeout", Kind.BUSY),
        ("VM is locked (clone)", Kind.BUSY),
        ("unexpected status", Kind.WORKER_DIED),
        ("lvcreate 'pve/vm-1-disk-0' error: Insufficient free extents", Kind.STORAGE_FULL),
        ("write failed: No space left on device", Kind.STORAGE_FULL),
        ("start failed: command '/usr/bin/kvm -id 1' failed: Cannot allocate memory", Kind.NO_MEMORY),
        ("Agent error: Permission check failed (/vms/1, VM.Audit)", Kind.AGENT_ERROR),
        ("something that nobody has seen before", Kind.UNKNOWN),
    ],
)
def test_texts_that_were_not_recorded_are_known_too(text: str, kind: Kind) -> None:
    assert kind_of_text(text, 500) is kind


def test_what_did_not_answer_is_known_by_whether_it_was_sent() -> None:
    lost = NoAnswer(reason="the connection broke", method="POST", path="/x", sent=True)
    unsent = NoAnswer(reason="cannot connect", method="POST", path="/x", sent=False)
    strange = Distrusted(reason="another certificate", method="POST", path="/x")

    assert (kind_of(lost), kind_of(unsent), kind_of(strange)) == (Kind.LOST, Kind.NODE_DOWN, Kind.DISTRUSTED)


@pytest.mark.parametrize(
    ("reason", "status", "outcome"),
    [
        ("Configuration file 'nodes/pve1/qemu-server/300.conf' does not exist", 500, Gone),
        ("VM is locked (snapshot)", 500, Unavailable),
        ("Authentication failed!", 401, Refused),
        ("Connection refused", 595, Unavailable),
        ("storage 'nostore' does not exist", 500, Refused),
    ],
)
def test_a_failure_becomes_the_error_that_tells_whether_to_try_again(
    reason: str, status: int, outcome: type[BackendError]
) -> None:
    assert type(translated(error(status, reason), "x")) is outcome


def test_a_missing_privilege_is_told_with_the_commands_that_grant_it() -> None:
    told = translated(error(403, "Permission check failed (/vms/352, VM.PowerMgmt)"), "starting", GRANTEE)

    assert told.cause == ("starting: Permission check failed (/vms/352, VM.PowerMgmt) (POST /nodes/pve1/qemu)")
    assert told.remedy == (
        "Run on a node as root: pveum role modify AgentLabSandboxes --append 1 --privs VM.PowerMgmt && "
        "pveum acl modify /pool/agentlab --roles AgentLabSandboxes --users 'agentlab@pve' "
        "--tokens 'agentlab@pve!daemon'"
    )


def test_a_refusal_that_names_no_path_is_about_the_pool() -> None:
    told = translated(error(403, "Permission check failed"), "cloning", GRANTEE)

    assert "pveum acl modify /pool/agentlab --roles AgentLabSandboxes" in told.remedy


def test_path_and_privileges_of_a_refusal_are_read() -> None:
    assert permission_of("403 Permission check failed (/vms/352, VM.Snapshot|VM.Snapshot.Rollback)") == Permission(
        path="/vms/352", privileges=("VM.Snapshot", "VM.Snapshot.Rollback")
    )
    assert permission_of("Permission check failed") is None


def test_a_failed_task_is_told_with_the_end_of_its_log() -> None:
    told = failed_task(
        "can't lock file '/var/lock/qemu-server/lock-300.conf' - got timeout",
        (
            "trying to acquire lock...",
            "TASK ERROR: can't lock file '/var/lock/qemu-server/lock-300.conf' - got timeout",
        ),
        "starting sb-22222222",
    )

    assert isinstance(told, Unavailable)
    assert told.cause == (
        "starting sb-22222222: the task ended with: can't lock file '/var/lock/qemu-server/lock-300.conf' - got "
        "timeout (its log ends: trying to acquire lock...)"
    )


def test_qemus_command_line_and_the_identity_in_it_are_not_told() -> None:
    text = "start failed: command '/usr/bin/kvm -id 1 -smbios 'type=1,serial=grant-7' -m 1' failed: got timeout"

    assert plain(text) == "start failed: command 'kvm …' failed: got timeout"
    assert plain("command '/usr/bin/kvm -id 1 -smbios 'type=1,serial=grant-7") == "command 'kvm …' failed:"
    assert plain("update VM 300: -smbios1 base64=1,serial=Z3JhbnQ=,uuid=1") == (
        "update VM 300: -smbios1 base64=1,serial=•••,uuid=1"
    )
