"""Methods that read and change the config of a VM and its drives."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from agentlab.testing.proxmox import volumes
from agentlab.testing.proxmox.cloudinit import METHODS as CLOUDINIT_METHODS
from agentlab.testing.proxmox.drives import drive, drives, free_unused
from agentlab.testing.proxmox.formats import CONFIG_IDS, DIGEST, SNAPSHOT, STORAGE, VMID, words
from agentlab.testing.proxmox.kinds import FLAG, integer, matching, need, one_of, requiring
from agentlab.testing.proxmox.method import VM, Call, Method, on
from agentlab.testing.proxmox.options import DRIVE, DRIVES, KINDS, OPTIONS, UNUSED_MAX
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.storage import Store, Volume
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.units import size_bytes, size_text
from agentlab.testing.proxmox.vm_changes import Changes, apply, check_lock
from agentlab.testing.proxmox.vm_rights import (
    CHANGING,
    check_bridges,
    check_drive_change,
    check_drives,
    check_options,
    check_special_import,
)

DRIVE_KEYS = tuple(f"{bus}{n}" for bus, count in DRIVES.items() for n in range(count))
UNUSED_KEYS = tuple(f"unused{n}" for n in range(UNUSED_MAX))
_NOT_OPTIONS = frozenset(
    {"node", "vmid", "digest", "delete", "revert", "force", "skiplock", "background_delay", "import-working-storage"}
)


def check_skiplock(call: Call) -> None:
    """Raise Refused (400) unless root itself asks to pass over locks."""
    if call.values.get("skiplock") and not call.caller.is_root:
        raise invalid({"skiplock": "Only root may use this option."})


def check_ssh_keys(values: dict[str, Any]) -> None:
    """Raise Refused (500) unless the keys are keys."""
    for line in unquote(str(values.get("sshkeys", ""))).splitlines():
        if line.strip() and not re.match(r"(ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/]{30,}={0,3}( |$)", line.strip()):
            raise Refused("SSH public key validation error")


async def _config(call: Call) -> Any:
    vm = call.vm()
    wanted = call.values.get("snapshot")
    if wanted is not None:
        if wanted not in vm.snapshots:
            raise Refused(f"snapshot '{wanted}' does not exist")
        return dict(vm.snapshots[wanted].config)
    config = dict(vm.config)
    if not call.values.get("current"):
        config |= vm.pending
        config = {key: value for key, value in config.items() if key not in vm.removed}
    if "cipassword" in config:
        config["cipassword"] = "**********"
    if vm.parent is not None:
        config["parent"] = vm.parent
    return config | {"digest": vm.digest()}


async def _pending(call: Call) -> Any:
    vm = call.vm()
    rows: list[dict[str, Any]] = []
    for key, value in vm.config.items():
        row: dict[str, Any] = {"key": key, "value": value}
        if key in vm.pending:
            row["pending"] = vm.pending[key]
        if key in vm.removed:
            row["delete"] = vm.removed[key]
        rows.append(row)
    rows += [{"key": key, "pending": value} for key, value in vm.pending.items() if key not in vm.config]
    return [*rows, {"key": "digest", "value": vm.digest()}]


def _changes(call: Call) -> Changes:
    """Check a change as far as that goes without the config's lock."""
    values = call.values
    check_ssh_keys(values)
    check_skiplock(call)
    wanted = {name: value for name, value in values.items() if name not in _NOT_OPTIONS}
    delete, revert = tuple(words(values.get("delete", ""))), tuple(words(values.get("revert", "")))
    for name in (*delete, *revert):
        if name not in OPTIONS:
            raise invalid({"delete" if name in delete else "revert": f"unknown option '{name}'"})
        if name in wanted:
            raise invalid({"delete": f"you can't use '-{name}' and -delete {name}' at the same time"})
    if not (wanted or delete or revert):
        raise Refused("no options specified")
    check_special_import(wanted)
    check_drives(call, call.vmid, wanted)
    check_options(call, call.vmid, (*delete, *revert))
    check_options(call, call.vmid, wanted)
    check_bridges(call, wanted)
    vm = call.vm()
    for name, text in wanted.items():
        if DRIVE.fullmatch(name):
            check_drive_change(call, vm.vmid, drive(name, str(text)))
    for name in delete:
        if name.startswith("unused"):
            call.check(f"/vms/{vm.vmid}", "VM.Config.Disk")
        elif DRIVE.fullmatch(name) and name in vm.config:
            check_drive_change(call, vm.vmid, drive(name, str(vm.config[name])))
    return Changes(
        values=wanted, delete=delete, revert=revert, force=bool(values.get("force")), digest=values.get("digest")
    )


async def _put(call: Call) -> Any:
    changes = _changes(call)
    async with call.cluster.locks.of_vm(call.vmid).held():
        await call.cluster.spend("config")
        await apply(call.cluster, call.vm(), changes, lambda line: None)


async def _post(call: Call) -> Any:
    changes = _changes(call)
    said = {name: value for name, value in call.values.items() if name not in ("node", "vmid", "digest")}
    if changes.digest is not None and changes.digest != call.vm().digest():
        raise Refused("checksum mismatch (file change by other user?)")
    check_lock(call.vm())

    async def work(task: Task) -> None:
        async with call.cluster.locks.of_vm(call.vmid).held(task.log):
            words_said = " ".join(f"-{name} {value}" for name, value in sorted(said.items()))
            task.log(f"update VM {call.vmid}: {words_said}")
            await call.cluster.spend("qmconfig")
            await apply(call.cluster, call.vm(), changes, task.log)

    return call.start("qmconfig", call.vmid, work)


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


_CHANGE = on("/vms/{vmid}", *CHANGING)
_SEE, _DISK = on("/vms/{vmid}", "VM.Audit"), on("/vms/{vmid}", "VM.Config.Disk")
_DRIVE = one_of(*DRIVE_KEYS)
_ANY_DRIVE = one_of(*DRIVE_KEYS, *UNUSED_KEYS)


_CONFIG = {
    **KINDS, "delete": CONFIG_IDS, "revert": CONFIG_IDS, "force": requiring(FLAG, "delete"), "skiplock": FLAG,
    "digest": DIGEST,
}  # fmt: skip
_IN_BACKGROUND = {"background_delay": integer(1, 30), "import-working-storage": STORAGE}
_PATH = f"{VM}/config"
METHODS = (
    Method(verb="GET", path=_PATH, handler=_config, allow=_SEE, params={"current": FLAG, "snapshot": SNAPSHOT}),
    Method(verb="PUT", path=_PATH, handler=_put, allow=_CHANGE, params=_CONFIG),
    Method(verb="POST", path=_PATH, handler=_post, allow=_CHANGE, params=_CONFIG | _IN_BACKGROUND),
    Method(verb="GET", path=f"{VM}/pending", handler=_pending, allow=_SEE),
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
    *CLOUDINIT_METHODS,
)  # fmt: skip
