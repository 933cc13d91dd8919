"""Grants: one-time rights to fetch a bootstrap, and the session credentials that they became."""

from __future__ import annotations

from typing import Any

from agentlab.base.clock import milliseconds
from agentlab.model.grant import Grant
from agentlab.model.ids import JobId, SandboxId
from agentlab.store import rows
from agentlab.store.connection import Tx

_COLUMNS = """token_hash, sandbox, job, rescue, expires_ms, redeemed_by, redeemed_ms, acknowledged, credential_hash"""

INSERT = f"INSERT INTO guest_grant ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def insert(tx: Tx, grant: Grant) -> None:
    """Add a grant.  Its sandbox and job must be in the store."""
    tx.execute(
        INSERT,
        (
            grant.token_hash,
            grant.sandbox,
            grant.job,
            int(grant.rescue),
            milliseconds(grant.expires_at),
            grant.redeemed_by,
            rows.ms_or_none(grant.redeemed_at),
            int(grant.acknowledged),
            grant.credential_hash,
        ),
    )


BY_TOKEN = f"SELECT {_COLUMNS} FROM guest_grant WHERE token_hash = ?"


def by_token(tx: Tx, token_hash: str) -> Grant | None:
    """The grant with this token, in whatever condition, or None."""
    row = tx.execute(BY_TOKEN, (token_hash,)).fetchone()
    return None if row is None else _grant(row)


BY_CREDENTIAL = f"SELECT {_COLUMNS} FROM guest_grant WHERE credential_hash = ?"


def by_credential(tx: Tx, credential_hash: str) -> Grant | None:
    """The grant whose redemption gave this credential; None if it was replaced, revoked or never given."""
    row = tx.execute(BY_CREDENTIAL, (credential_hash,)).fetchone()
    return None if row is None else _grant(row)


# The same guest may come again until it has acknowledged, also after the expiry: its first answer may have been lost.
REDEEM = """
UPDATE guest_grant SET redeemed_by = :nonce, redeemed_ms = coalesce(redeemed_ms, :now_ms),
  credential_hash = :credential_hash, redemptions = redemptions + 1
 WHERE token_hash = :token_hash AND acknowledged = 0
   AND (redeemed_by = :nonce OR (redeemed_by IS NULL AND expires_ms > :now_ms))
RETURNING redemptions"""


def redeem(tx: Tx, token_hash: str, nonce: str, credential_hash: str, now: float) -> tuple[str, Grant | None]:
    """Claim a grant for the guest that made `nonce`; returns what happened and the grant as it is now.

    "redeemed": for the first time.  "again": by the same guest before it acknowledged; the credential is replaced.
    "spent": by another guest, or after the acknowledgement.  "expired": too late, or revoked
    before anyone came.  "unknown", with None.
    """
    facts = {
        "token_hash": token_hash,
        "nonce": nonce,
        "credential_hash": credential_hash,
        "now_ms": milliseconds(now),
    }
    redemptions: int | None = tx.execute(REDEEM, facts).get
    grant = by_token(tx, token_hash)
    if redemptions is not None:
        return ("redeemed" if redemptions == 1 else "again"), grant
    if grant is None:
        return "unknown", None
    return ("spent" if grant.redeemed_by is not None else "expired"), grant


ACKNOWLEDGE = "UPDATE guest_grant SET acknowledged = 1 WHERE credential_hash = ?"


def acknowledge(tx: Tx, credential_hash: str) -> None:
    """The guest has its bootstrap safely: from now on nobody can redeem this grant.  Repeating is quiet."""
    tx.execute(ACKNOWLEDGE, (credential_hash,))


REVOKE_SANDBOX = "UPDATE guest_grant SET acknowledged = 1, credential_hash = NULL WHERE sandbox = ?"


def revoke_sandbox(tx: Tx, sandbox: str) -> None:
    """End every grant and credential of a sandbox; the rows stay, so that a late comer is recognised."""
    tx.execute(REVOKE_SANDBOX, (sandbox,))


PRUNE = """
DELETE FROM guest_grant WHERE expires_ms < ?
   AND (credential_hash IS NULL OR sandbox IN (SELECT id FROM sandbox WHERE state = 'destroyed'))"""


def prune(tx: Tx, before: float) -> None:
    """Remove grants that expired before `before`; one that became a credential stays until its sandbox is destroyed."""
    tx.execute(PRUNE, (milliseconds(before),))


def _grant(row: tuple[Any, ...]) -> Grant:
    token_hash, sandbox, job, rescue, expires_ms, redeemed_by, redeemed_ms, acknowledged, credential_hash = row
    return Grant(
        token_hash=token_hash,
        sandbox=SandboxId(sandbox),
        job=JobId(job),
        rescue=bool(rescue),
        expires_at=rows.instant(expires_ms),
        redeemed_by=redeemed_by,
        redeemed_at=rows.instant_or_none(redeemed_ms),
        acknowledged=bool(acknowledged),
        credential_hash=credential_hash,
    )
