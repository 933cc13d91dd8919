"""Names of things.  Ids are types, so that one cannot pass for another."""

from __future__ import annotations

import re
from typing import NewType

SandboxId = NewType("SandboxId", str)  # sb-…
JobId = NewType("JobId", str)  # job-…
Digest = NewType("Digest", str)  # lower-case hex SHA-256
InstallationId = NewType("InstallationId", str)  # 8 letters and digits, made at first start

NAME_LENGTH_MAX = 63
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ID = re.compile(r"(?:sb|job)-[2-9a-z]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_name(text: str) -> bool:
    """Whether `text` may name a sandbox, profile or template: a DNS label that does not look like an id."""
    return _NAME.fullmatch(text) is not None and not text.startswith(("sb-", "job-"))


def is_id(text: str) -> bool:
    """Whether `text` has the shape of a complete sandbox or job id."""
    return _ID.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether `text` is a complete lower-case SHA-256 in hex."""
    return _DIGEST.fullmatch(text) is not None
