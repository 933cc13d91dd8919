"""A profile: named defaults for sandboxes and jobs."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactLimits:
    """What a job may bring back beside its commits."""

    globs: tuple[str, ...] = ()
    file_bytes_max: int = 2 << 30
    total_bytes_max: int = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One document of a profile file, checked and complete."""

    name: str
    description: str = ""
    template: str = "base"
    backend: str | None = None  # None: the daemon's default
    agent: str = "shell"
    user: str = "root"
    resources: Resources = field(default_factory=Resources)
    network: NetworkMode = NetworkMode.NAT
    ttl_s: float = 4 * 3600  # a sandbox's lease
    timeout_s: float = 2 * 3600  # a job's limit for its agent
    keepalive: bool = False
    nested_sandboxes: bool = False
    env: tuple[tuple[str, str], ...] = ()
    artifacts: ArtifactLimits = field(default_factory=ArtifactLimits)
    source: str = ""  # the file and line it came from
