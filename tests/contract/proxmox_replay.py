"""Replays recorded exchanges with a real Proxmox VE against the simulated one, on virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import lzma
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from agentlab.base.entropy import SeededEntropy
from agentlab.base.tasks import TaskScope
from agentlab.testing.proxmox.access import ROOT, Token
from agentlab.testing.proxmox.api import Api
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.codec import PREFIX, Answer, Request
from agentlab.testing.proxmox.guests import GuestMachine
from agentlab.testing.proxmox.images import small_qcow2
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.simulated_guests import SimulatedGuests
from agentlab.testing.simloop import SimClock, SimLoop

FIXTURES = Path(__file__).parents[1] / "fixtures" / "proxmox"
UPID = re.compile(r"UPID:[^/]*?:[0-9A-F]{8}:[0-9A-F]{8}:([0-9A-F]{8}):\w+:[^:]*:([^:/]+):")
BOOT_S = 30.0
TASK_S_MAX = 300.0
LATENCY = Latency(
    work={
        **dict.fromkeys(("qmclone", "qmcreate", "qmstart", "qmsnapshot", "qmrollback"), (0.3, 0.4)),
        **dict.fromkeys(("qmconfig", "qmdestroy", "qmtemplate", "qmstop", "resize", "qmmove", "qmdelsnapshot"), (0.1,
        0.2)),
        **dict.fromkeys(("qmshutdown", "qmreboot", "qmreset", "qmpause", "qmresume", "qmsuspend"), (0.1, 0.2)),
        **dict.fromkeys(("imgcopy", "imgdel", "agent", "reload"), (0.05, 0.1)),
        "agent-absent": (3.0, 3.1),
        "fork": (0.005, 0.01),
        "reap": (0.1, 0.2),
    },
    refused_s=3.0,
)  # fmt: skip
HEADER = "PVEAPIToken={}={}"

Row = dict[str, Any]
Act = Callable[["Replay"], Awaitable[None]]


def recorded(name: str) -> list[Row]:
    """The exchanges of one recording, in their order."""
    with lzma.open(FIXTURES / f"{name}.jsonl.xz", "rt") as lines:
        return [json.loads(line) for line in lines]


@dataclass(kw_only=True)
class Replay:
    """One recording and the cluster that answers it."""

    rows: list[Row]
    cluster: Cluster
    guests: SimulatedGuests
    who: Callable[[int, Row], str]  # `user@realm!token`, or a header as it stands, or empty
    hidden: dict[int, Act] = field(default_factory=dict)  # what was done before a row and is not in the recording
    upids: dict[str, str] = field(default_factory=dict)
    pids: dict[tuple[str, int], int] = field(default_factory=dict)
    ticket: dict[str, str] = field(default_factory=dict)
    epoch: float | None = None

    async def answers(self) -> Iterator[tuple[int, Row, Answer]]:
        """Every row with what the simulator answers."""
        api, found = Api(self.cluster), []
        for index, row in enumerate(self.rows):
            await asyncio.sleep(0.05)
            if index in self.hidden:
                await self.hidden[index](self)
            await self._prepare(index, row)
            answer = await api.handle(self._request(index, row))
            self._learn(index, row, answer)
            found.append((index, row, answer))
        return iter(found)

    async def call(self, method: str, path: str, **params: Any) -> Answer:
        """A call of the administrator that is not in the recording; waits for its task."""
        row = {"method": method, "path": path, "params": params}
        answer = await Api(self.cluster).handle(self._built(row, self.header("root@pam!rec"), params))
        data = answer.json()["data"]
        if isinstance(data, str) and data.startswith("UPID"):
            await self.cluster.tasks.tasks[data].ended.wait()
        return answer

    def header(self, whom: str) -> dict[str, str]:
        """How somebody says who they are."""
        if whom == "ticket":
            return self.ticket
        user, bang, name = whom.partition("!")
        if not bang or " " in whom or "=" in whom:
            return {"authorization": whom} if whom else {}
        token = self.cluster.access.users[user].tokens.get(name)
        return {"authorization": HEADER.format(whom, token.secret if token else "gone")}

    async def _prepare(self, index: int, row: Row) -> None:
        """Let time pass as the recording says it did."""
        if (task := UPID.search(unquote(row["path"]))) and row["note"].startswith(("final of", "log of")):
            ours = self.cluster.tasks.tasks.get(self.upids.get(task[0], ""))
            if ours is None:
                return
            async with asyncio.timeout(TASK_S_MAX):
                await ours.ended.wait()
        elif started := UPID.match(str(_data(row) or "")):
            then = int(started[1], 16)
            if self.epoch is None:
                self.epoch = then - self.cluster.clock.now()
            await asyncio.sleep(max(0.0, then - self.epoch - self.cluster.clock.now()))
            self._arm(index, started[0])
        if row["note"].startswith("agent up"):
            await asyncio.sleep(BOOT_S)
        if row["path"].endswith("/agent/exec") and row["status"] in (200, 596):
            await self._until_up(row)
            self._script(index, row)
        if row["path"].endswith("/agent/exec-status"):
            await asyncio.sleep(1.0)
            if (_data(row) or {}).get("exited"):
                self._finish(row)

    def _arm(self, index: int, upid: str) -> None:
        """Where a task met the clean-up of an old process, which is a race, let the lock be held as it was then."""
        vmid = re.search(r"/qemu/(\d+)", self.rows[index]["path"])
        ends = (
            row for row in self.rows[index + 1 :] if upid in unquote(row["path"]) and row["path"].endswith("/status")
        )
        met = any("can't lock file" in str(row["body"]["data"].get("exitstatus")) for row in ends)
        if met and vmid and not self.cluster.locks.of_vm(int(vmid[1])).taken:
            self.cluster.hold_lock(int(vmid[1]), 30)

    async def _until_up(self, row: Row) -> None:
        """The recorder waited for the agent before it used it."""
        guest = self.guests.guests[_vmid(row)]
        await asyncio.sleep(max(0.0, BOOT_S - (self.cluster.clock.monotonic() - guest.since)))

    def _finish(self, row: Row) -> None:
        """Let the command have ended by now, as it had then."""
        results = self.guests.guests[_vmid(row)].results
        for pid, (_, *rest) in list(results.items()):
            results[pid] = (0.0, *rest)

    def _script(self, index: int, row: Row) -> None:
        """Let the guest answer the next command as the recorded one did."""
        pid, result, polls = (_data(row) or {}).get("pid"), (0, b"", b""), 0
        for later in self.rows[index + 1 :]:
            if later["params"] != {"pid": pid} or later["status"] != 200 or not later["path"].startswith(row["path"]):
                continue
            data = _data(later) or {}
            if data.get("exited"):
                result = (data["exitcode"], data.get("out-data", "").encode(), data.get("err-data", "").encode())
                break
            polls += 1
        self.guests.run_s = 3600.0 if polls else 0.3
        self.guests.run = lambda machine, command, given: result

    def _request(self, index: int, row: Row) -> Request:
        params = row["params"]
        if row["path"].endswith("/agent/exec-status"):
            pid = params["pid"]
            params = {"pid": self.pids.get((row["path"].removesuffix("-status"), pid), pid)}
        return self._built(row, self.header(self.who(index, row)), params)

    def _built(self, row: Row, headers: dict[str, str], params: dict[str, Any] | None) -> Request:
        path = UPID.sub(lambda found: quote(self.upids.get(found[0], found[0]), safe=":"), unquote(row["path"]))
        path = path if UPID.search(unquote(row["path"])) else row["path"]
        if row["path"].endswith("/upload"):
            kind, body = _multipart(params or {}, row.get("note", ""))
            return Request(method="POST", target=PREFIX + path, headers=headers | {"content-type": kind}, body=body)
        form = "&".join(
            f"{name}={quote(str(each), safe='')}"
            for name, value in (params or {}).items()
            for each in (value if isinstance(value, list) else [value])
        )
        if row["method"] in ("GET", "DELETE"):
            target = path + (f"?{form}" if form else "")
            return Request(method=row["method"], target=PREFIX + target, headers=headers)
        headers = headers | {"content-type": "application/x-www-form-urlencoded"}
        return Request(method=row["method"], target=PREFIX + path, headers=headers, body=form.encode())

    def _learn(self, index: int, row: Row, answer: Answer) -> None:
        data = answer.json()["data"] if answer.body else None
        if isinstance(data, str) and data.startswith("UPID") and str(_data(row)).startswith("UPID"):
            self.upids[str(_data(row))] = data
        if row["path"].endswith("/agent/exec") and data and _data(row):
            self.pids[row["path"], _data(row)["pid"]] = data["pid"]
        if row["path"] == "/access/ticket" and data:
            self.ticket = {
                "cookie": f"PVEAuthCookie={quote(data['ticket'])}",
                "csrfpreventiontoken": data["CSRFPreventionToken"],
            }


def run(build: Callable[[Cluster, SimulatedGuests], Replay], nodes: tuple[str, ...]) -> list[tuple[int, Row, Answer]]:
    """Replay on a loop of virtual time; every row with its answer."""
    loop = SimLoop()

    async def all_rows() -> list[tuple[int, Row, Answer]]:
        clock = SimClock(loop)
        async with TaskScope("cluster") as scope:
            guests = SimulatedGuests(clock=clock, boot_s=BOOT_S, boots=_has_system)
            cluster = Cluster(
                version="9.2", nodes=nodes, clock=clock, entropy=SeededEntropy(1), scope=scope, guests=guests,
                latency=LATENCY,
            )  # fmt: skip
            for node in cluster.nodes.values():
                node.hidden_bridges = frozenset({"vmbr0"})  # it was there, but not in the file of interfaces
            cluster.access.users[ROOT].tokens["rec"] = Token(secret="recorder", privsep=0)
            return list(await build(cluster, guests).answers())

    try:
        return loop.run_until_complete(all_rows())
    finally:
        loop.close()


def _has_system(machine: GuestMachine) -> bool:
    """The recorded guests of template 9000 had a Debian on their disks, those of 9001 and 9100 nothing."""
    return any("base-9000-disk" in disk.volid for disk in machine.disks)


def _vmid(row: Row) -> int:
    return int(row["path"].split("/")[4])


def _data(row: Row) -> Any:
    return row["body"].get("data") if isinstance(row["body"], dict) else None


def _multipart(params: dict[str, Any], note: str) -> tuple[str, bytes]:
    body = b"garbage" if "garbage" in note else small_qcow2(64 << 20)
    if params["content"] == "iso":
        body = bytes(376_832)
    fields = {name: str(params[name]) for name in ("content", "checksum-algorithm", "checksum") if name in params}
    if "checksum ok" in note:
        fields["checksum"] = hashlib.sha256(body).hexdigest()
    parts = [f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
    head = f'--b\r\nContent-Disposition: form-data; name="filename"; filename="{params["filename"]}"\r\n\r\n'
    return 'multipart/form-data; boundary="b"', "".join(parts).encode() + head.encode() + body + b"\r\n--b--\r\n"
