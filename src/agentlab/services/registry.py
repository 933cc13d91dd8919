"""The services of one daemon, as the API sees them.  Composes; has no behaviour."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agentlab.services.events import Events
from agentlab.services.guests import Guests
from agentlab.services.health import Health
from agentlab.services.jobs import Jobs
from agentlab.services.profiles import Profiles
from agentlab.services.sandboxes import Sandboxes
from agentlab.services.snapshots import Snapshots
from agentlab.services.templates import Templates
from agentlab.store.blobs import Blobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that a handler may call."""

    sandboxes: Sandboxes
    snapshots: Snapshots
    jobs: Jobs
    templates: Templates
    profiles: Profiles
    events: Events
    blobs: Blobs
    guests: Guests
    health: Health
    reload: Callable[[], Awaitable[list[str]]]  # read profiles and recipes again; the problems found
