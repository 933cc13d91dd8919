"""Complete values for the tests of the store, each field with a value of its own where it matters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentlab.model.ids import Digest, InstallationId, JobId, SandboxId
from agentlab.model.job import Job, RepoSource
from agentlab.model.lease import Lease
from agentlab.model.machine import JobState, SandboxState
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, Sandbox, Wish
from agentlab.store.connection import Tx, connect
from agentlab.store.migrate import migrate

NOW = 1_700_000_000.125
ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


@contextmanager
def fresh(path: Path = Path(":memory:fresh")) -> Iterator[Tx]:
    """A transaction on a database of its own."""
    connection = connect(path, read_only=False, durable=False)
    try:
        migrate(connection, path)
        with connection:
            yield connection
    finally:
        connection.close()


def digest(text: str) -> Digest:
    return Digest(hashlib.sha256(text.encode()).hexdigest())


def word(number: int) -> str:
    """Eight letters, different for each number."""
    letters = ""
    for _ in range(8):
        number, rest = divmod(number, len(ALPHABET))
        letters = ALPHABET[rest] + letters
    return letters


def sandbox(number: int = 1, **changes: Any) -> Sandbox:
    id = changes.pop("id", SandboxId(f"sb-{word(number)}"))
    values: dict[str, Any] = {
        "id": id,
        "name": None,
        "owner": "uid:0",
        "backend": "oci",
        "profile": "yolo-ephemeral",
        "template": "base",
        "template_digest": digest("base"),
        "wish": Wish.RUNNING,
        "state": SandboxState.REQUESTED,
        "mark": Mark(installation=InstallationId("inst2345"), sandbox=id, nonce="n0nce"),
        "slot": number,
        "resources": Resources(),
        "network": NetworkMode.NAT,
        "lease": Lease(until=NOW + 3600),
        "created_at": NOW + number,
    }
    return Sandbox(**{**values, **changes})


def job(number: int = 1, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": JobId(f"job-{word(number)}"),
        "owner": "uid:0",
        "state": JobState.QUEUED,
        "profile": "yolo-ephemeral",
        "agent": "shell",
        "task": "make test\n",
        "repo": RepoSource(url="https://git.example/r.git", ref="main", origin="r"),
        "env_names": ("KEY",),
        "artifact_globs": ("dist/*",),
        "timeout_s": 7200.0,
        "ttl_s": 14400.0,
        "keepalive": False,
        "queued_at": NOW + number,
    }
    return Job(**{**values, **changes})
