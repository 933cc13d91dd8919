"""Methods of a VM's snapshots: make, list, read, go back, remove."""

from __future__ import annotations

import copy
from typing import Any

from agentlab.testing.proxmox import volumes
from agentlab.testing.proxmox.drives import drives
from agentlab.testing.proxmox.formats import SNAPSHOT
from agentlab.testing.proxmox.kinds import FLAG, need, text
from agentlab.testing.proxmox.method import VM, Call, Method, on
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.state import Power, Snapshot, Vm
from agentlab.testing.proxmox.storage import Store, Volume
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.views import agent_enabled
from agentlab.testing.proxmox.vm_changes import answers, check_lock
from agentlab.testing.proxmox.vm_power import run, save_state, stop_vm

NOW = "current"  # the name under which the list shows the present
_RUNNING = ("runningmachine", "runningcpu", "running-nets-host-mtu", "vmstate")


async def _list(call: Call) -> Any:
    vm, rows = call.vm(), []
    for name, shot in vm.snapshots.items():
        row: dict[str, Any] = {"name": name, "description": shot.description, "snaptime": shot.time}
        row["vmstate"] = int(shot.vmstate is not None)
        rows.append(row | ({} if shot.parent is None else {"parent": shot.parent}))
    now: dict[str, Any] = {"name": NOW, "description": "You are here!", "digest": vm.digest()}
    now["running"] = int(vm.running)
    return [*rows, now | ({} if vm.parent is None else {"parent": vm.parent})]


def _disks(call: Call, vm: Vm) -> list[tuple[str, Store, Volume]]:
    found = []
    for each in drives(vm.config):
        if not each.cdrom:
            store, volume = volumes.located(call.cluster, call.node, each.file)
            if not store.can_snapshot(volume):
                raise Refused("snapshot feature is not available")
            found.append((each.key, store, volume))
    return found


async def _make(call: Call) -> Any:
    name = call.values["snapname"]
    if name == NOW:
        raise Refused(f"unable to use snapshot name '{NOW}' (reserved name)")
    call.vm()

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            await _keep(call, task, call.vm(), name)

    return call.start("qmsnapshot", call.vmid, work)


async def _keep(call: Call, task: Task, vm: Vm, name: str) -> None:
    check_lock(vm)
    if name in vm.snapshots:
        raise Refused(f"snapshot name '{name}' already used")
    if vm.is_template:
        raise Refused("unable to create snapshot: VM is a template")
    disks = _disks(call, vm)
    cluster, config = call.cluster, copy.deepcopy(vm.config)
    whole = bool(call.values.get("vmstate"))
    if vm.running and not whole and agent_enabled(vm.config) and not await answers(cluster, vm):
        task.log("skipping guest filesystem freeze - agent configured but not running?")
    await cluster.spend("qmsnapshot")
    state = None
    if whole and vm.running:
        state = await save_state(cluster, vm, task, name)
        task.log(f"saving VM state and RAM using storage '{state.partition(':')[0]}'")
        config |= {key: vm.config.pop(key) for key in _RUNNING}
        task.lines += ["232.00 B in 0s", "completed saving the VM state in 0s, saved 229.99 MiB"]
    for key, store, volume in disks:
        task.log(f"snapshotting 'drive-{key}' ({store.volid(volume)})")
        if vm.running:
            task.log("internal qemu snapshot")
        volume.snapshots.append(name)
        path = store.real(call.node, volume)
        if path is not None:
            await cluster.guests.disk_kept(path, name)
    now = int(cluster.clock.now())
    description = str(call.values.get("description", "")).rstrip("\n")
    vm.snapshots[name] = Snapshot(config=config, description=description, time=now, parent=vm.parent, vmstate=state)
    vm.parent = name


async def _config(call: Call) -> Any:
    name, vm = call.values["snapname"], call.vm()
    shot = vm.snapshots.get(name)
    if shot is None:
        raise Refused(f"snapshot '{name}' does not exist")
    facts: dict[str, Any] = {"snaptime": shot.time}
    if shot.parent is not None:
        facts["parent"] = shot.parent
    if shot.description:
        facts["description"] = shot.description
    return {key: value for key, value in shot.config.items() if key != "description"} | facts


async def _describe(call: Call) -> Any:
    name, vm = call.values["snapname"], call.vm()
    if name not in vm.snapshots:
        raise Refused(f"snapshot '{name}' does not exist")
    vm.snapshots[name].description = call.values.get("description", "")


