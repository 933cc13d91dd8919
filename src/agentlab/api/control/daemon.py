"""The daemon itself over the API."""

from __future__ import annotations

import json
from functools import cache

from agentlab import __version__
from agentlab.api.call import Call, Reply
from agentlab.api.identity import GRANTS
from agentlab.api.metrics import CONTENT_TYPE
from agentlab.errors import SettingsInvalid
from agentlab.wire.responses import Done, Finding, Findings, Status, Whoami


async def status(call: Call) -> Status:
    """GET /v1/status"""
    return Status(version=__version__, facts=call.services.health.status())


async def doctor(call: Call) -> Findings:
    """GET /v1/doctor"""
    found = [Finding.of(each) for each in await call.services.health.doctor()]
    return Findings(ok=all(each.ok or not each.fatal for each in found), items=found)


async def reload(call: Call) -> Done:
    """POST /v1/reload"""
    if problems := await call.services.reload():
        raise SettingsInvalid(problems="\n".join(problems))
    return Done()


async def metrics(call: Call) -> Reply:
    """GET /v1/metrics"""
    return Reply(body=call.server.counters.render(call.services.health.status()), content_type=CONTENT_TYPE)


async def openapi(call: Call) -> Reply:
    """GET /v1/openapi.json"""
    return Reply(body=_document(), content_type=b"application/json")


async def whoami(call: Call) -> Whoami:
    """GET /v1/whoami"""
    role = call.identity.role
    return Whoami(name=call.identity.name, role=role, permissions=sorted(GRANTS[role]))


@cache
def _document() -> bytes:
    # Imported on the first request: rendering the schemas costs more than the rest of the module.
    from agentlab.wire.openapi import document

    return json.dumps(document(), separators=(",", ":")).encode()
