"""Templates over the API."""

from __future__ import annotations

from agentlab.api.call import Call
from agentlab.wire.responses import Done, Template, Templates


async def page(call: Call) -> Templates:
    """GET /v1/templates"""
    return Templates(items=[Template.of(each) for each in call.services.templates.list()])


async def get(call: Call) -> Template:
    """GET /v1/templates/{template}"""
    return Template.of(call.services.templates.get(call.parameters["template"]))


async def build(call: Call) -> Template:
    """POST /v1/templates/{template}/build"""
    return Template.of(await call.services.templates.build(call.parameters["template"]))


async def remove(call: Call) -> Done:
    """DELETE /v1/templates/{template}"""
    await call.services.templates.remove(call.parameters["template"])
    return Done()
