"""Methods that list, make and destroy VMs, and turn them into templates."""

from __future__ import annotations

from typing import Any

from agentlab.testing.proxmox import views, volumes
from agentlab.testing.proxmox.cluster import QEMU
from agentlab.testing.proxmox.drives import drive, drives, unused
from agentlab.testing.proxmox.formats import POOL, STORAGE, VMID
from agentlab.testing.proxmox.kinds import FLAG, integer, need, newer, one_of, parsed, requiring, text
from agentlab.testing.proxmox.method import VM, Call, Method, everybody, on
from agentlab.testing.proxmox.options import DRIVE, KINDS, NIC, NIC_KIND, stored
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.units import new_uuid, printed_nic, tags_text
from agentlab.testing.proxmox.vm_changes import check_lock, check_protection, settled
from agentlab.testing.proxmox.vm_config_methods import check_skiplock, check_ssh_keys
from agentlab.testing.proxmox.vm_power import start_vm
from agentlab.testing.proxmox.vm_rights import (
    check_bridges,
    check_drives,
    check_options,
    check_pool,
    check_special_import,
)

_NOT_OPTIONS = frozenset({
    "node", "vmid", "pool", "storage", "start", "archive", "force", "unique", "bwlimit", "live-restore", "ha-managed",
    "import-working-storage",
})  # fmt: skip


async def _list(call: Call) -> Any:
    vms = [vm for vm in call.cluster.vms.values() if vm.node == call.node and call.has(f"/vms/{vm.vmid}", "VM.Audit")]
    return [views.listed(call.cluster, vm) for vm in vms]


async def _create(call: Call) -> Any:
    values, vmid, pool = call.values, call.vmid, call.values.get("pool")
    check_ssh_keys(values)
    check_pool(call, pool)
    if pool is None or not call.has(f"/pool/{pool}", "VM.Allocate"):
        _may_allocate(call, vmid)
    wanted = {name: value for name, value in values.items() if name not in _NOT_OPTIONS}
    check_drives(call, vmid, wanted, values.get("storage"))
    check_options(call, vmid, wanted, pool)
    check_special_import(wanted)
    check_bridges(call, wanted)
    other = call.cluster.vms.get(vmid)
    if other is not None:
        raise Refused(f"unable to create VM {vmid} - VM {vmid} already exists on node '{other.node}'")
    config = {"lock": "create"}
    vm = Vm(vmid=vmid, node=call.node, config=dict(config))
    call.cluster.vms[vmid] = vm

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(vmid).held(task.log):
            try:
                await call.cluster.spend("qmcreate")
                await _fill(call, task, vm, wanted)
            except Refused as error:
                del call.cluster.vms[vmid]
                raise Refused(f"unable to create VM {vmid} - {error.outcome}") from None
            del vm.config["lock"]
            if pool is not None:
                call.cluster.access.pools[pool].vms.add(vmid)
        if values.get("start"):
            task.log("Execute autostart")
            await start_vm(call.cluster, vm, task)

    return call.start("qmcreate", vmid, work)


def _may_allocate(call: Call, vmid: int) -> None:
    if not call.has(f"/vms/{vmid}", "VM.Allocate"):
        raise Refused("Permission check failed", status=403)


async def _fill(call: Call, task: Task, vm: Vm, wanted: dict[str, Any]) -> None:
    """Make the drives, and write the config with what Proxmox VE adds by itself."""
    cluster, made = call.cluster, []
    try:
        for key in sorted(wanted, key=lambda key: (key != "ide2", key)):
            if DRIVE.fullmatch(key):
                vm.config[key] = await settled(cluster, vm.node, vm.vmid, drive(key, str(wanted[key])), task.log)
                made.append(key)
    except Refused:
        for key in made:
            _remove(call, vm, drive(key, str(vm.config[key])).file)
        raise
    for key, value in wanted.items():
        if NIC.fullmatch(key):
            vm.config[key] = _with_mac(call, str(value))
        elif key == "tags":
            vm.config[key] = tags_text(str(value))
        elif key not in vm.config:
            vm.config[key] = stored(key, value)
    vm.config["meta"] = f"creation-qemu={QEMU[cluster.version]},ctime={int(cluster.clock.now())}"
    vm.config.setdefault("smbios1", f"uuid={new_uuid(cluster.entropy)}")
    if vm.config.get("vmgenid", "1") == "1":
        vm.config["vmgenid"] = new_uuid(cluster.entropy)
    vm.config.setdefault("boot", "order=" + ";".join(_first_devices(vm.config)))
    if wanted.get("template"):
        await _to_template(call, vm)


def _with_mac(call: Call, text_: str) -> str:
    nic = parsed(NIC_KIND, text_)
    nic.setdefault("macaddr", call.cluster.new_mac())
    nic["macaddr"] = str(nic["macaddr"]).upper()
    return printed_nic(nic)


