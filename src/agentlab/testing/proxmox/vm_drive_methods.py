"""Methods that change the drives of a VM: unlink, resize, move to another storage or VM."""

from __future__ import annotations

from typing import Any

from agentlab.testing.proxmox import volumes
from agentlab.testing.proxmox.drives import drive, drives, free_unused
from agentlab.testing.proxmox.formats import CONFIG_IDS, DIGEST, SNAPSHOT, STORAGE, VMID, words
from agentlab.testing.proxmox.kinds import FLAG, integer, matching, need, one_of
from agentlab.testing.proxmox.method import VM, Call, Method, on
from agentlab.testing.proxmox.options import DRIVES, OPTIONS, UNUSED_MAX
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.storage import Store, Volume
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.units import size_bytes, size_text
from agentlab.testing.proxmox.vm_changes import Changes, apply, check_lock
from agentlab.testing.proxmox.vm_config_methods import check_skiplock

DRIVE_KEYS = tuple(f"{bus}{n}" for bus, count in DRIVES.items() for n in range(count))
UNUSED_KEYS = tuple(f"unused{n}" for n in range(UNUSED_MAX))


async def _unlink(call: Call) -> Any:
    vm = call.vm()
    names = tuple(words(call.values["idlist"]))
    for name in names:
        if name not in OPTIONS:
            raise invalid({"delete": f"unknown option '{name}'"})
    async with call.cluster.locks.of_vm(call.vmid).held():
        await call.cluster.spend("config")
        changes = Changes(values={}, delete=names, force=bool(call.values.get("force")))
        await apply(call.cluster, vm, changes, lambda line: None)


async def _resize(call: Call) -> Any:
    key, wanted, vm = call.values["disk"], call.values["size"], call.vm()
    check_skiplock(call)

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            _check_digest(call, vm)
            check_lock(vm)
            if key not in vm.config:
                raise Refused(f"disk '{key}' does not exist")
            each = drive(key, str(vm.config[key]))
            if each.cdrom:
                raise Refused("you can't resize a cdrom")
            call.check(f"/storage/{each.storage}", "Datastore.AllocateSpace")
            store, volume = volumes.located(call.cluster, call.node, each.file)
            size = size_bytes(wanted.removeprefix("+")) + (volume.size if wanted.startswith("+") else 0)
            if size < volume.size:
                raise Refused("shrinking disks is not supported")
            await call.cluster.spend("resize")
            await _grow(call, task, vm, store, volume, size)
            vm.config[key] = each.text(size=size_text(size))

    return call.start("resize", call.vmid, work)


async def _grow(call: Call, task: Task, vm: Vm, store: Store, volume: Volume, size: int) -> None:
    if volume.is_base and store.keeps_files:
        path = store.file(call.node, volume)
        task.log(f"qemu-img: Could not open '{path}': Could not open '{path}': Operation not permitted")
        argument = "'--preallocation=metadata' -f qcow2"
        raise Refused(f"command '/usr/bin/qemu-img resize {argument} {path} {size}' failed: exit code 1")
    path_ = store.real(call.node, volume)
    if path_ is not None:
        await call.cluster.guests.disk_grown(path_, volume.format, size)
    volume.size = size
    if not vm.running and store.keeps_files:
        task.log("Image resized.")


def _check_digest(call: Call, vm: Vm) -> None:
    if call.values.get("digest") not in (None, vm.digest()):
        raise Refused("detected modified configuration - file changed by other user? Try again.")


async def _move(call: Call) -> Any:
    values, vm = call.values, call.vm()
    if "target-vmid" in values:
        return await _reassign(call, vm)
    if "storage" not in values:
        raise invalid({"storage": "Either 'storage' or 'target-vmid' needs to be set."})
    key, target = values["disk"], values["storage"]
    call.check(f"/storage/{target}", "Datastore.AllocateSpace")
    _check_digest(call, vm)
    check_lock(vm)
    if key not in vm.config:
        raise Refused(f"disk '{key}' does not exist")
    each = drive(key, str(vm.config[key]))
    if each.cdrom:
        raise Refused("you can't move a cdrom")
    if each.storage == target and values.get("format") is None:
        raise Refused("you can't move to the same storage with same format")

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            await _to_storage(call, task, vm)

    return call.start("qmmove", call.vmid, work)


async def _to_storage(call: Call, task: Task, vm: Vm) -> None:
    key, cluster = call.values["disk"], call.cluster
    each = drive(key, str(vm.config[key]))
    source = volumes.located(cluster, call.node, each.file)
    target = cluster.store(call.values["storage"], call.node)
    task.log(f"copying volume '{each.file}' from current storage '{each.storage}' to target storage '{target.name}'")
    task.log(f"create full clone of drive {key} ({each.file})")
    await cluster.spend("qmmove")
    kind = call.values.get("format") or (source[1].format if target.keeps_files else "raw")
    volume = await volumes.copied(cluster, call.node, vm.vmid, source, target, kind, task.log)
    vm.config[key] = each.text(target.volid(volume))
    if not call.values.get("delete"):
        vm.config[free_unused(vm.config)] = each.file
        return
    task.log(f"removing source volume '{each.file}' after successful copy")
    source[0].remove(call.node, source[1])


