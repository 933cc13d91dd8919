"""The event log over the API.  A user sees the events of what is its own, and those of templates and the daemon."""

from __future__ import annotations

from agentlab.api.call import Call
from agentlab.api.stream import Emitter, send_events
from agentlab.base.clock import sleep
from agentlab.errors import Ambiguous, Invalid, NotFound
from agentlab.model.event import Recorded
from agentlab.wire.requests import FollowEvents, ListEvents
from agentlab.wire.responses import Event, EventPage

PAGE = 500
REMEMBERED_MAX = 10_000
PUBLIC = ("template.", "daemon.")


async def page(call: Call) -> EventPage:
    """GET /v1/events"""
    query: ListEvents = call.query
    subject, seen = _subject(call, query.subject), _Sight(call)
    since, items = query.since, list[Event]()
    while len(items) < query.limit:
        found = call.services.events.since(since, subject=subject, types=query.types or None, limit=PAGE)
        for each in found:
            since = each.seq
            if seen.allows(each):
                items.append(Event.of(each))
            elif subject is not None:
                # Another's subject and a missing one are answered alike, down to the place to go on from.
                return EventPage(items=[], next_since=query.since)
            if len(items) == query.limit:
                break
        if len(found) < PAGE:
            break
        await sleep(0)  # the whole log may be looked through for a user of whom it holds nothing
    return EventPage(items=items, next_since=since)


async def follow(call: Call) -> None:
    """GET /v1/events/stream"""
    query: FollowEvents = call.query
    since = query.since
    if (place := call.headers.get(b"last-event-id")) is not None:
        if not place.isdigit() or len(place) > 18:
            raise Invalid(cause="Last-Event-ID: not a sequence number")
        since = int(place)
    if since is None:
        since = call.services.events.last_seq()
    subject, seen = _subject(call, query.subject), _Sight(call)

    async def produce(emit: Emitter) -> None:
        looked = 0
        async for each in call.services.events.subscribe(since, subject=subject, types=query.types or None):
            looked += 1
            if looked % PAGE == 0:
                await sleep(0)
            if seen.allows(each):
                await emit.event(each.type, Event.of(each).model_dump_json().encode(), each.seq)

    await send_events(call, produce)


class _Sight:
    """Which events a caller may see, with what was found out remembered for this one request."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._known: dict[str, bool] = {}

    def allows(self, event: Recorded) -> bool:
        """Whether the caller may see this event."""
        if self._call.identity.owner is None or event.type.startswith(PUBLIC):
            return True
        known = self._known.get(event.subject)
        if known is None:
            known = self._owns(event.subject)
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[event.subject] = known
        return known

    def _owns(self, subject: str) -> bool:
        services, owner = self._call.services, self._call.identity.owner
        try:
            if subject.startswith("sb-"):
                return services.sandboxes.get(subject, owner).id == subject
            if subject.startswith("job-"):
                return services.jobs.get(subject, owner).id == subject
        except (NotFound, Ambiguous):
            return False
        return False


def _subject(call: Call, text: str | None) -> str | None:
    """A sandbox's name or a prefix as the id that events bear; other text as it is."""
    if text is None:
        return None
    services, owner = call.services, call.identity.owner
    try:
        if text.startswith("job-"):
            return services.jobs.get(text, owner).id
        return services.sandboxes.get(text, owner).id
    except (NotFound, Ambiguous):
        return text
