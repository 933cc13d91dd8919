"""Methods that ask a VM's guest agent, and those of its consoles, which end in nothing here."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from typing import Any

from agentlab.testing.proxmox import views
from agentlab.testing.proxmox.guests import AgentAbsent, AgentFailed
from agentlab.testing.proxmox.kinds import FLAG, WORDS, integer, need, newer, one_of, text
from agentlab.testing.proxmox.method import VM, Call, Method, agent, on
from agentlab.testing.proxmox.refusal import Refused

AGENT_S_MAX = 5.0
WRITE_CHARACTERS_MAX = 61_440
INPUT_CHARACTERS_MAX = 65_536
READ_BYTES_MAX = 16 << 20
BROKEN = Refused("Broken pipe", status=596, bare=True)  # what becomes of an answer with other than Latin-1 letters


async def _ask(call: Call, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
    vm, cluster = call.vm(), call.cluster
    if not views.agent_enabled(vm.config):
        raise Refused("No QEMU guest agent configured")
    if not vm.running:
        raise Refused(f"VM {vm.vmid} is not running")
    try:
        async with asyncio.timeout(AGENT_S_MAX):
            found = await cluster.guests.agent(vm.vmid, command, arguments or {})
    except TimeoutError:  # which says nothing about the effect
        raise Refused(f"VM {vm.vmid} qga command '{command}' failed - got timeout") from None
    except AgentAbsent:
        await cluster.spend("agent-absent")
        raise Refused("QEMU guest agent is not running") from None
    except AgentFailed as error:
        await cluster.spend("agent")
        if not str(error).isascii():
            await cluster.spend("exec-missing")
            raise BROKEN from None
        raise Refused(f"Agent error: {error}") from None
    await cluster.spend("agent")
    return found


def _plain(verb: str, name: str, privilege: str = "Audit") -> Method:
    """A command without parameters, whose value stands under `result`."""

    async def handler(call: Call) -> Any:
        return {"result": await _ask(call, f"guest-{name}")}

    path = f"{VM}/agent/{name}"
    return Method(verb=verb, path=path, handler=handler, allow=agent(privilege), writes=False)


async def _exec(call: Call) -> Any:
    command = call.values["command"]
    arguments: dict[str, Any] = {"path": command[0], "arg": command[1:], "capture-output": True}
    if "input-data" in call.values:
        arguments["input-data"] = base64.b64encode(call.values["input-data"].encode()).decode()
    return {"pid": (await _ask(call, "guest-exec", arguments))["pid"]}


async def _exec_status(call: Call) -> Any:
    """Flags as 0 and 1, outputs as text."""
    found = await _ask(call, "guest-exec-status", {"pid": call.values["pid"]})
    answer: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, bool):
            answer[name] = int(value)
        elif name.endswith("-data"):
            answer[name] = base64.b64decode(value).decode("utf-8", errors="replace")
        else:
            answer[name] = value
    return answer


async def _file_read(call: Call) -> Any:
    values = call.values
    asked = {"path": values["file"], "count": values.get("count", READ_BYTES_MAX)}
    found = await _ask(call, "guest-file-read", asked)
    body = base64.b64decode(found["buf-b64"])
    content = body.decode("utf-8", errors="replace") if values.get("decode", 1) else found["buf-b64"]
    answer: dict[str, Any] = {"bytes-read": len(body), "content": content}
    return answer | ({} if found.get("eof", True) else {"truncated": 1})


async def _file_write(call: Call) -> Any:
    content = call.values["content"]
    encoded = base64.b64encode(content.encode()).decode() if call.values.get("encode", 1) else content
    if not re.fullmatch(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", encoded):
        raise Refused("Agent error: Invalid base64 data")
    await _ask(call, "guest-file-write", {"path": call.values["file"], "buf-b64": encoded})


async def _console(call: Call) -> Any:
    call.vm()
    raise Refused("Timeout while waiting for port '5900' to get ready!")


async def _figures(call: Call) -> Any:
    call.vm()
    return []


_FILE = {"file": need(text())}
_READ = {"count": newer(integer(1, READ_BYTES_MAX)), "decode": newer(FLAG), "offset": newer(integer(0))}
_A = f"{VM}/agent"
METHODS = (
    _plain("POST", "ping"),
    _plain("GET", "info"),
    _plain("GET", "network-get-interfaces"),
    *(_plain("GET", f"get-{what}") for what in ("osinfo", "host-name", "fsinfo", "time", "vcpus")),
    Method(verb="POST", path=f"{_A}/exec", handler=_exec, allow=agent("Unrestricted"), writes=False, params={
        "command": need(WORDS), "input-data": text(INPUT_CHARACTERS_MAX),
    }),
    Method(verb="GET", path=f"{_A}/exec-status", handler=_exec_status, allow=agent("Unrestricted"), params={
        "pid": need(integer()),
    }),
    Method(verb="GET", path=f"{_A}/file-read", handler=_file_read, allow=agent("FileRead"), params=_FILE | _READ),
    Method(verb="POST", path=f"{_A}/file-write", handler=_file_write, allow=agent("FileWrite"), writes=False, params={
        **_FILE, "content": need(text(WRITE_CHARACTERS_MAX)), "encode": FLAG,
    }),
    Method(verb="POST", path=f"{VM}/termproxy", handler=_console, allow=on("/vms/{vmid}", "VM.Console"), params={
        "serial": one_of("serial0", "serial1", "serial2", "serial3"),
    }),
    Method(verb="POST", path=f"{VM}/vncproxy", handler=_console, allow=on("/vms/{vmid}", "VM.Console"), params={
        "websocket": FLAG, "generate-password": FLAG,
    }),
    Method(verb="GET", path=f"{VM}/rrddata", handler=_figures, allow=on("/vms/{vmid}", "VM.Audit"), params={
        "timeframe": need(one_of("hour", "day", "week", "month", "year")), "cf": one_of("AVERAGE", "MAX"),
    }),
)  # fmt: skip
