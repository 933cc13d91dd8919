"""Sandboxes: desire and achievement, one row each, kept as tombstones after their end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from agentlab import errors
from agentlab.base.clock import milliseconds
from agentlab.base.text import did_you_mean
from agentlab.model.event import SandboxStateChanged
from agentlab.model.ids import SandboxId
from agentlab.model.machine import SANDBOX_NEXT, SandboxState
from agentlab.model.sandbox import Sandbox
from agentlab.store import events, meta, rows, sandbox_row
from agentlab.store.connection import Tx
from agentlab.store.sandbox_row import COLUMNS

SLOT_CURSOR = "slot_cursor"

INSERT = f"""
INSERT INTO sandbox ({COLUMNS})
VALUES (:id, :name, :owner, :backend, :profile, :template, :template_digest, :wish, :state, :installation, :nonce,
  :slot, :memory_bytes, :cpus, :pids_max, :disk_bytes, :secrets_bytes, :network, :lease_until_ms, :created_ms, :user,
  :job, :keepalive, :failure, :ready_ms, :ended_ms, :ended_reason, :missing_guarantees, :lease_warned_s,
  :nested_sandboxes, :source_sandbox, :source_nonce, :source_snapshot, :restore_to)"""
LIVING_NAMED = "SELECT id, owner FROM sandbox WHERE name = ? AND state <> 'destroyed'"


def insert(tx: Tx, sandbox: Sandbox) -> None:
    """Add a row.  Raises NameTaken while a living sandbox, of any owner, has the name.

    The slot must be free; ConstraintError otherwise, because `next_slot` in the same transaction gives free ones.
    """
    _check_name(tx, sandbox)
    tx.execute(INSERT, sandbox_row.values(sandbox))


def _check_name(tx: Tx, sandbox: Sandbox) -> None:
    if sandbox.name is None or (row := tx.execute(LIVING_NAMED, (sandbox.name,)).fetchone()) is None:
        return
    # Which of another user's things has the name is that user's own affair.
    existing = row[0] if row[1] == sandbox.owner else "it is another user's"
    raise errors.NameTaken(noun="sandbox", name=sandbox.name, existing=existing)


GET = f"SELECT {COLUMNS} FROM sandbox WHERE id = ?"


def get(tx: Tx, id: str) -> Sandbox | None:
    """The sandbox with exactly this id, living or a tombstone, or None."""
    row = tx.execute(GET, (id,)).fetchone()
    return None if row is None else sandbox_row.sandbox(row)


_MINE = "(:owner IS NULL OR owner = :owner)"
FIND_ID = f"SELECT {COLUMNS} FROM sandbox WHERE id = :text AND {_MINE}"
FIND_NAME = f"""
SELECT {COLUMNS} FROM sandbox WHERE name = :text AND {_MINE}
 ORDER BY state <> 'destroyed' DESC, created_ms DESC, rowid DESC LIMIT 1"""
FIND_PREFIX = f"SELECT {COLUMNS} FROM sandbox WHERE id >= :low AND id < :high AND {_MINE} ORDER BY id LIMIT :limit"


def find(tx: Tx, text: str, owner: str | None = None) -> Sandbox:
    """The sandbox that a person means: by id, else living name, else newest dead name, else unique id prefix.

    The prefix may leave `sb-` out.  With `owner`, others' sandboxes do not exist.  Raises NotFound or Ambiguous.
    """
    facts: dict[str, Any] = {"text": text, "owner": owner}
    for query in (FIND_ID, FIND_NAME):
        if (row := tx.execute(query, facts).fetchone()) is not None:
            return sandbox_row.sandbox(row)
    letters = text.removeprefix("sb-")
    if not letters or not letters.isalnum():
        raise _not_found(tx, text, owner)
    low = f"sb-{letters}"
    facts = {"low": low, "high": low + rows.AFTER_ALL_PREFIXED, "owner": owner, "limit": rows.FOUND_SHOWN_MAX}
    found = tx.execute(FIND_PREFIX, facts).fetchall()
    if not found:
        raise _not_found(tx, text, owner)
    if len(found) > 1:
        raise errors.Ambiguous(name=text, found=", ".join(str(row[0]) for row in found))
    return sandbox_row.sandbox(found[0])


PAGE_ALL = f"""
SELECT {COLUMNS} FROM sandbox
 WHERE (created_ms, id) < (:after_ms, :after_id) AND {_MINE}
   AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
 ORDER BY created_ms DESC, id DESC LIMIT :limit"""
PAGE_LIVING = PAGE_ALL.replace("WHERE", "WHERE state <> 'destroyed' AND")  # so that its partial index serves it


def page(
    tx: Tx,
    *,
    owner: str | None = None,
    states: Iterable[SandboxState] | None = None,
    include_destroyed: bool = False,
    after: str | None = None,
    limit: int = 100,
) -> tuple[list[Sandbox], str | None]:
    """Sandboxes, newest first, and the cursor for the rest, or None at the end.

    Asking for the state DESTROYED includes it.  Raises Invalid for a cursor that is none.
    """
    assert 1 <= limit <= rows.PAGE_ROWS_MAX
    wanted = None if states is None else list(states)
    after_ms, after_id = rows.BEFORE_ALL if after is None else rows.cursor_place(after)
    query = PAGE_ALL if include_destroyed or SandboxState.DESTROYED in (wanted or ()) else PAGE_LIVING
    facts: dict[str, Any] = {
        "owner": owner,
        "states": None if wanted is None else rows.texts_json(wanted),
        "after_ms": after_ms,
        "after_id": after_id,
        "limit": limit + 1,
    }
    found = [sandbox_row.sandbox(row) for row in tx.execute(query, facts)]
    if len(found) <= limit:
        return found, None
    last = found[limit - 1]
    return found[:limit], rows.cursor_text(milliseconds(last.created_at), last.id)


LIVING = f"SELECT {COLUMNS} FROM sandbox WHERE state <> 'destroyed' ORDER BY created_ms, id"


def living(tx: Tx) -> list[Sandbox]:
    """Every sandbox that is not DESTROYED, oldest first."""
    return [sandbox_row.sandbox(row) for row in tx.execute(LIVING)]


OF_JOBS = LIVING.replace("ORDER", "AND job IS NOT NULL ORDER")


def of_jobs(tx: Tx) -> list[Sandbox]:
    """Those of the living that were made for a job."""
    return [sandbox_row.sandbox(row) for row in tx.execute(OF_JOBS)]


def transition(tx: Tx, id: str, to: SandboxState, now: float, *, reason: str = "", **changes: Any) -> Sandbox:
    """Move a sandbox to state `to`, set the fields in `changes`, and record SandboxStateChanged; returns the new row.

    With the state it already has, only `changes` are written.  Raises WrongState where SANDBOX_NEXT does not lead
    there, NotFound.
    """
    before = _present(tx, id)
    if before.state != to and to not in SANDBOX_NEXT[before.state]:
        needed = " or ".join(state for state, following in SANDBOX_NEXT.items() if to in following)
        raise errors.WrongState(noun="sandbox", name=id, state=before.state.value, needed=needed or "a new one")
    after = _changed(tx, before, {**changes, "state": to})
    if before.state != to:
        fact = SandboxStateChanged(subject=id, before=before.state.value, after=to.value, reason=reason)
        events.append(tx, fact, now)
    return after


def update(tx: Tx, id: str, **changes: Any) -> Sandbox:
    """Set fields other than the state; returns the new row.  Raises NotFound."""
    assert "state" not in changes, "the state changes by transition() alone"
    return _changed(tx, _present(tx, id), changes)


SLOTS_IN_USE = "SELECT slot FROM sandbox WHERE state <> 'destroyed'"


def slots_in_use(tx: Tx) -> set[int]:
    """The slots of all living sandboxes."""
    return {slot for (slot,) in tx.execute(SLOTS_IN_USE)}


def next_slot(tx: Tx, capacity: int) -> int:
    """A free slot in 1 … capacity, the one that was free the longest first.  Raises LimitReached (SLOTS).

    Next-fit with a persisted cursor: an address or uid range is not used again at once, while something may still
    answer to it.
    """
    used = slots_in_use(tx)
    cursor = int(meta.get(tx, SLOT_CURSOR) or 0)
    for offset in range(capacity):
        slot = 1 + (cursor + offset) % capacity
        if slot not in used:
            meta.put(tx, SLOT_CURSOR, str(slot % capacity))
            return slot
    raise errors.LimitReached(
        limit_name="SLOTS",
        limit=capacity,
        cause="every slot is held by a sandbox that is not yet destroyed",
        what_to_do="Destroy sandboxes that are no longer needed: `agentlab sandbox list`, `agentlab sandbox destroy`.",
    )


OF_TEMPLATE = "SELECT id FROM sandbox WHERE template_digest = ? AND state <> 'destroyed' ORDER BY created_ms, id"


def of_template(tx: Tx, digest: str) -> list[SandboxId]:
    """Living sandboxes that stand on this build of a template."""
    return [SandboxId(id) for (id,) in tx.execute(OF_TEMPLATE, (digest,))]


HINTS = f"""
SELECT coalesce(name, id) FROM sandbox WHERE state <> 'destroyed' AND {_MINE} ORDER BY created_ms DESC LIMIT :limit"""


def _not_found(tx: Tx, text: str, owner: str | None) -> errors.NotFound:
    known = [name for (name,) in tx.execute(HINTS, {"owner": owner, "limit": rows.HINT_NAMES_MAX})]
    return errors.NotFound(noun="sandbox", name=text, hint=did_you_mean(text, known))


def _present(tx: Tx, id: str) -> Sandbox:
    found = get(tx, id)
    if found is None:
        raise errors.NotFound(noun="sandbox", name=id, hint="")
    return found


UPDATE = """
UPDATE sandbox SET name = :name, owner = :owner, backend = :backend, profile = :profile, template = :template,
  template_digest = :template_digest, wish = :wish, state = :state, slot = :slot, memory_bytes = :memory_bytes,
  cpus = :cpus, pids_max = :pids_max, disk_bytes = :disk_bytes, secrets_bytes = :secrets_bytes, network = :network,
  lease_until_ms = :lease_until_ms, created_ms = :created_ms, user = :user, job = :job, keepalive = :keepalive,
  failure = :failure, ready_ms = :ready_ms, ended_ms = :ended_ms, ended_reason = :ended_reason,
  missing_guarantees = :missing_guarantees, lease_warned_s = :lease_warned_s,
  nested_sandboxes = :nested_sandboxes, restore_to = :restore_to
 WHERE id = :id AND installation = :installation AND nonce = :nonce"""


def _changed(tx: Tx, before: Sandbox, changes: dict[str, Any]) -> Sandbox:
    after = replace(before, **changes)
    assert (after.id, after.mark) == (before.id, before.mark), "identity and mark never change"
    assert after.source == before.source, "a fork's origin never changes"
    if after == before:
        return before
    if after.name != before.name:
        _check_name(tx, after)
    tx.execute(UPDATE, sandbox_row.values(after))
    assert tx.changes() == 1
    return after
