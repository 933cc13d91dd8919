"""Uploads over the API."""

from __future__ import annotations

import asyncio

from agentlab.api.call import Call, CallerGone, Reply
from agentlab.errors import Invalid, NotFound, TooLarge
from agentlab.model.ids import Digest, is_digest
from agentlab.store.upload import Upload
from agentlab.wire.requests import BLOB_BYTES_MAX
from agentlab.wire.responses import Blob

WRITE_BYTES = 1 << 20  # gathered before a thread writes them


async def put(call: Call) -> Blob:
    """PUT /v1/blobs/{digest}"""
    digest = _digest(call)
    if call.services.blobs.has(digest):
        await _swallow(call)
        return Blob(digest=digest, bytes_count=call.services.blobs.size(digest))
    if int(call.headers.get(b"content-length", b"0")) > BLOB_BYTES_MAX:
        raise TooLarge(what="The upload", limit_name="BLOB_BYTES_MAX", limit=BLOB_BYTES_MAX)
    upload = call.services.blobs.begin(BLOB_BYTES_MAX, limit_name="BLOB_BYTES_MAX")
    try:
        await _receive(call, upload)
        try:
            await asyncio.to_thread(upload.finish, digest)
        except ValueError as error:
            raise Invalid(cause=str(error)) from None
    finally:
        upload.abandon()
    return Blob(digest=digest, bytes_count=upload.offset)


async def head(call: Call) -> Reply:
    """HEAD /v1/blobs/{digest}"""
    digest = _digest(call)
    if not call.services.blobs.has(digest):
        raise NotFound(noun="blob", name=digest, hint="")
    return Reply()


def _digest(call: Call) -> Digest:
    text = call.parameters["digest"]
    if not is_digest(text):
        raise Invalid(cause="digest: not a SHA-256 in lower-case hex")
    return Digest(text)


async def _receive(call: Call, upload: Upload) -> None:
    gathered = bytearray()
    while True:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        gathered += message.get("body", b"")
        more = message.get("more_body", False)
        if len(gathered) >= WRITE_BYTES or not more:
            chunk, gathered = gathered, bytearray()
            await asyncio.to_thread(upload.write, chunk)
        if not more:
            return


async def _swallow(call: Call) -> None:
    while (message := await call.receive())["type"] != "http.disconnect" and message.get("more_body", False):
        pass
