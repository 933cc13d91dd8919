"""Sandboxes in the store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store.store_rows import ALPHABET, NOW, digest, fresh, sandbox

from agentlab import errors
from agentlab.model.failure import Failure
from agentlab.model.ids import InstallationId, JobId, SandboxId
from agentlab.model.lease import Lease
from agentlab.model.machine import SandboxState
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, SnapshotOf, Wish
from agentlab.store import events, sandboxes
from agentlab.store.connection import Tx

S = SandboxState


def destroyed(number: int, **changes: object) -> object:
    return sandbox(number, state=S.DESTROYED, **changes)


def test_a_sandbox_comes_back_with_every_field(tx: Tx) -> None:
    full = sandbox(
        7,
        name="fox",
        owner="uid:1000",
        wish=Wish.STOPPED,
        state=S.FAILED,
        resources=Resources(memory_bytes=1 << 29, cpus=0.5, pids_max=99, disk_bytes=1 << 33, secrets_bytes=1 << 20),
        network=NetworkMode.OFF,
        lease=Lease(until=NOW + 60.5),
        user="agent",
        job=JobId("job-22222223"),
        keepalive=True,
        failure=Failure(code="network/failed", step="policy", cause="nft: ä", remedy="doctor", at=NOW + 3),
        ready_at=NOW + 1,
        ended_at=NOW + 2,
        ended_reason="lease ended",
        missing_guarantees=("disk quota", "pids"),
        lease_warned_s=600,
        nested_sandboxes=True,
        source=SnapshotOf(
            mark=Mark(installation=InstallationId("inst2345"), sandbox=SandboxId("sb-22222229"), nonce="o"), name="s"
        ),
        restore_to="back",
    )

    sandboxes.insert(tx, full)

    assert sandboxes.get(tx, full.id) == full


def test_a_sandbox_that_is_not_there_is_none(tx: Tx) -> None:
    assert sandboxes.get(tx, "sb-22222222") is None


def test_a_living_name_is_taken_for_everybody(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, name="fox", owner="uid:1"))

    with pytest.raises(errors.NameTaken, match="another user's"):
        sandboxes.insert(tx, sandbox(2, name="fox", owner="uid:2"))
    with pytest.raises(errors.NameTaken, match="sb-22222223"):
        sandboxes.insert(tx, sandbox(2, name="fox", owner="uid:1"))

    assert sandboxes.get(tx, "sb-22222224") is None


def test_a_name_is_free_again_once_its_sandbox_is_destroyed(tx: Tx) -> None:
    sandboxes.insert(tx, destroyed(1, name="fox"))

    sandboxes.insert(tx, sandbox(2, name="fox"))

    assert sandboxes.find(tx, "fox").id == sandbox(2).id


def test_renaming_to_a_living_name_is_refused(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, name="fox"))
    sandboxes.insert(tx, sandbox(2, name="owl"))

    with pytest.raises(errors.NameTaken):
        sandboxes.update(tx, sandbox(2).id, name="fox")


def test_a_slot_is_held_by_one_living_sandbox(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, slot=5))
    sandboxes.insert(tx, destroyed(2, slot=5))

    with pytest.raises(Exception, match=r"UNIQUE.*slot"):
        sandboxes.insert(tx, sandbox(3, slot=5))


def test_a_sandbox_is_found_by_id_name_and_prefix(tx: Tx) -> None:
    row = sandbox(1, id=SandboxId("sb-abcd2345"), name="fox")
    sandboxes.insert(tx, row)

    for text in ("sb-abcd2345", "fox", "sb-a", "abcd", "a"):
        assert sandboxes.find(tx, text) == row


def test_a_living_name_goes_before_a_dead_one_and_a_newer_before_an_older(tx: Tx) -> None:
    sandboxes.insert(tx, destroyed(1, name="fox"))
    sandboxes.insert(tx, destroyed(3, name="fox"))
    sandboxes.insert(tx, destroyed(2, name="fox"))
    assert sandboxes.find(tx, "fox").id == sandbox(3).id

    sandboxes.insert(tx, sandbox(0, name="fox"))
    assert sandboxes.find(tx, "fox").id == sandbox(0).id


def test_a_name_goes_before_an_id_prefix(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, id=SandboxId("sb-abcd2345")))
    sandboxes.insert(tx, sandbox(2, id=SandboxId("sb-xyz22222"), name="abc"))

    assert sandboxes.find(tx, "abc").id == "sb-xyz22222"


def test_a_prefix_of_several_is_ambiguous_and_names_them(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, id=SandboxId("sb-abcd2345")))
    sandboxes.insert(tx, sandbox(2, id=SandboxId("sb-abce2345")))

    with pytest.raises(errors.Ambiguous, match="sb-abcd2345, sb-abce2345"):
        sandboxes.find(tx, "abc")


@pytest.mark.parametrize("text", ["", "sb-", "sb-%", "_", "%", "sb-*", "sb-[a-z]", "job-", "-", "😀", "sb-\x00", "a'b"])
def test_what_is_no_name_and_no_prefix_finds_nothing(tx: Tx, text: str) -> None:
    sandboxes.insert(tx, sandbox(1, id=SandboxId("sb-abcd2345"), name="fox"))

    with pytest.raises(errors.NotFound):
        sandboxes.find(tx, text)


def test_not_found_suggests_the_nearest_living_name(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, name="red-fox"))

    with pytest.raises(errors.NotFound, match="Did you mean 'red-fox'"):
        sandboxes.find(tx, "red-fix")


def test_others_sandboxes_do_not_exist_for_an_owner(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, id=SandboxId("sb-abcd2345"), name="fox", owner="uid:1"))

    for text in ("sb-abcd2345", "fox", "abc"):
        with pytest.raises(errors.NotFound) as caught:
            sandboxes.find(tx, text, owner="uid:2")
        assert caught.value.facts["hint"] == ""
    assert sandboxes.find(tx, "fox", owner="uid:1").name == "fox"


def test_a_page_shows_the_newest_first_without_tombstones(tx: Tx) -> None:
    for number in range(5):
        sandboxes.insert(tx, sandbox(number))
    sandboxes.insert(tx, destroyed(9))

    found, after = sandboxes.page(tx)

    assert [each.slot for each in found] == [4, 3, 2, 1, 0]
    assert after is None
    assert [each.slot for each in sandboxes.page(tx, include_destroyed=True)[0]] == [9, 4, 3, 2, 1, 0]
    assert [each.slot for each in sandboxes.page(tx, states=[S.DESTROYED])[0]] == [9]
    assert sandboxes.page(tx, states=[S.READY])[0] == []


@pytest.mark.parametrize("after", ["", "x", "!!!", "MTIz", "ä", "OjE", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OnNi"])
def test_a_cursor_that_no_list_returned_is_refused(tx: Tx, after: str) -> None:
    with pytest.raises(errors.Invalid):
        sandboxes.page(tx, after=after)


def test_living_sandboxes_are_all_but_the_destroyed(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(2, state=S.FAILED))
    sandboxes.insert(tx, sandbox(1, state=S.DESTROYING))
    sandboxes.insert(tx, destroyed(3))

    assert [each.slot for each in sandboxes.living(tx)] == [1, 2]


def test_a_transition_changes_the_row_and_records_the_event(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, state=S.PROVISIONING))

    after = sandboxes.transition(tx, sandbox(1).id, S.READY, NOW + 9, reason="connected", ready_at=NOW + 9)

    assert sandboxes.get(tx, after.id) == after == sandbox(1, state=S.READY, ready_at=NOW + 9)
    (event,) = events.since(tx, 0)
    assert (event.type, event.subject, event.at_ms) == ("sandbox.state", after.id, 1_700_000_009_125)
    assert event.data == {"before": "provisioning", "after": "ready", "reason": "connected"}


def test_a_transition_that_the_table_lacks_is_refused_and_changes_nothing(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1))

    with pytest.raises(errors.WrongState, match="requested; this needs provisioning or starting or paused"):
        sandboxes.transition(tx, sandbox(1).id, S.READY, NOW, ready_at=NOW)

    assert sandboxes.get(tx, sandbox(1).id) == sandbox(1)
    assert events.since(tx, 0) == []


def test_a_transition_to_the_same_state_writes_the_changes_without_an_event(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1))

    after = sandboxes.transition(tx, sandbox(1).id, S.REQUESTED, NOW, wish=Wish.DESTROYED)

    assert sandboxes.get(tx, after.id) == sandbox(1, wish=Wish.DESTROYED)
    assert events.since(tx, 0) == []


def test_changing_what_is_not_there_is_not_found(tx: Tx) -> None:
    with pytest.raises(errors.NotFound):
        sandboxes.update(tx, "sb-22222222", wish=Wish.STOPPED)
    with pytest.raises(errors.NotFound):
        sandboxes.transition(tx, "sb-22222222", S.FAILED, NOW)


def test_the_mark_never_changes(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1))

    with pytest.raises(AssertionError, match="mark"):
        sandboxes.update(tx, sandbox(1).id, mark=replace(sandbox(1).mark, nonce="other"))


def test_slots_are_not_used_again_at_once(tx: Tx) -> None:
    given: list[int] = []
    for number in range(3):
        given.append(sandboxes.next_slot(tx, 4))
        sandboxes.insert(tx, sandbox(number, slot=given[-1], state=S.DESTROYING))
        sandboxes.transition(tx, sandbox(number).id, S.DESTROYED, NOW)

    assert given == [1, 2, 3]
    assert [sandboxes.next_slot(tx, 4) for _ in range(2)] == [4, 1]


def test_slots_in_use_are_passed_over_and_their_end_is_an_error_with_a_remedy(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1, slot=1))
    sandboxes.insert(tx, sandbox(2, slot=3))
    assert sandboxes.slots_in_use(tx) == {1, 3}
    assert sandboxes.next_slot(tx, 3) == 2
    sandboxes.insert(tx, sandbox(3, slot=2))

    with pytest.raises(errors.LimitReached, match="SLOTS = 3") as caught:
        sandboxes.next_slot(tx, 3)

    assert "agentlab sandbox destroy" in caught.value.advice


def test_a_smaller_capacity_than_before_is_respected(tx: Tx) -> None:
    for _ in range(5):
        sandboxes.next_slot(tx, 10)

    assert sandboxes.next_slot(tx, 2) in (1, 2)


def test_the_living_sandboxes_of_a_template_are_named(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1))
    sandboxes.insert(tx, sandbox(2, template_digest=digest("other")))
    sandboxes.insert(tx, destroyed(3))

    assert sandboxes.of_template(tx, digest("base")) == [sandbox(1).id]


def test_a_damaged_state_in_a_row_is_noticed(tx: Tx) -> None:
    sandboxes.insert(tx, sandbox(1))
    tx.execute("UPDATE sandbox SET state = 'happy'")

    with pytest.raises(ValueError, match="happy"):
        sandboxes.get(tx, sandbox(1).id)


words = st.text(ALPHABET[:3], min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(ids=st.sets(words, min_size=1, max_size=12), text=st.text(ALPHABET[:3], min_size=1, max_size=8))
def test_a_prefix_finds_exactly_the_one_id_that_it_begins(ids: set[str], text: str) -> None:
    with fresh() as tx:
        for number, letters in enumerate(ids):
            sandboxes.insert(tx, sandbox(number, id=SandboxId(f"sb-{letters}")))

        fitting = [letters for letters in ids if letters.startswith(text)]

        if len(fitting) == 1:
            assert sandboxes.find(tx, text).id == f"sb-{fitting[0]}"
        else:
            with pytest.raises(errors.Ambiguous if fitting else errors.NotFound):
                sandboxes.find(tx, text)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(list(S)), st.sampled_from(["a", "b"])), max_size=12),
    limit=st.integers(1, 5),
    owner=st.sampled_from([None, "a"]),
    dead=st.booleans(),
)
def test_pages_together_are_the_whole_list_once(
    rows: list[tuple[int, SandboxState, str]], limit: int, owner: str | None, dead: bool
) -> None:
    with fresh() as tx:
        made = [
            sandbox(number, created_at=NOW + at, state=state, owner=whose)
            for number, (at, state, whose) in enumerate(rows)
        ]
        for each in made:
            sandboxes.insert(tx, each)
        wanted = [
            each for each in made if (dead or each.state != S.DESTROYED) and (owner is None or each.owner == owner)
        ]

        found, after = sandboxes.page(tx, owner=owner, include_destroyed=dead, limit=limit)
        while after is not None:
            assert len(found) % limit == 0
            more, after = sandboxes.page(tx, owner=owner, include_destroyed=dead, after=after, limit=limit)
            assert more
            found += more

        assert found == sorted(wanted, key=lambda each: (each.created_at, each.id), reverse=True)


def test_pages_are_served_by_an_index(tx: Tx) -> None:
    facts = {"owner": None, "states": None, "after_ms": 1 << 62, "after_id": "", "limit": 10}

    for query, index in ((sandboxes.PAGE_LIVING, "sandbox_living"), (sandboxes.PAGE_ALL, "sandbox_created")):
        plan = " ".join(row[3] for row in tx.execute(f"EXPLAIN QUERY PLAN {query}", facts))
        assert f"{index} (" in plan
        assert "TEMP B-TREE" not in plan
