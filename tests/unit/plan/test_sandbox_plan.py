"""What a sandbox needs next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.model.failure import Failure
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.lease import Lease
from agentlab.model.machine import SANDBOX_NEXT
from agentlab.model.machine import SandboxState as S
from agentlab.model.machine import SnapshotState as K
from agentlab.model.network import Namespace, NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, Observed, Power, Sandbox, SnapshotOf, Wish
from agentlab.model.snapshot import SnapshotRecord
from agentlab.plan import steps
from agentlab.plan.sandboxes import Seen, next_step

MARK = Mark(installation=InstallationId("inst2345"), sandbox=SandboxId("sb-22222222"), nonce="n")
ROW = Sandbox(
    id=MARK.sandbox,
    name=None,
    owner="uid:0",
    backend="fake",
    profile="p",
    template="base",
    template_digest=Digest("ab" * 32),
    wish=Wish.RUNNING,
    state=S.REQUESTED,
    mark=MARK,
    slot=1,
    resources=Resources(),
    network=NetworkMode.NAT,
    lease=Lease(until=1000.0),
    created_at=0.0,
)
NOTHING = Seen(observed=None, linked=False, policed=False)


def seen(
    power: Power | None, *, linked: bool = True, policed: bool = True, held: bool = False, mark: Mark = MARK
) -> Seen:
    observed = None if power is None else Observed(mark=mark, power=power, end=Namespace(7))
    return Seen(observed=observed, linked=linked, policed=policed, held=held)


def kept(state: K, *, memory: bool = False, failure: Failure | None = None) -> SnapshotRecord:
    return SnapshotRecord(sandbox=MARK.sandbox, name="s", state=state, memory=memory, requested_at=0.0, failure=failure)


def test_provisioning_takes_its_steps_in_order() -> None:
    row = replace(ROW, state=S.PROVISIONING)

    assert next_step(ROW, NOTHING, 1) == steps.Move(to=S.PROVISIONING)
    assert next_step(row, NOTHING, 1) == steps.Create()
    assert next_step(row, seen(Power.STOPPED, policed=False), 1) == steps.Arm()
    assert next_step(row, seen(Power.ARMED, policed=False), 1) == steps.Policy()
    assert next_step(row, seen(Power.ARMED), 1) == steps.Start()
    assert next_step(row, seen(Power.RUNNING), 1) == steps.Move(to=S.READY)
    assert next_step(replace(ROW, state=S.READY), seen(Power.RUNNING), 1) is None


def test_guest_code_is_never_started_before_its_policy_was_read_back() -> None:
    for state in (S.PROVISIONING, S.STARTING):
        for power in Power:
            step = next_step(replace(ROW, state=state), seen(power, policed=False), 1)
            assert not isinstance(step, steps.Start)


def test_a_broken_policy_of_a_running_sandbox_is_repaired() -> None:
    assert next_step(replace(ROW, state=S.READY), seen(Power.RUNNING, policed=False), 1) == steps.Policy(repair=True)


def test_an_ended_lease_wants_destruction() -> None:
    assert next_step(replace(ROW, state=S.READY), seen(Power.RUNNING), 1000) == steps.EndLease()


def test_an_ended_lease_waits_for_the_work_that_is_still_inside() -> None:
    assert next_step(replace(ROW, state=S.READY), seen(Power.RUNNING, held=True), 1000) is None


def test_destruction_is_complete_only_when_absence_was_observed() -> None:
    row = replace(ROW, state=S.DESTROYING, wish=Wish.DESTROYED)

    assert next_step(row, seen(Power.RUNNING), 1) == steps.Destroy()
    assert next_step(row, seen(None, linked=True), 1) == steps.Detach()
    assert next_step(row, NOTHING, 1) == steps.Move(to=S.DESTROYED)


def test_destruction_waits_for_the_harvest_but_takes_the_network_away() -> None:
    row = replace(ROW, state=S.READY, wish=Wish.DESTROYED)

    assert next_step(row, seen(Power.RUNNING, held=True), 1) == steps.Detach()
    assert next_step(row, seen(Power.RUNNING, held=True, linked=False), 1) is None


def test_a_sandbox_that_ended_by_itself_is_stopped_and_not_started_again() -> None:
    observed = Observed(mark=MARK, power=Power.STOPPED, exit_detail="out of memory")

    step = next_step(replace(ROW, state=S.READY), replace(NOTHING, observed=observed), 1)

    assert step == steps.Move(to=S.STOPPED, reason="out of memory")


def test_something_foreign_under_our_id_is_never_destroyed() -> None:
    foreign = Mark(installation=InstallationId("other234"), sandbox=MARK.sandbox, nonce="x")

    step = next_step(replace(ROW, state=S.DESTROYING, wish=Wish.DESTROYED), seen(Power.RUNNING, mark=foreign), 1)

    assert step == steps.Detach()


def test_nothing_is_built_on_something_foreign() -> None:
    foreign = Mark(installation=InstallationId("other234"), sandbox=MARK.sandbox, nonce="x")

    assert isinstance(next_step(replace(ROW, state=S.PROVISIONING), seen(Power.STOPPED, mark=foreign), 1), steps.Fail)


def test_a_failed_sandbox_has_its_remains_removed_and_stays_on_record() -> None:
    row = replace(ROW, state=S.FAILED)

    assert next_step(row, seen(Power.ARMED), 1) == steps.Destroy()
    assert next_step(row, seen(None), 1) == steps.Detach()
    assert next_step(row, NOTHING, 1) is None


@pytest.mark.parametrize("wish", [Wish.STOPPED, Wish.PAUSED])
def test_stop_and_pause_lead_to_their_states(wish: Wish) -> None:
    row, power = replace(ROW, state=S.READY, wish=wish), Power.RUNNING

    for _ in range(6):
        step = next_step(row, seen(power, linked=power is not Power.STOPPED), 1)
        match step:
            case steps.Move(to=to):
                row = replace(row, state=to)
            case steps.Stop():
                power = Power.STOPPED
            case steps.Pause():
                power = Power.PAUSED

    assert row.state is (S.STOPPED if wish is Wish.STOPPED else S.PAUSED)
    assert next_step(row, seen(power, linked=False), 1) is None


def test_a_snapshot_is_taken_while_nothing_else_is_under_way() -> None:
    due = kept(K.REQUESTED, memory=True)
    running, stopped = replace(seen(Power.RUNNING), due=due), replace(seen(Power.STOPPED, linked=False), due=due)

    assert next_step(replace(ROW, state=S.READY), running, 1) == steps.TakeSnapshot(snapshot="s", memory=True)
    assert next_step(replace(ROW, state=S.STARTING), stopped, 1) == steps.Arm()
    assert next_step(replace(ROW, state=S.STOPPING), running, 1) == steps.Stop()
    assert next_step(replace(ROW, state=S.READY, wish=Wish.DESTROYED), running, 1) == steps.Move(to=S.DESTROYING)
    removing = replace(running, due=kept(K.REMOVING))
    assert next_step(replace(ROW, state=S.READY), removing, 1) == steps.RemoveSnapshot(snapshot="s")


def test_a_snapshot_that_was_asked_for_comes_before_the_stop_that_was_asked_for_after_it() -> None:
    row, wanted = replace(ROW, state=S.READY, wish=Wish.STOPPED), replace(seen(Power.RUNNING), due=kept(K.REQUESTED))

    assert next_step(row, wanted, 1) == steps.TakeSnapshot(snapshot="s", memory=False)


def test_a_broken_policy_is_repaired_before_a_snapshot_is_taken() -> None:
    wanted = replace(seen(Power.RUNNING, policed=False), due=kept(K.REQUESTED))

    assert next_step(replace(ROW, state=S.READY), wanted, 1) == steps.Policy(repair=True)


def test_restoring_is_stop_restore_and_start() -> None:
    row = replace(ROW, state=S.READY, restore_to="s")
    stopping, stopped = replace(row, state=S.STOPPING), replace(row, state=S.STOPPED)

    assert next_step(row, seen(Power.RUNNING), 1) == steps.Move(to=S.STOPPING)
    assert next_step(stopping, seen(Power.RUNNING), 1) == steps.Stop()
    assert next_step(stopping, seen(Power.STOPPED), 1) == steps.Detach()
    assert next_step(stopping, seen(Power.STOPPED, linked=False), 1) == steps.Move(to=S.STOPPED, reason="asked for")
    assert next_step(stopped, seen(Power.STOPPED, linked=False), 1) == steps.Restore(snapshot="s")
    assert next_step(replace(stopped, restore_to=None), seen(Power.STOPPED, linked=False), 1) == steps.Move(
        to=S.STARTING
    )


FORK = replace(ROW, state=S.PROVISIONING, source=SnapshotOf(mark=replace(MARK, nonce="o"), name="s"))


def test_a_fork_is_created_once_its_snapshot_is_there() -> None:
    assert next_step(FORK, replace(NOTHING, source=kept(K.REQUESTED)), 1) is None
    assert next_step(FORK, replace(NOTHING, source=kept(K.READY)), 1) == steps.Create()
    assert next_step(FORK, replace(seen(Power.STOPPED, linked=False), source=None), 1) == steps.Arm()


def test_a_fork_whose_snapshot_failed_or_went_away_says_so() -> None:
    failure = Failure(code="backend/unavailable", step="snapshot", cause="no space", remedy="Free some.", at=1.0)

    failed = next_step(FORK, replace(NOTHING, source=kept(K.FAILED, failure=failure)), 1)
    removed = next_step(FORK, NOTHING, 1)

    assert failed == steps.Fail(cause="snapshot s of sb-22222222 failed: no space", remedy="Free some.")
    assert isinstance(removed, steps.Fail)
    assert "removed before" in removed.cause


RESTORED = st.sampled_from([None, "s"])
DUE = st.sampled_from([None, kept(K.REQUESTED), kept(K.REMOVING)])
POWERS = st.sampled_from([None, *Power])


@given(
    state=st.sampled_from(S),
    wish=st.sampled_from(Wish),
    power=POWERS,
    linked=st.booleans(),
    policed=st.booleans(),
    held=st.booleans(),
    restore_to=RESTORED,
    due=DUE,
    now=st.sampled_from([1.0, 2000.0]),
)
def test_every_move_is_allowed_by_the_state_table(
    state: S,
    wish: Wish,
    power: Power | None,
    linked: bool,
    policed: bool,
    held: bool,
    restore_to: str | None,
    due: SnapshotRecord | None,
    now: float,
) -> None:
    row = replace(ROW, state=state, wish=wish, restore_to=restore_to)

    step = next_step(row, replace(seen(power, linked=linked, policed=policed, held=held), due=due), now)

    if isinstance(step, steps.Move):
        assert step.to in SANDBOX_NEXT[state]
    if isinstance(step, steps.Fail):
        assert S.FAILED in SANDBOX_NEXT[state]


@given(
    state=st.sampled_from(S),
    wish=st.sampled_from(Wish),
    power=POWERS,
    policed=st.booleans(),
    linked=st.booleans(),
    restore_to=RESTORED,
    due=DUE,
)
def test_carrying_out_steps_always_comes_to_rest(
    state: S,
    wish: Wish,
    power: Power | None,
    policed: bool,
    linked: bool,
    restore_to: str | None,
    due: SnapshotRecord | None,
) -> None:
    row = replace(ROW, state=state, wish=wish, restore_to=restore_to)

    for _ in range(30):
        step = next_step(row, replace(seen(power, linked=linked, policed=policed), due=due), 1)
        if step is None:
            return
        match step:
            case steps.Move(to=to):
                stopped_by_itself = to is S.STOPPED and row.state is not S.STOPPING and row.wish is not Wish.STOPPED
                row = replace(row, state=to, wish=Wish.STOPPED if stopped_by_itself else row.wish)
            case steps.Fail():
                row = replace(row, state=S.STOPPED if row.state is S.STARTING else S.FAILED)
                row = replace(row, wish=Wish.STOPPED if row.state is S.STOPPED else row.wish)
            case steps.Create() | steps.Stop():
                power, policed = Power.STOPPED, False
            case steps.Arm():
                power, policed = Power.ARMED, False
            case steps.Policy():
                policed = linked = True
            case steps.Start() | steps.Resume():
                power = Power.RUNNING
            case steps.Pause():
                power = Power.PAUSED
            case steps.Detach():
                linked = False
            case steps.Destroy():
                power, policed = None, False
            case steps.TakeSnapshot() | steps.RemoveSnapshot():
                due = None
            case steps.Restore():
                row = replace(row, restore_to=None)

    raise AssertionError(f"no rest: {row.state} {row.wish} {power}")
