"""The QEMU guest agent of a real guest, asked over the socket of its channel."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from agentlab.testing.proxmox.guests import AgentAbsent, AgentFailed

ANSWER_S_MAX = 3.0  # as Proxmox VE waits for an agent that does not answer
READ_BYTES = 16 << 20


@dataclass(slots=True, kw_only=True)
class AgentChannel:
    """`socket` is QEMU's; one question at a time."""

    socket: Path
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    async def ask(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """The value that a command returns.  Raises AgentAbsent, AgentFailed."""
        async with self._one:
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    reader, writer = await asyncio.open_unix_connection(str(self.socket), limit=READ_BYTES)
                    try:
                        await self._awake(reader, writer)
                        return await _carried_out(reader, writer, command, arguments)
                    finally:
                        writer.close()
            except (OSError, TimeoutError, EOFError) as error:
                raise AgentAbsent from error

    async def _awake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass over whatever an earlier question left."""
        number = next(self._numbers)
        _say(writer, "guest-sync", {"id": number})
        while (await _heard(reader)).get("return") != number:
            continue


async def _carried_out(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str, arguments: Mapping[str, Any]
) -> Any:
    async def ask(name: str, given: Mapping[str, Any]) -> Any:
        _say(writer, name, given)
        answer = await _heard(reader)
        if "error" in answer:
            raise AgentFailed(str(answer["error"].get("desc", "")))
        return answer.get("return")

    if command not in ("guest-file-read", "guest-file-write"):
        return await ask(command, arguments)
    reads = command == "guest-file-read"
    handle = await ask("guest-file-open", {"path": arguments["path"], "mode": "r" if reads else "w"})
    try:
        if reads:
            return await ask(command, {"handle": handle, "count": READ_BYTES // 2})
        content = str(arguments["buf-b64"])
        base64.b64decode(content, validate=True)
        return await ask(command, {"handle": handle, "buf-b64": content})
    finally:
        await ask("guest-file-close", {"handle": handle})


def _say(writer: asyncio.StreamWriter, command: str, arguments: Mapping[str, Any]) -> None:
    said = {"execute": command} | ({"arguments": dict(arguments)} if arguments else {})
    writer.write(json.dumps(said).encode() + b"\n")


async def _heard(reader: asyncio.StreamReader) -> dict[str, Any]:
    line = await reader.readline()
    if not line:
        raise EOFError
    found = json.loads(line.lstrip(b"\xff"))
    return found if isinstance(found, dict) else {}