async def _reassign(call: Call, vm: Vm) -> Any:
    """Give a volume to another VM."""
    values, cluster = call.values, call.cluster
    key, target = values["disk"], values["target-vmid"]
    if target == vm.vmid:
        raise invalid({"target-vmid": "must be different than source VMID to reassign disk"})
    if values.get("target-disk", key) is None or "storage" in values:
        raise invalid({"storage": "Either 'storage' or 'target-vmid' can be set."})
    if target not in cluster.vms:
        raise Refused(f"could not find target VM {target}")
    call.check(f"/vms/{target}", "VM.Config.Disk")
    place = values.get("target-disk", key)
    if (place.startswith("unused")) != (key.startswith("unused")) and place.startswith("unused"):
        raise invalid({"target-disk": "must be an unused disk only for an unused disk"})
    other = cluster.vm_on(call.node, target)
    if key not in vm.config:
        raise Refused(f"Disk '{key}' for VM '{vm.vmid}' does not exist")
    if place in other.config:
        raise Refused(f"Target disk key '{place}' is already in use for VM '{target}'")
    if vm.running and not key.startswith("unused"):
        raise Refused("Cannot move disk to another VM while the source VM is running - detach first")
    check_lock(vm)
    check_lock(other)

    async def work(task: Task) -> None:
        locks = cluster.locks
        async with locks.of_vm(vm.vmid).held(task.log), locks.of_vm(target).held(task.log):
            await _hand_over(call, task, vm, other, key, place)

    return call.start("qmmove", f"{vm.vmid}-{key}>{target}-{place}", work)


async def _hand_over(call: Call, task: Task, vm: Vm, other: Vm, key: str, place: str) -> None:
    text = str(vm.config[key])
    volid, _, rest = text.partition(",")
    task.log(f"reassign disk '{key}' from VM '{vm.vmid}' as '{place}' to VM '{other.vmid}'")
    await call.cluster.spend("qmmove")
    store, volume = volumes.located(call.cluster, call.node, volid)
    if volume.vmid != vm.vmid:
        raise Refused(f"Disk '{key}' of VM '{vm.vmid}' is owned by VM '{volume.vmid}'")
    extension = store.extension(volume.format)
    own = store.free_name(call.node, other.vmid, extension)
    store.renamed(call.node, volume, own).vmid = other.vmid
    task.log(f"removing disk '{key}' from VM '{vm.vmid}' config")
    del vm.config[key]
    other.config[place] = ",".join(filter(None, (store.volid(volume), "" if place.startswith("unused") else rest)))
    if not place.startswith("unused"):
        task.log(f"update VM {other.vmid}: -{place} {other.config[place]}")


async def _feature(call: Call) -> Any:
    vm = call.vm()
    wanted = call.values["feature"]
    found = [volumes.located(call.cluster, call.node, each.file) for each in drives(vm.config) if not each.cdrom]
    has = 1
    if wanted == "snapshot":
        has = int(all(store.can_snapshot(volume) for store, volume in found))
    elif wanted == "clone":
        has = int(all(store.can_link(volume) for store, volume in found))
    everywhere = all(store.shared for store, _ in found)
    return {"hasFeature": has, "nodes": list(call.cluster.nodes) if everywhere else [vm.node]}


_DRIVE = one_of(*DRIVE_KEYS)
_ANY_DRIVE = one_of(*DRIVE_KEYS, *UNUSED_KEYS)


_SEE, _DISK = on("/vms/{vmid}", "VM.Audit"), on("/vms/{vmid}", "VM.Config.Disk")
METHODS = (
    Method(verb="PUT", path=f"{VM}/unlink", handler=_unlink, allow=_DISK, params={
        "idlist": need(CONFIG_IDS), "force": FLAG,
    }),
    Method(verb="PUT", path=f"{VM}/resize", handler=_resize, allow=_DISK, params={
        "disk": need(_DRIVE), "size": need(matching(r"\+?\d+(\.\d+)?[KMGT]?")), "digest": DIGEST, "skiplock": FLAG,
    }),
    Method(verb="POST", path=f"{VM}/move_disk", handler=_move, allow=_DISK, params={
        "disk": need(_ANY_DRIVE), "storage": STORAGE, "format": one_of("raw", "qcow2", "vmdk"), "delete": FLAG,
        "digest": DIGEST, "bwlimit": integer(0), "target-vmid": VMID, "target-disk": _ANY_DRIVE,
        "target-digest": DIGEST,
    }),
    Method(verb="GET", path=f"{VM}/feature", handler=_feature, allow=_SEE, params={
        "feature": need(one_of("snapshot", "clone", "copy")), "snapname": SNAPSHOT,
    }),
)  # fmt: skip
