"""A file that came out of a job."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.model.ids import Digest, JobId

ARTIFACTS_MAX = 10_000
ARTIFACT_NAME_LENGTH_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """`name` is a relative path that was checked: no leading slash, no `..`, no control characters."""

    job: JobId
    name: str
    kind: str  # file (declared by a glob), bundle, patch, transcript, report
    bytes_count: int
    digest: Digest
    created_at: float


def artifact_name_problem(name: str) -> str | None:
    """Why `name` may not name an artifact, or None if it may."""
    if not name or len(name.encode(errors="surrogateescape")) > ARTIFACT_NAME_LENGTH_MAX:
        return "empty or too long"
    if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "control or undecodable characters"
    if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        return "not a plain relative path"
    return None
