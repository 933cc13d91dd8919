"""Single values of the installation."""

from __future__ import annotations

from agentlab.base.entropy import Entropy
from agentlab.model.ids import InstallationId
from agentlab.store.connection import Tx

INSTALLATION = "installation"

GET = "SELECT value FROM meta WHERE key = ?"


def get(tx: Tx, key: str) -> str | None:
    """The value at `key`, or None."""
    value: str | None = tx.execute(GET, (key,)).get
    return value


PUT = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


def put(tx: Tx, key: str, value: str) -> None:
    """Set `key`, replacing what was there."""
    tx.execute(PUT, (key, value))


def installation(tx: Tx, entropy: Entropy) -> InstallationId:
    """This installation's id, part of every ownership mark; made at its first use, then never changed."""
    known = get(tx, INSTALLATION)
    if known is None:
        known = entropy.word(8)
        put(tx, INSTALLATION, known)
    assert len(known) == 8
    return InstallationId(known)
