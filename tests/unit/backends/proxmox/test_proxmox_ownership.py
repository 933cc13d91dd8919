"""Whose a VM is, in every case that was measured or thought of."""

from __future__ import annotations

import dataclasses
import uuid

import pytest

from agentlab.backends.proxmox.encode import DESCRIPTION_CHARACTERS_MAX, Smbios, format_smbios
from agentlab.backends.proxmox.ownership import Recorded, Whose, describe, is_ours, read_mark, uuid_of
from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.sandbox import Mark

MARK = Mark(installation=InstallationId("x3k2m9pq"), sandbox=SandboxId("sb-22222222"), nonce="5e1f")
OTHER = Mark(installation=InstallationId("x3k2m9pq"), sandbox=SandboxId("sb-33333333"), nonce="77aa")
MAKING, MADE = Recorded(vmid=300, identified=False), Recorded(vmid=300, identified=True)
FRESH = "d1f5f613-8475-497d-b47d-a675381faaa3"  # as a clone gets one by itself


def config(description: str = "", uuid: str = FRESH, **more: object) -> dict[str, object]:
    return {"smbios1": format_smbios(Smbios(uuid=uuid, serial=b"grant")), "description": description, **more}


def test_a_uuid_depends_on_the_whole_mark_and_has_the_usual_shape() -> None:
    changed = [
        dataclasses.replace(MARK, installation=InstallationId("other")),
        dataclasses.replace(MARK, sandbox=SandboxId("sb-44444444")),
        dataclasses.replace(MARK, nonce="5e20"),
    ]

    assert uuid_of(MARK) == uuid_of(dataclasses.replace(MARK))
    assert len({uuid_of(each) for each in [MARK, *changed]}) == 4
    assert (uuid.UUID(uuid_of(MARK)).version, uuid.UUID(uuid_of(MARK)).variant) == (5, uuid.RFC_4122)


def test_a_description_tells_people_and_bears_the_mark_in_one_line() -> None:
    text = describe(MARK)

    assert text.startswith("Sandbox sb-22222222 of the AgentLab installation x3k2m9pq")
    assert text.splitlines()[-1] == '{"agentlab":{"installation":"x3k2m9pq","sandbox":"sb-22222222","nonce":"5e1f"}}'
    assert len(text) < DESCRIPTION_CHARACTERS_MAX


@pytest.mark.parametrize("around", ["{}", "{}\n", "my notes\n{}\nand more\n", "\r\n{}\r\n"])
def test_the_mark_is_read_whatever_people_write_around_it(around: str) -> None:
    assert read_mark(around.format(describe(MARK))) == MARK


@pytest.mark.parametrize(
    "text",
    [
        "",
        'cp:{"ws":"w1","k":"v=1;2&3"}',
        '{"agentlab":7}',
        '{"agentlab":{"installation":"a","sandbox":"sb-22222222"}}',
        '{"agentlab":{"installation":"a","sandbox":"sb-22222222","nonce":5}}',
        '{"agentlab":{"installation":"a","sandbox":"../x","nonce":"n"}}',
        '{"agentlab":{"installation":"a","sandbox":"sb-22222222","nonce":"n","more":"x"}}',
        '{"agentlab":',
        describe(MARK) + "\n" + describe(OTHER),
    ],
)
def test_what_is_no_mark_or_more_than_one_is_none(text: str) -> None:
    assert read_mark(text) is None


CASES = {
    "made, with our uuid": (config(describe(MARK), uuid_of(MARK)), MADE, 300, Whose.OURS),
    "made, its uuid set but the daemon died before it was recorded": (
        config(describe(MARK), uuid_of(MARK)), MAKING, 300, Whose.OURS),
    "an administrator renamed it, and wrote another description": (
        config("mine now", uuid_of(MARK), name="web", tags="x"), MADE, 300, Whose.OURS),
    "its grant was redeemed and the serial removed": (
        {"smbios1": f"uuid={uuid_of(MARK)}"}, MADE, 300, Whose.OURS),
    "the uuid in capitals": (config("", uuid_of(MARK).upper()), MADE, 300, Whose.OURS),
    "half made: the clone is there, the uuid not yet": (config(describe(MARK)), MAKING, 300, Whose.HALF_MADE),
    "half made and still locked": (config(describe(MARK), lock="clone"), MAKING, 300, Whose.HALF_MADE),
    "half made, the description with its last newline": (
        config(describe(MARK) + "\n"), MAKING, 300, Whose.HALF_MADE),
    "being cloned, by us or by somebody else": (
        {"lock": "clone", "description": "qmclone temporary file\n"}, MAKING, 300, Whose.UNDECIDED),
    "being created": ({"lock": "create"}, MAKING, 300, Whose.UNDECIDED),
    "a person's clone of it under another number": (config(describe(MARK)), MADE, 331, Whose.FOREIGN),
    "a person's clone of it, half made, under another number": (config(describe(MARK)), MAKING, 331, Whose.FOREIGN),
    "a person's clone of it under its own number, after it was destroyed": (
        config(describe(MARK)), MADE, 300, Whose.FOREIGN),
    "a person's clone of another sandbox under the number we had reserved": (
        config(describe(OTHER)), MAKING, 300, Whose.FOREIGN),
    "somebody's VM under the number we had reserved": (config("web server"), MAKING, 300, Whose.FOREIGN),
    "somebody's VM under the number of a sandbox that was destroyed": (config("web server"), MADE, 300, Whose.FOREIGN),
    "somebody's clone under way under the number of a sandbox that was made": (
        {"lock": "clone", "description": "qmclone temporary file"}, MADE, 300, Whose.FOREIGN),
    "nothing recorded at all, though it bears everything of ours": (
        config(describe(MARK), uuid_of(MARK)), None, 300, Whose.FOREIGN),
    "ours by its uuid, under a number that we did not record": (
        config(describe(MARK), uuid_of(MARK)), MADE, 301, Whose.FOREIGN),
    "the same sandbox id of another installation": (
        config(describe(dataclasses.replace(MARK, installation=InstallationId("zzzzzzzz")))),
        MAKING, 300, Whose.FOREIGN),
    "an earlier attempt with another nonce": (
        config(describe(dataclasses.replace(MARK, nonce="old"))), MAKING, 300, Whose.FOREIGN),
    "its uuid was taken away": ({"description": describe(MARK)}, MADE, 300, Whose.FOREIGN),
    "an unreadable identity": ({"smbios1": "???", "description": describe(MARK)}, MADE, 300, Whose.FOREIGN),
    "an empty config": ({}, MADE, 300, Whose.FOREIGN),
}  # fmt: skip


@pytest.mark.parametrize(("found", "recorded", "vmid", "whose"), CASES.values(), ids=CASES.keys())
def test_whose_it_is(found: dict[str, object], recorded: Recorded | None, vmid: int, whose: Whose) -> None:
    verdict = is_ours(found, MARK, recorded, vmid)

    assert verdict.whose is whose
    assert verdict.may_be_destroyed == (whose in (Whose.OURS, Whose.HALF_MADE))
    assert str(vmid) in verdict.reason
