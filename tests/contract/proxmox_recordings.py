"""The state in which each recording began, and what happened between its rows."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from tests.contract.proxmox_replay import Replay, Row, recorded

from agentlab.testing.proxmox.access import Caller, Pool, Token, User
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.simulated_guests import SimulatedGuests
from agentlab.testing.proxmox.state import Power, Vm
from agentlab.testing.proxmox.storage import Store, Volume
from agentlab.testing.proxmox.tasks import Task

RECORDER = "root@pam!rec"
ADMINISTRATION = re.compile(r"/access/|/pools$|/storage$|/storage/\w+$|/cluster/|/nodes/pve1/(network|sdn)")
EVERYTHING = "images,iso,vztmpl,backup,snippets,import,rootdir"
# Options by the token of root where the path and note do not say so.
BY_ROOT = frozenset({686, 699, 934, 940})
BY_TOKEN = frozenset({941})
FILE = "/var/lib/vz"


def administrator(rows: list[Row]) -> Any:
    """The first recording: everything by a token of root."""

    def who(index: int, row: Row) -> str:
        return {"no auth": "", "bad token": "PVEAPIToken=root@pam!rec=wrong"}.get(row["note"], RECORDER)

    def build(cluster: Cluster, guests: SimulatedGuests) -> Replay:
        _stores(
            cluster,
            {
                "local": (False, FILE, "iso,snippets,rootdir,import,vztmpl,backup,images"),
                "sh": (True, "/shared", "images,import,snippets,iso"),
            },
        )
        cluster.name = "rig"
        cluster.access.pools["cp"] = Pool(comment="x")
        cluster.access.users["cp@pve"] = User(tokens={"t1": Token(secret="t1")})
        cluster.access.roles["CP"] = frozenset(
            {"Datastore.AllocateSpace", "SDN.Use", "VM.Allocate", "VM.Audit", "VM.Clone"}
        )
        for entry in rows[20]["body"]["data"]:
            cluster.access.set_acl(entry["path"], entry["type"], entry["ugid"], entry["roleid"], entry["propagate"])
        cluster.firewall.options = {"enable": 1, "policy_in": "ACCEPT"}
        cluster.firewall.groups["cp-web"], cluster.firewall.group_comments["cp-web"] = [], "x"
        cluster.firewall.ipsets["cp-allow"] = {}
        template = {key: value for key, value in rows[34]["body"]["data"].items() if key != "digest"}
        for row in rows[11]["body"]["data"]:
            _volume(cluster.stores["local"], row)
        for row in rows[4]["body"]["data"]:
            if row["type"] == "qemu":
                _vm(cluster, row, template)
        for row in (*reversed(rows[15]["body"]["data"]), *reversed(rows[5]["body"]["data"])):
            _past(cluster, row)
        return Replay(rows=rows, cluster=cluster, guests=guests, who=who)

    return build


def least_privilege(rows: list[Row]) -> Any:
    """The second recording: set up by a token of root, used by a token with few rights."""

    def who(index: int, row: Row) -> str:
        note, path = row["note"], row["path"]
        made = re.match(r"UPID:.*:([^:]+):$", str((row["body"] or {}).get("data"))) if row["body"] else None
        if made:
            return made[1]
        if note.startswith("auth header"):
            stated = note.removeprefix("auth header ")
            return (
                stated.replace("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", "secret-of-t1")
                if stated.startswith("PVEAPIToken lp@pve!t1")
                else stated
            )
        if "privsep token" in note or note in ("expired token", "expire=0 again", "expired user", "deleted token"):
            return "ns@pve!p1"
        if note == "new secret after regenerate":
            return "u1@pve!a1"
        if note in ("ticket write with CSRF", "ticket without CSRF", "ticket bad CSRF", "bad ticket"):
            return "ticket"
        if index in BY_ROOT or index < 30 or note == "token for unknown user":
            return RECORDER
        if row["status"] == 403 or "LP" in note.split() or note == "as token" or index in BY_TOKEN or "without" in note:
            return "lp@pve!t1"
        return RECORDER if ADMINISTRATION.match(path) else "lp@pve!t1"

    def build(cluster: Cluster, guests: SimulatedGuests) -> Replay:
        _stores(cluster, {"local": (False, FILE, "snippets,images,rootdir,vztmpl,iso,backup")})
        cluster.stores["local"].settings |= {"priority": 0}
        for name, kind, size in (("import/deb12.qcow2", "qcow2", 487_456_768), ("iso/x.iso", "iso", 409_600)):
            volume = Volume(own=name, content=name.partition("/")[0], format=kind, size=size, used=3 << 30, ctime=1)
            cluster.stores["local"].on("pve1")[name] = volume
        cluster.nodes[
            "pve1"
        ].reload_error = (
            "incompatible 'ifupdown2' package version '3.0.0-1.3'! Did you install from Proxmox repositories?"
        )
        replay = Replay(rows=rows, cluster=cluster, guests=guests, who=who)
        replay.hidden = _between(rows)
        return replay

    return build


def _between(rows: list[Row]) -> dict[int, Any]:
    """What was done without being recorded, by the row that it came before."""
    acts: dict[int, Any] = {}
    base: set[str] = set()

    async def token(replay: Replay) -> None:
        replay.cluster.access.users["lp@pve"].tokens["t1"] = Token(secret="secret-of-t1")

    async def second_token(replay: Replay) -> None:
        replay.cluster.access.users["ns@pve"].tokens["p1"] = Token(secret="secret-of-p1")

    async def bystander(replay: Replay) -> None:
        await replay.call("POST", "/nodes/pve1/qemu/9001/clone", newid=463, pool="cp")
        await replay.call("PUT", "/nodes/pve1/qemu/463/config", cores=2)

    async def fewer_rights(replay: Replay) -> None:
        role = replay.cluster.access.roles["CPL"]
        replay.cluster.access.roles["CPL"] = role - {"Datastore.Allocate"}

    async def without_csrf(replay: Replay) -> None:
        replay.ticket.pop("csrfpreventiontoken")

    async def bad_csrf(replay: Replay) -> None:
        replay.ticket["csrfpreventiontoken"] = "bad"

    async def bad_ticket(replay: Replay) -> None:
        replay.ticket["cookie"] = "PVEAuthCookie=PVE:u1@pve:00000000::bad"

    async def a_while(replay: Replay) -> None:
        await asyncio.sleep(2)  # the recorder waited for its clone

    async def enabled(replay: Replay) -> None:
        replay.cluster.access.users["ns@pve"].enable = 1

    acts |= {7: token, 366: second_token, 747: fewer_rights, 800: bystander}
    acts |= {315: without_csrf, 316: bad_csrf, 317: bad_ticket, 392: enabled, 652: a_while}
    for index, row in enumerate(rows):
        if "Invalid parameter 'pid'" in row["reason"] and rows[index - 1]["path"].endswith("/agent/exec"):
            acts[index] = _read_before(row)
        lacking = re.search(r"without ([A-Z][\w.+]+\.[\w.+]+)", row["note"])
        if index < 800:
            continue
        if lacking:
            acts[index] = _role_without(base, set(lacking[1].split("+")))
        elif index and re.search(r"without ([A-Z][\w.+]+\.[\w.+]+)", rows[index - 1]["note"]):
            acts[index] = _role_without(base, set())
    return acts


def _read_before(row: Row) -> Any:
    """The recorder had read the result of a command once before."""

    async def act(replay: Replay) -> None:
        await asyncio.sleep(1)
        pid = replay.pids[row["path"].removesuffix("-status"), row["params"]["pid"]]
        await replay.call("GET", row["path"], pid=pid)

    return act


def _role_without(base: set[str], lacking: set[str]) -> Any:
    """The role of the token lacks some privileges for a while."""

    async def act(replay: Replay) -> None:
        roles = replay.cluster.access.roles
        base.update(roles["CPL"] if not base else ())
        roles["CPL"] = frozenset(base - lacking)

    return act


def _stores(cluster: Cluster, wanted: dict[str, tuple[bool, str, str]]) -> None:
    for name, (shared, path, content) in wanted.items():
        cluster.stores[name] = Store(name=name, type="dir", content=content.split(","), shared=shared, path=path)
        if name == "local":
            cluster.stores[name].settings["prune-backups"] = "keep-all=1"


def _volume(store: Store, row: Row) -> None:
    name = row["volid"].partition(":")[2]
    parts = name.split("/")
    own, parent = "/".join(parts[-2:]), "/".join(parts[:-2]) or None
    store.on("pve1")[own] = Volume(
        own=own, parent=parent, content=row["content"], format=row["format"], size=row["size"], ctime=row["ctime"],
        vmid=row.get("vmid"), used=row.get("used", 3 << 30),
    )  # fmt: skip


def _vm(cluster: Cluster, row: Row, template: Row) -> None:
    vmid = row["vmid"]
    config = {**template, "name": row["name"]} if vmid != 170 else {"name": "mig", "memory": "128", "cores": 1}
    if vmid not in (170, 9000):
        config.pop("template")
        config["scsi0"] = f"local:9000/base-9000-disk-0.qcow2/{vmid}/vm-{vmid}-disk-0.qcow2,size=3G"
    vm = Vm(vmid=vmid, node=row["node"], config=config)
    if row["status"] == "running":
        vm.power = Power.RUNNING
    cluster.vms[vmid] = vm


def _past(cluster: Cluster, row: Row) -> None:
    if row["upid"] in cluster.tasks.tasks:
        return
    task = Task(
        upid=row["upid"], node=row["node"], pid=row.get("pid", 1), pstart=row.get("pstart", 1),
        starttime=row["starttime"], type=row["type"], id=row["id"],
        caller=Caller(user=row["user"], token=row.get("tokenid")),
    )  # fmt: skip
    task.exitstatus, task.endtime = row["status"], row["endtime"]
    cluster.tasks.tasks[row["upid"]] = task


def rows_of(name: str) -> list[Row]:
    """The rows of a recording."""
    return recorded(name)