async def _rollback(call: Call) -> Any:
    name = call.values["snapname"]
    call.vm()

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            await _return(call, task, call.vm(), name)

    return call.start("qmrollback", call.vmid, work)


async def _return(call: Call, task: Task, vm: Vm, name: str) -> None:
    check_lock(vm)
    shot = vm.snapshots.get(name)
    if shot is None:
        raise Refused(f"snapshot '{name}' does not exist")
    cluster = call.cluster
    await cluster.spend("qmrollback")
    await stop_vm(cluster, vm)
    _unlisted_volumes(call, vm, shot)
    vm.config = {key: value for key, value in copy.deepcopy(shot.config).items() if key not in _RUNNING}
    vm.pending.clear()
    vm.removed.clear()
    vm.parent = name
    for _, store, volume in _disks(call, vm):
        path = store.real(call.node, volume)
        if path is not None:
            await cluster.guests.disk_returned(path, name)
    if shot.vmstate is not None:
        if any(each.cloudinit for each in drives(vm.config)):
            task.log("generating cloud-init ISO")
        task.log("netdev net0: using 'host_mtu=1500' for migration compat")
        vm.config["vmstate"] = shot.vmstate
        await run(cluster, vm)
        del vm.config["vmstate"]
        if cluster.entropy.fraction() < cluster.latency.cleanup_chance:
            cluster.hold_lock(vm.vmid, cluster.latency.cleanup_s)
    elif call.values.get("start"):
        await run(cluster, vm)
        vm.power = Power.RUNNING


def _unlisted_volumes(call: Call, vm: Vm, shot: Snapshot) -> None:
    """Disks that came after the snapshot stay, as unused ones."""
    kept = {each.file for each in drives(shot.config)}
    for each in drives(vm.config):
        if not each.cdrom and each.file not in kept and volumes.owned(call.cluster, vm.node, each.file, vm.vmid):
            number = sum(1 for key in shot.config if key.startswith("unused"))
            shot.config[f"unused{number}"] = each.file


async def _drop(call: Call) -> Any:
    name = call.values["snapname"]
    call.vm()

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            await _remove(call, call.vm(), name)

    return call.start("qmdelsnapshot", call.vmid, work)


async def _remove(call: Call, vm: Vm, name: str) -> None:
    check_lock(vm)
    shot = vm.snapshots.get(name)
    if shot is None:
        raise Refused(f"snapshot '{name}' does not exist")
    await call.cluster.spend("qmdelsnapshot")
    for _, store, volume in _disks(call, vm):
        if name in volume.snapshots:
            volume.snapshots.remove(name)
            path = store.real(call.node, volume)
            if path is not None:
                await call.cluster.guests.disk_dropped(path, name)
    if shot.vmstate is not None:
        found = volumes.owned(call.cluster, vm.node, shot.vmstate, vm.vmid)
        if found is not None:
            found[0].remove(vm.node, found[1])
    del vm.snapshots[name]
    for other in vm.snapshots.values():
        other.parent = shot.parent if other.parent == name else other.parent
    vm.parent = shot.parent if vm.parent == name else vm.parent


_S = f"{VM}/snapshot/{{snapname}}"
_NAME = {"snapname": need(SNAPSHOT)}
_MAKE, _RETURN = on("/vms/{vmid}", "VM.Snapshot"), on("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback")
METHODS = (
    Method(verb="GET", path=f"{VM}/snapshot", handler=_list, allow=on("/vms/{vmid}", "VM.Audit")),
    Method(verb="POST", path=f"{VM}/snapshot", handler=_make, allow=_MAKE, params={
        **_NAME, "description": text(), "vmstate": FLAG,
    }),
    Method(verb="GET", path=f"{_S}/config", handler=_config, params=_NAME, allow=on(
        "/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit",
    )),
    Method(verb="PUT", path=f"{_S}/config", handler=_describe, allow=_MAKE, params={**_NAME, "description": text()}),
    Method(verb="POST", path=f"{_S}/rollback", handler=_rollback, allow=_RETURN, params={**_NAME, "start": FLAG}),
    Method(verb="DELETE", path=_S, handler=_drop, allow=_MAKE, params={**_NAME, "force": FLAG}),
)  # fmt: skip
