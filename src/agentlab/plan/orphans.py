"""Pure: what bears our mark although nothing wants it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.sandbox import Mark, Observed


def orphans(
    observed: Iterable[Observed], living: Mapping[SandboxId, Mark], installation: InstallationId
) -> list[Observed]:
    """Observed things of this installation whose sandbox is not living, or lives under another nonce."""
    return [
        each
        for each in observed
        if each.mark.installation == installation and living.get(each.mark.sandbox) != each.mark
    ]
