"""Idempotency keys: a request that is retried with its key happens once."""

from __future__ import annotations

from agentlab import errors
from agentlab.base.clock import milliseconds
from agentlab.store.connection import Tx

RECALL = "SELECT fingerprint, response FROM idempotency WHERE owner = ? AND key = ?"


def recall(tx: Tx, owner: str, key: str, fingerprint: str) -> str | None:
    """The response (JSON) that the first request with this key got, or None if this is the first.

    Call it in the transaction of the mutation, before it.  Raises IdempotencyConflict for another fingerprint.
    """
    row = tx.execute(RECALL, (owner, key)).fetchone()
    if row is None:
        return None
    known, response = row
    if known != fingerprint:
        raise errors.IdempotencyConflict(key=key)
    assert isinstance(response, str)
    return response


REMEMBER = "INSERT INTO idempotency (owner, key, fingerprint, response, created_ms) VALUES (?, ?, ?, ?, ?)"


def remember(tx: Tx, owner: str, key: str, fingerprint: str, response: str, now: float) -> None:
    """Keep the response, in the transaction of the mutation."""
    tx.execute(REMEMBER, (owner, key, fingerprint, response, milliseconds(now)))


PRUNE = "DELETE FROM idempotency WHERE created_ms < ?"


def prune(tx: Tx, before: float) -> None:
    """Forget keys that were used before `before`."""
    tx.execute(PRUNE, (milliseconds(before),))
