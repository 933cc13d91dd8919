"""What the guest of one job may still cost the host, counted over all of its connections."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlab.model.artifact import ARTIFACTS_MAX
from agentlab.model.ids import Digest
from agentlab.model.profile import ArtifactLimits

# Honest guests send an artifact once; after a cut they go on where it stopped.  A guest that was lost, and a rescue
# after it, may each collect again.  Without this limit a guest could replace one artifact for ever, and each content
# would stay on the disk until it is swept.
ARTIFACT_SENDINGS_MAX = 3
REFUSALS_TOLD_MAX = 1000  # events about refused artifacts of one job; the guest is told of every one
PARTIALS_KEPT_MAX = 16  # uploads of one job that a cut left unfinished and that can be resumed


@dataclass(slots=True)
class Allowance:
    """Kept in memory: a restart of the daemon, which no guest can cause, grants it anew."""

    bytes_left: int  # of artifacts' content, as it arrives
    stores_left: int = ARTIFACT_SENDINGS_MAX * ARTIFACTS_MAX
    refusals_left: int = REFUSALS_TOLD_MAX
    partials: dict[Digest, str] = field(default_factory=dict)  # unfinished uploads by what they were to become

    @classmethod
    def of(cls, limits: ArtifactLimits) -> Allowance:
        """A fresh one."""
        return cls(bytes_left=ARTIFACT_SENDINGS_MAX * limits.total_bytes_max)

    @property
    def spent(self) -> bool:
        """Whether nothing more is taken of this guest."""
        return self.bytes_left <= 0 or self.stores_left <= 0

    def tells_refusal(self) -> bool:
        """Whether one more refused artifact is an event."""
        self.refusals_left -= 1
        return self.refusals_left >= 0
