"""Sandboxes that show that they are hostile or duplicated: cut off, and destroyed."""

from __future__ import annotations

from agentlab.base.clock import Clock
from agentlab.model import event as facts
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Wish
from agentlab.store import events, sandboxes
from agentlab.store.database import Database, Tx


def quarantine(tx: Tx, sandbox: SandboxId, refused: str, reason: str, now: float) -> bool:
    """Record that a guest was refused as `refused`, and wish its sandbox away.  False if that was so already."""
    row = sandboxes.get(tx, sandbox)
    if row is None or row.wish is Wish.DESTROYED:
        return False
    events.append(tx, facts.GrantRefused(subject=row.id, reason=refused), now)
    events.append(tx, facts.SandboxQuarantined(subject=row.id, reason=reason), now)
    sandboxes.update(tx, row.id, wish=Wish.DESTROYED, ended_reason=f"quarantined: {reason}")
    return True


class Quarantine:
    """The same for those who have no transaction: whoever watches the door that guests come in by."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def replayed(self, sandbox: SandboxId) -> None:
        """Somebody showed a token that its guest had redeemed before."""
        reason = "its invitation was presented a second time"
        await self._database.write(lambda tx: quarantine(tx, sandbox, "spent", reason, self._clock.now()))
