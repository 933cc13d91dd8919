"""The cluster as two calls show it."""

from __future__ import annotations

import json
import random
import time

import pytest
from tests.unit.backends.proxmox import recordings

from agentlab.backends.proxmox.encode import Params
from agentlab.backends.proxmox.observe import VmStatus, observe, parse

VMS = 1000
PARSE_CPU_S_MAX = 0.1


def big_cluster(vms: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    chance = random.Random(1)
    nodes = [f"pve{n}" for n in range(1, 9)]
    resources: list[dict[str, object]] = [
        {"type": "node", "id": f"node/{name}", "node": name, "status": "online", "maxcpu": 64, "cpu": 0.1,
         "maxmem": 512 << 30, "mem": 9 << 30, "uptime": 1, "level": "", "cgroup-mode": 2, "disk": 1, "maxdisk": 2}
        for name in nodes
    ]  # fmt: skip
    resources += [
        {"type": "qemu", "id": f"qemu/{vmid}", "vmid": vmid, "node": chance.choice(nodes), "status": "running",
         "name": f"sb-{vmid}", "pool": "agentlab", "tags": "agentlab;prod", "template": 0, "cpu": 0.0141528350408785,
         "disk": 0, "diskread": 108708450, "diskwrite": 8896512, "maxcpu": 2, "maxdisk": 3221225472,
         "maxmem": 805306368, "mem": 187035648, "memhost": 0, "netin": 6017, "netout": 1610, "uptime": 497}
        for vmid in range(20000, 20000 + vms)
    ]  # fmt: skip
    tasks: list[dict[str, object]] = [
        {"upid": f"UPID:pve1:{n:08X}:0008EE52:6B049950:qmstart:{20000 + n}:a@pve!t:", "node": "pve1",
         "id": str(20000 + n), "type": "qmstart", "user": "a@pve", "tokenid": "t", "starttime": 1, "endtime": 2,
         "status": "OK", "saved": "1"}
        for n in range(200)
    ]  # fmt: skip
    return resources, tasks


def test_recorded_resources_are_understood() -> None:
    for answer in recordings.answered("GET", "/cluster/resources"):
        view = parse(answer, [], 1.0)

        seen = [row for row in answer if row["type"] == "qemu"]
        assert sorted(view.vms) == sorted(row["vmid"] for row in seen)
        assert {each.name for each in view.vms.values()} == {row.get("name", "") for row in seen}
        assert len(view.nodes) == sum(row["type"] == "node" for row in answer)
        assert len(view.storages) == sum(row["type"] == "storage" for row in answer)


def test_recorded_tasks_are_understood() -> None:
    answers = recordings.answered("GET", "/cluster/tasks")

    [longest] = [max(answers, key=len)]
    view = parse([], longest, 1.0)

    assert len(view.tasks) == len(longest) > 3
    assert {each.upid for each in view.tasks if each.runs} == {row["upid"] for row in longest if "endtime" not in row}


def test_a_vm_that_was_just_cloned_has_six_keys_and_is_unknown() -> None:
    row = {"id": "qemu/300", "node": "pve1", "pool": "cp", "status": "unknown", "type": "qemu", "vmid": 300}
    vm = parse([row], [], 1.0).vms[300]

    assert (vm.status, vm.name, vm.pool, vm.memory_bytes, vm.runs) == (VmStatus.UNKNOWN, "", "cp", 0, False)


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"status": "running"}, VmStatus.RUNNING),
        ({"status": "paused"}, VmStatus.PAUSED),
        ({"status": "paused", "lock": "suspended"}, VmStatus.HIBERNATED),
        ({"status": "stopped", "lock": "clone"}, VmStatus.STOPPED),
        ({"status": "prelaunch"}, VmStatus.UNKNOWN),
        ({}, VmStatus.UNKNOWN),
        ({"status": None}, VmStatus.UNKNOWN),
    ],
)
def test_power_is_read_from_status_and_lock(row: dict[str, object], status: VmStatus) -> None:
    assert parse([{"type": "qemu", "vmid": "300", **row}], [], 1.0).vms[300].status is status


def test_numbers_may_be_texts_and_what_is_unknown_is_passed_over() -> None:
    rows = [
        {"type": "qemu", "vmid": "300", "maxmem": "805306368", "template": "1", "new-key": [1], "tags": "a;b"},
        {"type": "lxc", "vmid": 301},
        {"type": "sdn", "sdn": "localnetwork"},
        {"type": "novelty"},
        "not a row",
        {"type": "qemu"},
    ]

    view = parse(rows, None, 1.0)

    assert (view.vms[300].memory_bytes, view.vms[300].template, view.vms[300].tags) == (805306368, True, ("a", "b"))
    assert view.vmids == {300, 301}


def test_a_node_in_maintenance_and_a_shared_storage_are_seen() -> None:
    rows = [
        {"type": "node", "node": "pve1", "status": "online", "hastate": "maintenance"},
        {"type": "node", "node": "pve2", "status": "unknown"},
        {"type": "storage", "storage": "nfs", "node": "pve1", "shared": 1, "status": "available",
         "content": "images,iso", "plugintype": "nfs", "maxdisk": 100, "disk": 30},
    ]  # fmt: skip

    view = parse(rows, [], 1.0)

    assert (view.nodes["pve1"].maintenance, view.nodes["pve2"].online) == (True, False)
    storage = view.storages["pve1", "nfs"]
    assert (storage.shared, storage.available, storage.content, storage.free_bytes) == (
        True, True, {"images", "iso"}, 70,
    )  # fmt: skip


def test_the_running_tasks_of_a_vm_are_found() -> None:
    tasks = [
        {"upid": "UPID:1", "id": "300", "type": "qmclone", "starttime": 1},
        {"upid": "UPID:2", "id": "300", "type": "qmstart", "starttime": 1, "endtime": 2, "status": "OK"},
        {"upid": "UPID:3", "id": "301", "type": "qmclone", "starttime": 1, "status": "RUNNING"},
    ]

    assert [each.upid for each in parse([], tasks, 1.0).running_tasks_of(300)] == ["UPID:1"]
    assert [each.upid for each in parse([], tasks, 1.0).running_tasks_of(301)] == ["UPID:3"]


def test_a_thousand_vms_are_read_within_a_tenth_of_a_second_of_processor_time() -> None:
    resources, tasks = (json.dumps(each) for each in big_cluster(VMS))
    began = time.process_time()

    view = parse(json.loads(resources), json.loads(tasks), 1.0)

    assert time.process_time() - began < PARSE_CPU_S_MAX
    assert len(view.vms) == VMS


@pytest.mark.anyio
async def test_two_calls_are_made_whatever_the_number_of_vms() -> None:
    class Counting:
        def __init__(self) -> None:
            self.called: list[str] = []

        async def call(self, method: str, path: str, params: Params | None = None) -> object:
            self.called.append(f"{method} {path}")
            return big_cluster(VMS)["tasks" in path]

        async def answer(self, method: str, path: str, params: Params | None = None) -> dict[str, object]:
            raise AssertionError

    api = Counting()

    view = await observe(api, 1.0)

    assert (len(view.vms), len(view.tasks)) == (VMS, 200)
    assert api.called == ["GET /cluster/resources", "GET /cluster/tasks"]
