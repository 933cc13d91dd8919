"""Rules of the simulated Proxmox VE that one recorded exchange does not show: races, locks, lost nodes, rights."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.testing.proxmox_world import VMS, Sim, simulate

from agentlab.testing.proxmox.direct import Direct
from agentlab.testing.proxmox.faults import Fault
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.state import Absence

UUID = "11111111-2222-4333-8444-555555555555"
SECOND = Latency(work={"qmclone": (1.0, 1.0)})


def test_clones_onto_one_storage_queue_and_those_who_wait_too_long_fail() -> None:
    async def story(sim: Sim) -> Counter[str]:
        return Counter(await asyncio.gather(*(sim.clone(100 + n) for n in range(15))))

    ended = simulate(story, latency=SECOND)

    timeout = "clone failed: can't lock file '/var/lock/pve-manager/pve-storage-local' - got timeout"
    assert ended == {"OK": 10, timeout: 5}


def test_a_failed_clone_leaves_neither_config_nor_volume() -> None:
    async def story(sim: Sim) -> tuple[list[int], list[str]]:
        await asyncio.gather(*(sim.clone(100 + n) for n in range(15)))
        volumes = [volume.own for volume in sim.cluster.stores["local"].on("pve1").values()]
        return sorted(sim.cluster.vms), volumes

    vms, volumes = simulate(story, latency=SECOND)

    assert len(vms) == 11
    assert len(volumes) == 11


def test_a_hundred_clones_one_after_the_other_take_the_time_of_the_storage_lock() -> None:
    async def story(sim: Sim) -> tuple[set[str], float]:
        ended = {await sim.clone(100 + n) for n in range(100)}
        return ended, sim.cluster.clock.monotonic()

    ended, took_s = simulate(story, latency=SECOND)

    assert ended == {"OK"}
    assert took_s == pytest.approx(100, abs=0.5)


def test_the_next_id_is_nobodys_until_it_is_used() -> None:
    async def story(sim: Sim) -> list[Any]:
        return await asyncio.gather(*(sim.token.data("GET", "/cluster/nextid") for _ in range(3)))

    assert simulate(story) == ["100", "100", "100"]


def test_of_several_clones_to_one_id_one_is_made() -> None:
    async def story(sim: Sim) -> Counter[str]:
        return Counter(await asyncio.gather(*(sim.clone(150) for _ in range(4))))

    ended = simulate(story, latency=Latency(work={"fork": (0.01, 0.02), "qmclone": (0.2, 0.2)}))

    assert ended == {"OK": 1, "unable to create VM 150: config file already exists": 3}


def test_a_half_made_clone_is_a_placeholder_outside_the_pool() -> None:
    async def story(sim: Sim) -> tuple[Any, int, Any]:
        upid = await sim.token.data(
            "POST", f"{VMS}/9000/clone", newid=101, pool="agentlab", name="box", description="mark"
        )
        await asyncio.sleep(0.5)
        half = await sim.root.data("GET", f"{VMS}/101/config")
        seen = await sim.token.call("GET", f"{VMS}/101/config")
        await sim.cluster.tasks.tasks[upid].ended.wait()
        return half, seen.status, await sim.token.data("GET", f"{VMS}/101/config")

    half, status, whole = simulate(story, latency=SECOND)

    assert {key: half[key] for key in half if key != "digest"} == {
        "lock": "clone",
        "description": "qmclone temporary file",
    }
    assert status == 403
    assert (whole["name"], whole["description"], "lock" in whole) == ("box", "mark", False)


def test_a_clone_that_is_stopped_tidies_up() -> None:
    async def story(sim: Sim) -> list[Any]:
        upid = await sim.token.data("POST", f"{VMS}/9000/clone", newid=101, pool="agentlab")
        await asyncio.sleep(0.5)
        await sim.token.data("DELETE", f"/nodes/pve1/tasks/{upid}")
        await asyncio.sleep(1)
        return [sim.cluster.tasks.tasks[upid].exitstatus, 101 in sim.cluster.vms]

    assert simulate(story, latency=SECOND) == ["interrupted by signal", False]


def test_a_clone_whose_node_goes_down_stays_behind_locked() -> None:
    async def story(sim: Sim) -> list[Any]:
        await sim.token.data("POST", f"{VMS}/9000/clone", newid=101, pool="agentlab")
        await asyncio.sleep(0.5)
        sim.cluster.node_offline("pve1")
        await asyncio.sleep(1)
        sim.cluster.node_online("pve1")
        lock = (await sim.root.data("GET", f"{VMS}/101/config"))["lock"]
        return [lock, await sim.root.done("DELETE", f"{VMS}/101")]

    assert simulate(story, latency=SECOND) == ["clone", "VM is locked (clone)"]


def test_an_id_is_free_again_as_soon_as_its_vm_is_gone() -> None:
    async def story(sim: Sim) -> list[Any]:
        first = await sim.clone(101)
        before = await sim.token.data("GET", f"{VMS}/101/config")
        gone = await sim.token.done("DELETE", f"{VMS}/101")
        again = await sim.clone(101)
        after = await sim.token.data("GET", f"{VMS}/101/config")
        return [first, gone, again, before["smbios1"] != after["smbios1"]]

    assert simulate(story) == ["OK", "OK", "OK", True]


def test_a_held_config_lock_ends_in_a_time_out_after_ten_seconds() -> None:
    async def story(sim: Sim) -> tuple[str, float]:
        await sim.clone(101)
        sim.cluster.hold_lock(101, 60)
        started = sim.cluster.clock.monotonic()
        ended = await sim.token.done("POST", f"{VMS}/101/status/start")
        return ended, sim.cluster.clock.monotonic() - started

    ended, took_s = simulate(story)

    assert ended == "can't lock file '/var/lock/qemu-server/lock-101.conf' - got timeout"
    assert took_s == pytest.approx(10, abs=0.1)


def test_a_node_answers_three_calls_at_a_time() -> None:
    async def story(sim: Sim) -> float:
        await sim.clone(101)
        await sim.token.done("POST", f"{VMS}/101/status/start")
        started = sim.cluster.clock.monotonic()
        await asyncio.gather(*(sim.token.call("POST", f"{VMS}/101/agent/ping") for _ in range(6)))
        return sim.cluster.clock.monotonic() - started

    took_s = simulate(story, latency=Latency(work={"agent-absent": (3.0, 3.0)}, boot_s=3600))

    assert took_s == pytest.approx(6, abs=0.1)


def test_without_quorum_everything_can_be_read_and_nothing_written() -> None:
    async def story(sim: Sim) -> list[Any]:
        sim.cluster.quorum(False)
        refused = await sim.token.call("POST", f"{VMS}/9000/clone", newid=101, pool="agentlab")
        read = await sim.token.call("GET", f"{VMS}/9000/config")
        number = await sim.token.call("GET", "/cluster/nextid")
        return [refused.status, refused.reason, read.status, number.status]

    assert simulate(story, nodes=("pve1", "pve2")) == [500, "cluster not ready - no quorum?", 200, 200]


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        (Absence.NO_ROUTE, (595, "No route to host")),
        (Absence.REFUSED, (595, "Connection refused")),
        (Absence.SILENT, (596, "Connection timed out")),
    ],
    ids=lambda value: value.name if isinstance(value, Absence) else "",
)
def test_calls_for_a_node_that_is_gone_end_in_the_proxys_own_status(how: Absence, answer: tuple[int, str]) -> None:
    async def story(sim: Sim) -> Any:
        sim.cluster.node_offline("pve2", how)
        found = await sim.root.call("GET", "/nodes/pve2/qemu")
        return (found.status, found.reason), found.body

    assert simulate(story, nodes=("pve1", "pve2")) == (answer, b"")


def test_the_tasks_of_a_node_that_goes_away_never_end_well() -> None:
    async def story(sim: Sim) -> tuple[str | None, str]:
        upid = await sim.token.data("POST", f"{VMS}/9000/clone", newid=101, pool="agentlab")
        await asyncio.sleep(0.1)
        sim.cluster.node_offline("pve1")
        task = sim.cluster.tasks.tasks[upid]
        await task.ended.wait()
        rows = await Direct(sim.api, "root@pam!t=s", "pve2").data("GET", "/cluster/resources", type="vm")
        return task.exitstatus, next(row["status"] for row in rows if row["vmid"] == 9000)

    assert simulate(story, nodes=("pve1", "pve2"), latency=SECOND) == ("unexpected status", "unknown")


def test_a_vm_that_moved_is_not_found_where_it_was() -> None:
    async def story(sim: Sim) -> list[Any]:
        await sim.clone(101)
        await sim.cluster.migrate(101, "pve2")
        there = await sim.token.call("GET", f"{VMS}/101/config")
        rows = await sim.token.data("GET", "/cluster/resources", type="vm")
        return [there.reason, next(row["node"] for row in rows if row["vmid"] == 101)]

    found = simulate(story, nodes=("pve1", "pve2"))

    assert found == ["Configuration file 'nodes/pve1/qemu-server/101.conf' does not exist", "pve2"]


def test_a_copy_made_by_hand_has_the_mark_but_neither_uuid_nor_pool() -> None:
    async def story(sim: Sim) -> tuple[Any, Any, str | None]:
        await sim.clone(101, description="mark")
        await sim.token.call(
            "PUT",
            f"{VMS}/101/config",
            smbios1=f"base64=1,serial=bWFyaw==,uuid={UUID}",
        )
        sim.cluster.human_clone(101, 102)
        ours = await sim.root.data("GET", f"{VMS}/101/config")
        copy = await sim.root.data("GET", f"{VMS}/102/config")
        return ours, copy, sim.cluster.access.pool_of(102)

    ours, copy, pool = simulate(story)

    assert copy["description"] == ours["description"] == "mark"
    assert "serial=bWFyaw==" in copy["smbios1"]
    assert "11111111" not in copy["smbios1"]
    assert copy["net0"] != ours["net0"]
    assert pool is None


def test_a_template_is_kept_while_linked_clones_stand_upon_it() -> None:
    async def story(sim: Sim) -> list[str]:
        await sim.clone(101)
        kept = await sim.root.done("DELETE", f"{VMS}/9000")
        await sim.token.done("DELETE", f"{VMS}/101")
        return [kept, await sim.root.done("DELETE", f"{VMS}/9000")]

    kept, gone = simulate(story)

    assert kept == "base volume 'local:9000/base-9000-disk-0.qcow2' is still in use by linked cloned"
    assert gone == "OK"


@pytest.mark.parametrize(("kind", "ended"), [
    ("lvmthin", "OK"),
    ("lvm", "Linked clone feature is not supported for 'vg:base-9001-disk-0' (scsi0)"),
])  # fmt: skip
def test_only_some_storages_can_link(kind: str, ended: str) -> None:
    async def story(sim: Sim) -> str:
        sim.setup.add_storage("vg", kind)
        sim.setup.add_template(9001, "vg", 1 << 30)
        return await sim.token.done("POST", f"{VMS}/9001/clone", newid=101, pool="agentlab")

    assert simulate(story) == ended


def test_a_full_copy_goes_where_linking_cannot() -> None:
    async def story(sim: Sim) -> list[Any]:
        sim.setup.add_storage("vg", "lvm")
        sim.setup.add_template(9001, "vg", 1 << 30)
        ended = await sim.token.done("POST", f"{VMS}/9001/clone", newid=101, pool="agentlab", full=1)
        return [ended, (await sim.token.data("GET", f"{VMS}/101/config"))["scsi0"]]

    assert simulate(story) == ["OK", "vg:vm-101-disk-0,size=1G"]


def test_a_full_storage_says_so_in_the_task() -> None:
    async def story(sim: Sim) -> str:
        sim.setup.add_storage("vg", "lvm").total = 1 << 30
        await sim.clone(101)
        return await sim.token.done("POST", f"{VMS}/101/config", scsi1="vg:4")

    assert simulate(story) == "unable to create image: no space left on storage 'vg'"


def test_a_bridge_that_is_not_there_ends_the_start() -> None:
    async def story(sim: Sim) -> str:
        await sim.clone(101)
        del sim.cluster.nodes["pve1"].interfaces["vmbr0"]
        return await sim.token.done("POST", f"{VMS}/101/status/start")

    assert simulate(story) == "bridge 'vmbr0' does not exist"


def test_version_eight_asks_for_the_monitor_where_nine_asks_for_the_agent() -> None:
    async def story(sim: Sim) -> tuple[str, Any]:
        await sim.clone(101)
        refused = await sim.token.call("POST", f"{VMS}/101/agent/ping")
        return refused.reason, await sim.token.data("GET", "/version")

    lacking = [f"VM.{part}" for part in ("Clone", "Audit", "Allocate")] + ["Datastore.AllocateSpace", "SDN.Use"]
    eight, version = simulate(story, version="8.4", privs=lacking)
    nine, _ = simulate(story, privs=lacking)

    assert eight == "Permission check failed (/vms/101, VM.Monitor)"
    assert nine == "Permission check failed (/vms/101, VM.GuestAgent.Audit|VM.GuestAgent.Unrestricted)"
    assert version["release"] == "8.4"


@pytest.mark.parametrize("privilege", ["VM.Clone", "VM.Allocate", "Datastore.AllocateSpace", "SDN.Use"])
def test_a_clone_needs_each_of_its_privileges(privilege: str) -> None:
    async def story(sim: Sim) -> str:
        role = sim.cluster.access.roles
        for name in [name for name in role if name.startswith("AgentLab")]:
            role[name] -= {privilege}
        return await sim.clone(101)

    assert simulate(story).startswith("Permission check failed")


def test_a_lost_answer_has_had_its_effect() -> None:
    async def story(sim: Sim) -> list[bool]:
        sim.cluster.faults.plan("POST", r"/clone$", Fault.REPLY_LOST)
        with pytest.raises(ConnectionError):
            await sim.clone(101)
        await asyncio.sleep(1)
        return [101 in sim.cluster.vms, sim.cluster.faults.met[0][2] is Fault.REPLY_LOST]

    assert simulate(story) == [True, True]


@pytest.mark.parametrize(("fault", "there"), [(Fault.TASK_DIES, True), (Fault.TASK_DIES_LATE, False)])
def test_a_worker_that_dies_leaves_an_unexpected_status(fault: Fault, there: bool) -> None:
    async def story(sim: Sim) -> tuple[str, bool]:
        await sim.clone(101)
        sim.cluster.faults.plan("DELETE", "/qemu/101$", fault)
        return await sim.token.done("DELETE", f"{VMS}/101"), 101 in sim.cluster.vms

    assert simulate(story) == ("unexpected status", there)


def test_the_list_of_resources_learns_of_a_clone_in_the_next_round() -> None:
    async def story(sim: Sim) -> list[Any]:
        await asyncio.sleep(1)
        await sim.token.data("GET", "/cluster/resources")
        await sim.clone(101)
        early = [row for row in await sim.token.data("GET", "/cluster/resources", type="vm") if row["vmid"] == 101]
        await asyncio.sleep(10)
        late = [row for row in await sim.token.data("GET", "/cluster/resources", type="vm") if row["vmid"] == 101]
        return [sorted(early[0]), early[0]["status"], late[0]["status"], late[0]["name"]]

    keys, early, late, name = simulate(story, latency=replace(Latency.none(), resources_lag_s=10.0))

    assert keys == ["id", "node", "pool", "status", "type", "vmid"]
    assert (early, late, name) == ("unknown", "stopped", "Copy-of-VM-template-9000")


def test_the_same_seed_is_the_same_history() -> None:
    async def story(sim: Sim) -> list[Any]:
        sim.cluster.faults.rates = {Fault.REPLY_LOST: 0.2, Fault.PROXY: 0.1, Fault.TASK_DIES: 0.1, Fault.DELAY: 0.1}
        seen: list[Any] = []
        for number in range(40):
            try:
                seen.append((await sim.clone(100 + number), sim.cluster.clock.monotonic()))
            except ConnectionError as error:
                seen.append(str(error))
        return [seen, sorted(sim.cluster.vms), [met[2].name for met in sim.cluster.faults.met]]

    first = simulate(story, seed=7, latency=Latency.realistic())

    assert first == simulate(story, seed=7, latency=Latency.realistic())
    assert first != simulate(story, seed=8, latency=Latency.realistic())


def test_a_slow_agent_is_given_up_after_five_seconds_and_may_have_obeyed() -> None:
    async def story(sim: Sim) -> list[Any]:
        await sim.clone(101)
        await sim.token.done("POST", f"{VMS}/101/status/start")
        sim.guests.agent_delay_s = 60
        late = await sim.token.call("POST", f"{VMS}/101/agent/file-write", file="/a", content="x")
        sim.guests.agent_delay_s = 0
        return [late.reason, (await sim.token.data("GET", f"{VMS}/101/agent/file-read", file="/a"))["content"]]

    assert simulate(story) == ["VM 101 qga command 'guest-file-write' failed - got timeout", "x"]


def test_a_guest_is_told_who_it_is_and_what_it_has() -> None:
    async def story(sim: Sim) -> Any:
        await sim.clone(101, name="box")
        await sim.token.call("PUT", f"{VMS}/101/config", smbios1=f"base64=1,serial=aGVsbG8=,uuid={UUID}")
        await sim.token.done("POST", f"{VMS}/101/status/start")
        return sim.guests.guests[101].machine

    machine = simulate(story)

    assert machine.smbios == {"serial": "hello", "uuid": UUID}
    assert (machine.nics[0].bridge, machine.nics[0].firewall) == ("vmbr0", True)
    assert (machine.disks[0].key, machine.disks[0].size_bytes) == ("scsi0", 3 << 30)
    assert (machine.cores, machine.memory_bytes, machine.agent) == (2, 2048 << 20, True)
