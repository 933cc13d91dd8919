"""A one-time right to fetch a bootstrap: job, secrets and a session credential."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.model.ids import JobId, SandboxId

GRANT_TTL_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Stored hashed.  Redeemed once: a second guest that presents it is an alarm."""

    token_hash: str  # SHA-256 of the token, hex
    sandbox: SandboxId
    job: JobId
    rescue: bool  # True: collect what a lost guest left, run nothing
    expires_at: float
    redeemed_by: str | None = None  # the guest's own nonce; the same guest may redeem again until it acknowledged
    redeemed_at: float | None = None
    acknowledged: bool = False
    credential_hash: str | None = None  # of the session credential that the redemption gave
