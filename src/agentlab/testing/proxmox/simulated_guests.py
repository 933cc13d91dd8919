"""Guests that are only pretended: they boot, have an agent with files, and answer commands as a test says."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlab.base.clock import Clock, sleep
from agentlab.testing.proxmox.guests import AgentAbsent, AgentFailed, GuestDisk, GuestMachine, GuestNic

if TYPE_CHECKING:
    from agentlab.testing.proxmox.cluster import Cluster

Answering = Callable[[GuestMachine, list[str], bytes], tuple[int, bytes, bytes]]


def nothing(_machine: GuestMachine, _command: list[str], _given: bytes) -> tuple[int, bytes, bytes]:
    """A command that does nothing and succeeds."""
    return 0, b"", b""


@dataclass(slots=True, kw_only=True)
class _Guest:
    machine: GuestMachine
    since: float
    paused: bool = False
    woken: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    results: dict[int, tuple[float, int, bytes, bytes]] = field(default_factory=dict)
    pid: int = 400


@dataclass(slots=True, kw_only=True)
class SimulatedGuests:
    """Guests that boot after `boot_s`, have an agent with files, and answer commands by `run`.

    `boots` says for a machine whether there is an operating system on its disks; without one it runs for ever, has
    no agent and does not react to a shutdown.  `agent_delay_s` makes an agent slow, `run_s` a command.
    """

    clock: Clock
    boot_s: float = 0.0
    run_s: float = 0.0
    agent_delay_s: float = 0.0
    boots: Callable[[GuestMachine], bool] = lambda machine: True
    run: Answering = nothing
    missing: frozenset[str] = frozenset({"/nonexistent"})
    guests: dict[int, _Guest] = field(default_factory=dict)

    async def opened(self, cluster: Cluster) -> None:
        return None

    async def closed(self) -> None:
        return None

    async def started(self, machine: GuestMachine) -> None:
        woken = "vmstate" in machine.config
        self.guests[machine.vmid] = _Guest(machine=machine, since=self.clock.monotonic(), woken=woken)

    async def stopped(self, vmid: int) -> None:
        self.guests.pop(vmid, None)

    async def shut_down(self, vmid: int, timeout_s: float) -> bool:
        if not self._up(vmid):
            return False
        self.guests.pop(vmid, None)
        return True

    async def reset(self, vmid: int) -> None:
        if vmid in self.guests:
            self.guests[vmid].since, self.guests[vmid].woken = self.clock.monotonic(), False

    async def paused(self, vmid: int) -> None:
        self.guests[vmid].paused = True

    async def resumed(self, vmid: int) -> None:
        self.guests[vmid].paused = False

    async def plugged(self, vmid: int, disk: GuestDisk) -> None:
        return None

    async def unplugged(self, vmid: int, key: str) -> None:
        return None

    async def rewired(self, vmid: int, nic: GuestNic) -> None:
        return None

    async def saved(self, vmid: int, state: Path | None) -> None:
        if state is not None:
            state.write_bytes(b"")

    async def agent(self, vmid: int, command: str, arguments: Mapping[str, Any]) -> Any:
        guest = self.guests.get(vmid)
        if guest is None or not self._up(vmid) or not guest.machine.agent or guest.paused:
            raise AgentAbsent
        answer = _ANSWERS.get(command)
        if answer is None:
            raise AgentFailed(f"The command {command} has not been found")
        found = answer(self, guest, arguments)
        if self.agent_delay_s:
            await sleep(self.agent_delay_s)
        return found

    async def disk_made(self, path: Path, kind: str, size_bytes: int) -> None:
        path.touch()

    async def disk_linked(self, base: Path, path: Path) -> None:
        path.touch()

    async def disk_copied(self, source: Path, source_kind: str, path: Path, kind: str) -> None:
        path.write_bytes(source.read_bytes())

    async def disk_grown(self, path: Path, kind: str, size_bytes: int) -> None:
        return None

    async def disk_kept(self, path: Path, name: str) -> None:
        return None

    async def disk_returned(self, path: Path, name: str) -> None:
        return None

    async def disk_dropped(self, path: Path, name: str) -> None:
        return None

    def _up(self, vmid: int) -> bool:
        guest = self.guests.get(vmid)
        if guest is None or not self.boots(guest.machine):
            return False
        return guest.woken or self.clock.monotonic() - guest.since >= self.boot_s


def _exec(host: SimulatedGuests, guest: _Guest, arguments: Mapping[str, Any]) -> dict[str, Any]:
    path = str(arguments["path"])
    if path in host.missing or " " in path:
        raise AgentFailed(f"Failed to execute child process “{path}” (No such file or directory)")
    given = base64.b64decode(arguments.get("input-data", ""))
    status, out, err = host.run(guest.machine, [path, *arguments.get("arg", [])], given)
    guest.pid += 7
    guest.results[guest.pid] = (host.clock.monotonic() + host.run_s, status, out, err)
    return {"pid": guest.pid}


def _exec_status(host: SimulatedGuests, guest: _Guest, arguments: Mapping[str, Any]) -> dict[str, Any]:
    pid = int(arguments["pid"])
    if pid not in guest.results:
        raise AgentFailed("Invalid parameter 'pid'")
    ready, status, out, err = guest.results[pid]
    if host.clock.monotonic() < ready:
        return {"exited": False}
    del guest.results[pid]  # an answer is given once
    found: dict[str, Any] = {"exited": True, "exitcode": status}
    for name, text in (("out", out), ("err", err)):
        if text:
            found |= {f"{name}-data": base64.b64encode(text).decode(), f"{name}-truncated": False}
    return found


def _file_read(_host: SimulatedGuests, guest: _Guest, arguments: Mapping[str, Any]) -> dict[str, Any]:
    path = str(arguments["path"])
    if path not in guest.files:
        raise AgentFailed(f"failed to open file '{path}' (mode: 'r'): No such file or directory")
    return {"count": len(guest.files[path]), "buf-b64": base64.b64encode(guest.files[path]).decode(), "eof": True}


def _file_write(_host: SimulatedGuests, guest: _Guest, arguments: Mapping[str, Any]) -> dict[str, Any]:
    guest.files[str(arguments["path"])] = base64.b64decode(str(arguments["buf-b64"]))
    return {}


def _interfaces(_host: SimulatedGuests, guest: _Guest, _arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [_interface("lo", "00:00:00:00:00:00", [("127.0.0.1", "ipv4", 8), ("::1", "ipv6", 128)])]
    for index, nic in enumerate(guest.machine.nics):
        settings = str(guest.machine.config.get(f"ipconfig{index}", ""))
        address = settings.partition("ip=")[2].partition(",")[0]
        own = (
            [(address.partition("/")[0], "ipv4", int(address.partition("/")[2] or 24))] if address[:1].isdigit() else []
        )
        found.append(_interface(f"eth{index}", nic.mac.lower(), [*own, ("fe80::1", "ipv6", 64)]))
    return found


def _interface(name: str, mac: str, addresses: list[tuple[str, str, int]]) -> dict[str, Any]:
    counters = (f"{way}-{what}" for way in ("rx", "tx") for what in ("bytes", "dropped", "errs", "packets"))
    return {
        "name": name,
        "hardware-address": mac,
        "ip-addresses": [{"ip-address": ip, "ip-address-type": kind, "prefix": bits} for ip, kind, bits in addresses],
        "statistics": dict.fromkeys(counters, 0),
    }


_COMMANDS = (
    "guest-ping", "guest-info", "guest-exec", "guest-exec-status", "guest-file-open", "guest-file-read",
    "guest-file-write", "guest-file-close", "guest-network-get-interfaces", "guest-get-osinfo", "guest-get-host-name",
    "guest-get-time", "guest-get-vcpus", "guest-get-fsinfo", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw",
)  # fmt: skip
_SYSTEM = {
    "id": "debian", "kernel-release": "6.1.0-simulated", "kernel-version": "#1 SMP", "machine": "x86_64",
    "name": "Debian GNU/Linux", "pretty-name": "Debian GNU/Linux 12 (bookworm)", "version": "12 (bookworm)",
    "version-id": "12",
}  # fmt: skip
_FILE_SYSTEM = {
    "disk": [{
        "bus": 0, "bus-type": "scsi", "dev": "/dev/sda1", "serial": "0QEMU_QEMU_HARDDISK_drive-scsi0", "target": 0,
        "unit": 0, "pci-controller": {"bus": 1, "domain": 0, "function": 0, "slot": 1},
    }],
    "mountpoint": "/", "name": "sda1", "total-bytes": 2_920_013_824, "type": "ext4", "used-bytes": 490_311_680,
}  # fmt: skip
_ANSWERS: dict[str, Callable[[SimulatedGuests, _Guest, Mapping[str, Any]], Any]] = {
    "guest-ping": lambda host, guest, arguments: {},
    "guest-info": lambda host, guest, arguments: {
        "version": "7.2.0",
        "supported_commands": [{"enabled": True, "name": name, "success-response": True} for name in _COMMANDS],
    },
    "guest-exec": _exec,
    "guest-exec-status": _exec_status,
    "guest-file-read": _file_read,
    "guest-file-write": _file_write,
    "guest-network-get-interfaces": _interfaces,
    "guest-get-osinfo": lambda host, guest, arguments: _SYSTEM,
    "guest-get-host-name": lambda host, guest, arguments: {"host-name": guest.machine.name},
    "guest-get-time": lambda host, guest, arguments: int(host.clock.now() * 1e9),
    "guest-get-vcpus": lambda host, guest, arguments: [
        {"can-offline": False, "logical-id": n, "online": True} for n in range(guest.machine.cores)
    ],
    "guest-get-fsinfo": lambda host, guest, arguments: [_FILE_SYSTEM],
    "guest-fsfreeze-freeze": lambda host, guest, arguments: 1,
    "guest-fsfreeze-thaw": lambda host, guest, arguments: 1,
}
