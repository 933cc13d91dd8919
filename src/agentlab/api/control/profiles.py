"""Profiles, and the agents that they name, over the API."""

from __future__ import annotations

from agentlab.api.call import Call
from agentlab.model.agents import AGENTS
from agentlab.wire.responses import Agent, Agents, Profile, Profiles


async def page(call: Call) -> Profiles:
    """GET /v1/profiles"""
    return Profiles(items=[Profile.of(each) for each in call.services.profiles.list()])


async def get(call: Call) -> Profile:
    """GET /v1/profiles/{profile}"""
    return Profile.of(call.services.profiles.get(call.parameters["profile"]))


async def validate(call: Call) -> Profiles:
    """POST /v1/profiles/validate"""
    found = call.services.profiles.validate(call.body.text.encode(), call.body.source)
    return Profiles(items=[Profile.of(each) for each in found])


async def agents(call: Call) -> Agents:
    """GET /v1/agents"""
    return Agents(items=[Agent.of(each) for each in AGENTS.values()])
