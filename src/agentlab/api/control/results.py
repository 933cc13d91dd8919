"""What a job brought back, over the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO

from agentlab.api.call import Call, Reply
from agentlab.api.stream import SAFE, send_bytes
from agentlab.errors import ResultMissing
from agentlab.model.artifact import Artifact
from agentlab.wire import requests, responses

CHUNK_BYTES = 512 << 10
BUNDLE, PATCH = "result.bundle", "result.patch"  # as the guest protocol names the work


async def output(call: Call) -> Reply:
    """GET /v1/jobs/{job}/output"""
    query: requests.ReadOutput = call.query
    data = await asyncio.to_thread(call.services.jobs.output, call.target.id, query.offset, query.limit)
    size = call.services.jobs.output_size(call.target.id)
    return Reply(body=data, headers=((b"output-size", str(size).encode()), *SAFE))


async def artifacts(call: Call) -> responses.Artifacts:
    """GET /v1/jobs/{job}/artifacts"""
    found = call.services.jobs.artifacts(call.target.id)
    return responses.Artifacts(items=[responses.Artifact.of(each) for each in found])


async def artifact(call: Call) -> None:
    """GET /v1/jobs/{job}/artifacts/{name}"""
    await _send(call, call.services.jobs.artifact(call.target.id, call.parameters["name"]))


async def patch(call: Call) -> None:
    """GET /v1/jobs/{job}/patch"""
    await _send(call, call.services.jobs.artifact(call.target.id, PATCH))


async def bundle(call: Call) -> None:
    """GET /v1/jobs/{job}/bundle"""
    await _send(call, call.services.jobs.artifact(call.target.id, BUNDLE))


async def _send(call: Call, found: Artifact) -> None:
    try:
        file = call.services.blobs.open(found.digest)
    except FileNotFoundError:
        raise ResultMissing(job=call.target.id, what=found.name, cause="its content is no longer kept") from None
    with file:
        headers = ((b"digest-sha256", found.digest.encode()), (b"content-disposition", b"attachment"))
        await send_bytes(call, found.bytes_count, _chunks(file, found.bytes_count), headers)


async def _chunks(file: BinaryIO, length: int) -> AsyncIterator[bytes]:
    while length > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, length))):
        length -= len(chunk)
        yield chunk