def _first_devices(config: dict[str, Any]) -> list[str]:
    """The first disk, the first CD, the first NIC."""
    found = [each for each in drives(config) if not each.key.startswith(("efidisk", "tpmstate"))]
    disk = next((each.key for each in found if not each.cdrom), None)
    medium = next((each.key for each in found if each.cdrom), None)
    nic = min((key for key in config if NIC.fullmatch(key)), default=None)
    return [each for each in (disk, medium, nic) if each is not None]


def _remove(call: Call, vm: Vm, volid: str) -> None:
    found = volumes.owned(call.cluster, vm.node, volid, vm.vmid)
    if found is not None:
        found[0].remove(vm.node, found[1])


async def _template(call: Call) -> Any:
    vm = call.vm()
    check_lock(vm)
    if vm.snapshots:
        raise Refused("unable to create template, because VM contains snapshots")
    if vm.is_template and "disk" not in call.values:
        raise Refused("you can't convert a template to a template")
    if vm.running:
        raise Refused("you can't convert a VM to template if VM is running")

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            await call.cluster.spend("qmtemplate")
            await _to_template(call, call.vm())

    return call.start("qmtemplate", call.vmid, work)


async def _to_template(call: Call, vm: Vm) -> None:
    for each in drives(vm.config):
        found = None if each.cdrom else volumes.owned(call.cluster, vm.node, each.file, vm.vmid)
        if found is None or found[1].is_base:
            continue
        store, volume = found
        folder, slash, file = volume.own.rpartition("/")
        own = f"{folder}{slash}{file.replace('vm-', 'base-', 1)}"
        vm.config[each.key] = each.text(store.volid(store.renamed(vm.node, volume, own)))
    vm.config["template"] = 1


async def _destroy(call: Call) -> Any:
    check_skiplock(call)
    vm, values = call.vm(), call.values
    check_protection(vm, f"can't remove VM {vm.vmid}")
    if f"vm:{vm.vmid}" in call.cluster.ha and not values.get("purge"):
        raise Refused("unable to remove VM, used in HA resources and purge parameter not set.")
    if vm.running:
        raise Refused(f"VM {vm.vmid} is running - destroy failed")

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            found = call.vm()
            if found.running:
                raise Refused(f"VM {found.vmid} is running - destroy failed")
            if found.config.get("lock") not in (None, "suspended"):
                check_lock(found)
            _check_not_base(call, found)
            await call.cluster.spend("qmdestroy")
            _take_volumes(call, task, found)
            call.cluster.access.forget_vm(found.vmid)
            if values.get("purge"):
                task.log(f"purging VM {found.vmid} from related configurations..")
                call.cluster.ha.pop(f"vm:{found.vmid}", None)
            del call.cluster.vms[found.vmid]

    return call.start("qmdestroy", call.vmid, work)


def _check_not_base(call: Call, vm: Vm) -> None:
    if not vm.is_template:
        return
    for each in drives(vm.config):
        found = volumes.owned(call.cluster, vm.node, each.file, vm.vmid)
        if found is not None and found[1].is_base and any(found[0].clones_of(vm.node, found[1])):
            raise Refused(f"base volume '{each.file}' is still in use by linked cloned")


def _take_volumes(call: Call, task: Task, vm: Vm) -> None:
    """Its own volumes go, in use or not; with the option also those that nothing names any more."""
    own = [each.file for each in drives(vm.config)] + [volid for _, volid in unused(vm.config)]
    own += [str(shot.vmstate) for shot in vm.snapshots.values() if shot.vmstate]
    own += [str(vm.config["vmstate"])] if "vmstate" in vm.config else []
    for shot in vm.snapshots.values():
        own += [each.file for each in drives(shot.config)]
    for volid in own:
        _remove(call, vm, volid)
    if not call.values.get("destroy-unreferenced-disks"):
        return
    for store in call.cluster.stores.values():
        for volume in [each for each in store.on(vm.node).values() if each.vmid == vm.vmid]:
            store.remove(vm.node, volume)


_CREATE = {
    **KINDS, "vmid": need(VMID), "pool": POOL, "storage": STORAGE, "start": FLAG, "archive": text(255),
    "force": requiring(FLAG, "archive"), "unique": requiring(FLAG, "archive"), "bwlimit": integer(0),
    "live-restore": FLAG, "import-working-storage": STORAGE, "ha-managed": newer(FLAG),
}  # fmt: skip
_LIST = "/nodes/{node}/qemu"
METHODS = (
    Method(verb="GET", path=_LIST, handler=_list, allow=everybody, params={"full": FLAG}),
    Method(verb="POST", path=_LIST, handler=_create, allow=everybody, params=_CREATE),
    Method(verb="DELETE", path=VM, handler=_destroy, allow=on("/vms/{vmid}", "VM.Allocate"), params={
        "purge": FLAG, "destroy-unreferenced-disks": FLAG, "skiplock": FLAG,
    }),
    Method(verb="POST", path=f"{VM}/template", handler=_template, allow=on("/vms/{vmid}", "VM.Allocate"), params={
        "disk": one_of(*(f"{bus}{n}" for bus in ("ide", "scsi", "sata", "virtio") for n in range(31))),
    }),
)  # fmt: skip
