"""A template as it stands in the store: a build of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from agentlab.model.failure import Failure
from agentlab.model.ids import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One build.  `digest` addresses the content: recipe, parents and the builder's version."""

    name: str
    digest: Digest
    recipe_digest: Digest
    state: str  # building, ready, failed
    bytes_count: int
    built_at: float | None
    build_s: float | None
    packages: tuple[tuple[str, str], ...] = ()  # name and version, as installed
    step: str = ""  # while building: the step under way
    failure: Failure | None = None
