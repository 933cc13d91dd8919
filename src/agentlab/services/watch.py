"""Backends that are elsewhere: asked again while they cannot be used, so that nobody has to restart a daemon for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from agentlab.backends.interface import Probe
from agentlab.base.clock import sleep
from agentlab.services.sandboxes import BackendEntry

log = logging.getLogger(__name__)

AGAIN_S = 30.0


async def watch(entries: Mapping[str, BackendEntry]) -> None:
    """For ever.  What changes is logged, and counts from then on."""
    while True:
        await sleep(AGAIN_S)
        for name, entry in entries.items():
            if entry.remote and not entry.probe.usable:
                probe = await entry.backend.probe()
                if probe.usable:
                    log.info("backend can be used again", extra={"backend": name, "can": " ".join(probe.capabilities)})
                elif _causes(probe) != _causes(entry.probe):
                    log.warning("backend cannot be used", extra={"backend": name, "cause": _causes(probe)})
                entry.probe = probe


def _causes(probe: Probe) -> str:
    return "; ".join(f"{each.name}: {each.detail}" for each in probe.findings if each.fatal and not each.ok)
