"""Artifacts: what came out of jobs, by name; the bytes are blobs."""

from __future__ import annotations

from typing import Any

from agentlab.base.clock import milliseconds
from agentlab.model.artifact import Artifact, artifact_name_problem
from agentlab.model.ids import Digest, JobId, is_digest
from agentlab.store import rows
from agentlab.store.connection import Tx

INSERT = """
INSERT OR REPLACE INTO artifact (job, name, kind, bytes_count, digest, created_ms) VALUES (?, ?, ?, ?, ?, ?)"""


def insert(tx: Tx, artifact: Artifact) -> None:
    """Record an artifact whose blob is stored; one with the same job and name is replaced."""
    assert artifact_name_problem(artifact.name) is None, f"{artifact.name!r} was not checked"
    assert is_digest(artifact.digest), f"{artifact.digest!r} is not a digest"
    created_ms = milliseconds(artifact.created_at)
    tx.execute(INSERT, (artifact.job, artifact.name, artifact.kind, artifact.bytes_count, artifact.digest, created_ms))


_SELECT = "SELECT job, name, kind, bytes_count, digest, created_ms FROM artifact"
OF = f"{_SELECT} WHERE job = ? ORDER BY name"


def of(tx: Tx, job: str) -> list[Artifact]:
    """All artifacts of a job, by name."""
    return [_artifact(row) for row in tx.execute(OF, (job,))]


TOTAL_WITHOUT = "SELECT count(*), coalesce(sum(bytes_count), 0) FROM artifact WHERE job = ? AND name <> ?"


def total_without(tx: Tx, job: str, name: str) -> tuple[int, int]:
    """How many artifacts a job has, and their bytes, one name left out."""
    count, size = tx.execute(TOTAL_WITHOUT, (job, name)).get
    return count, size


GET = f"{_SELECT} WHERE job = ? AND name = ?"


def get(tx: Tx, job: str, name: str) -> Artifact | None:
    """One artifact, or None."""
    row = tx.execute(GET, (job, name)).fetchone()
    return None if row is None else _artifact(row)


TOTAL_BYTES = "SELECT coalesce(sum(bytes_count), 0) FROM artifact WHERE job = ?"


def total_bytes(tx: Tx, job: str) -> int:
    """What a job's artifacts count together against its limit; equal contents count each time."""
    total: int = tx.execute(TOTAL_BYTES, (job,)).get
    return total


DIGESTS_IN_USE = "SELECT digest FROM artifact UNION SELECT repo_bundle FROM job WHERE repo_bundle IS NOT NULL"


def digests_in_use(tx: Tx) -> set[Digest]:
    """Every blob that a row refers to: artifacts, and the bundles that jobs started from."""
    return {Digest(digest) for (digest,) in tx.execute(DIGESTS_IN_USE)}


def _artifact(row: tuple[Any, ...]) -> Artifact:
    job, name, kind, bytes_count, digest, created_ms = row
    assert is_digest(digest), f"row of {job} {name!r} is damaged"
    return Artifact(
        job=JobId(job),
        name=name,
        kind=kind,
        bytes_count=bytes_count,
        digest=Digest(digest),
        created_at=rows.instant(created_ms),
    )
