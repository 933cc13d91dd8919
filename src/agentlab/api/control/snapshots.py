"""Snapshots, restores and forks of sandboxes over the API."""

from __future__ import annotations

from agentlab.api.call import Call
from agentlab.api.control.sandboxes import shown
from agentlab.services.requests import NewForks, NewSnapshot
from agentlab.wire import requests, responses


async def take(call: Call) -> responses.Snapshot:
    """POST /v1/sandboxes/{sandbox}/snapshots"""
    body: requests.TakeSnapshot = call.body
    asked = NewSnapshot(name=body.name, memory=body.memory)
    return responses.Snapshot.of(await call.services.snapshots.take(call.target.id, asked, call.key))


async def page(call: Call) -> responses.Snapshots:
    """GET /v1/sandboxes/{sandbox}/snapshots"""
    found = call.services.snapshots.list(call.target.id)
    if call.query.wait_s > 0:
        found = await call.while_connected(call.services.snapshots.wait_settled(call.target.id, call.query.wait_s))
    return responses.Snapshots(items=[responses.Snapshot.of(each) for each in found])


async def remove(call: Call) -> responses.Done:
    """DELETE /v1/sandboxes/{sandbox}/snapshots/{snapshot}"""
    changed = await call.services.snapshots.remove(call.target.id, call.parameters["snapshot"], call.key)
    return responses.Done(changed=changed)


async def restore(call: Call) -> responses.Sandbox:
    """POST /v1/sandboxes/{sandbox}/restore"""
    return shown(call, await call.services.snapshots.restore(call.target.id, call.body.snapshot, call.key))


async def fork(call: Call) -> responses.Forks:
    """POST /v1/sandboxes/{sandbox}/fork"""
    body: requests.ForkSandbox = call.body
    asked = NewForks(count=body.count, name=body.name, snapshot=body.snapshot, ttl_s=body.ttl_s)
    made = await call.services.snapshots.make_forks(call.identity.name, call.target.id, asked, call.key)
    return responses.Forks(items=[shown(call, row) for row in made])
