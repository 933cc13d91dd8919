"""The method that clones a VM: early checks, a placeholder, the volumes one by one, the pool at the very end."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from agentlab.base.clock import sleep
from agentlab.testing.proxmox import volumes
from agentlab.testing.proxmox.access import Caller
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.drives import Drive, drive, drives
from agentlab.testing.proxmox.formats import DNS_NAME, NODE, POOL, SNAPSHOT, STORAGE, VMID
from agentlab.testing.proxmox.kinds import FLAG, integer, need, one_of, parsed, text
from agentlab.testing.proxmox.method import VM, Call, Method, filled
from agentlab.testing.proxmox.options import DRIVE, NIC, NIC_KIND, SMBIOS, UNUSED
from agentlab.testing.proxmox.refusal import Refused, denied
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.units import new_uuid, printed_nic, size_text
from agentlab.testing.proxmox.vm_changes import check_lock
from agentlab.testing.proxmox.vm_rights import check_bridges, check_pool

PLACEHOLDER = {"lock": "clone", "description": "qmclone temporary file"}
TARGET_WAIT_S = 1.0
AFTER_FAILURE_S = 1.0
_NOT_COPIED = frozenset({"lock", "template", "digest", "parent", "vmstate"})


def _may_clone(cluster: Cluster, caller: Caller, values: Mapping[str, Any]) -> None:
    """VM.Clone on the source, and VM.Allocate on the new id or on the pool."""
    access = cluster.access
    access.check(caller, filled("/vms/{vmid}", values), "VM.Clone")
    if access.has(caller, filled("/vms/{newid}", values) or "/vms", "VM.Allocate"):
        return
    if "pool" not in values or not access.has(caller, filled("/pool/{pool}", values) or "/", "VM.Allocate"):
        raise denied()


async def _clone(call: Call) -> Any:
    source = _checked(call)
    call.cluster.check_quorum()

    async def work(task: Task) -> None:
        cluster, newid = call.cluster, call.values["newid"]
        async with cluster.locks.of_vm(newid).held(task.log, TARGET_WAIT_S):
            found = _checked(call)
            task.log(f"creating a clone of VM {found.vmid} with ID {newid}")
            await _fill(call, task, found)

    return call.start("qmclone", source.vmid, work)


def _checked(call: Call) -> Vm:
    """The source, if all that can be known beforehand allows the clone; looked at twice, before and in the task."""
    values, cluster = call.values, call.cluster
    check_pool(call, values.get("pool"))
    source = cluster.vms.get(call.vmid)
    if source is None or source.node != call.node:
        raise Refused(f"unable to find configuration file for VM {call.vmid} on node '{call.node}'")
    check_lock(source)
    snapshot = values.get("snapname")
    if snapshot is not None and snapshot not in source.snapshots:
        raise Refused(f"snapshot '{snapshot}' does not exist")
    config = source.config if snapshot is None else source.snapshots[snapshot].config
    _check_drives(call, source, config)
    check_bridges(call, {key: value for key, value in config.items() if NIC.fullmatch(key)})
    if values["newid"] in cluster.vms:
        raise Refused(f"unable to create VM {values['newid']}: config file already exists")
    if _linked(call, source):
        for name in ("storage", "format"):
            if name in values:
                raise Refused(f"parameter '{name}' not allowed for linked clones")
        _check_link(call, config)
    return source


def _linked(call: Call, source: Vm) -> bool:
    return not call.values.get("full", 0 if source.is_template else 1)


def _check_drives(call: Call, source: Vm, config: Mapping[str, Any]) -> None:
    shared = True
    for each in drives(config):
        if each.file == "none":
            continue
        if not each.cdrom:
            call.check(f"/storage/{call.values.get('storage', each.storage)}", "Datastore.AllocateSpace")
        shared = shared and call.cluster.store(each.storage).shared
    target = call.values.get("target")
    if target not in (None, call.node):
        if target not in call.cluster.nodes:
            raise Refused(f"no such cluster node '{target}'")
        if not shared:
            raise Refused(f"can't clone VM to node '{target}' (VM uses local storage)")


def _check_link(call: Call, config: Mapping[str, Any]) -> None:
    for each in drives(config):
        if each.cdrom:
            continue
        store, volume = volumes.located(call.cluster, call.node, each.file)
        if not store.can_link(volume):
            raise Refused(f"Linked clone feature is not supported for '{each.file}' ({each.key})")


async def _fill(call: Call, task: Task, source: Vm) -> None:
    cluster, values = call.cluster, call.values
    newid = values["newid"]
    target = Vm(vmid=newid, node=call.node, config=dict(PLACEHOLDER))
    cluster.vms[newid] = target
    target.firewall = copy.deepcopy(source.firewall)
    made: list[Drive] = []
    whole = False
    try:
        await _volumes(call, task, source, target, made)
        whole = True
    except Refused as error:
        await sleep(AFTER_FAILURE_S)
        raise Refused(f"clone failed: {error.outcome}") from None
    finally:
        # A worker that is stopped tidies up; one whose node goes down leaves what there is, locked.
        if not whole and cluster.nodes[call.node].absence is None:
            _undo(call, newid, made)
    del target.config["lock"]
    if values.get("target") not in (None, call.node):
        target.node = values["target"]
    if values.get("pool") is not None:
        cluster.access.pools[values["pool"]].vms.add(newid)


def _undo(call: Call, newid: int, made: list[Drive]) -> None:
    for each in made:
        found = volumes.owned(call.cluster, call.node, each.file, newid)
        if found is not None:
            found[0].remove(call.node, found[1])
    del call.cluster.vms[newid]


async def _volumes(call: Call, task: Task, source: Vm, target: Vm, made: list[Drive]) -> None:
    """The new config is written after each volume; until the first it is the placeholder."""
    snapshot = call.values.get("snapname")
    old = source.config if snapshot is None else source.snapshots[snapshot].config
    config = _new_config(call, source, old)
    linked = _linked(call, source)
    for each in drives(old):
        if each.file == "none" or (each.cdrom and not each.cloudinit):
            config[each.key] = old[each.key]
            continue
        text_ = await _volume(call, task, target.vmid, each, linked)
        made.append(drive(each.key, text_))
        config[each.key] = text_
        target.config = {"lock": "clone", **config}
    target.config = {"lock": "clone", **config}


async def _volume(call: Call, task: Task, newid: int, each: Drive, linked: bool) -> str:
    cluster, node = call.cluster, call.node
    store, volume = volumes.located(cluster, node, each.file)
    if linked and not each.cloudinit:
        task.log(f"create linked clone of drive {each.key} ({each.file})")
        new = await volumes.link(cluster, node, newid, store, volume, task.log)
        return each.text(store.volid(new))
    task.log(f"create full clone of drive {each.key} ({each.file})")
    wanted = call.values.get("storage")
    target = store if wanted is None else cluster.store(wanted, node)
    if not linked:
        await cluster.spend("copy")
    kind = call.values.get("format") or (volume.format if target.keeps_files else "raw")
    new = await volumes.copied(cluster, node, newid, (store, volume), target, kind, task.log)
    return each.text(target.volid(new), size=size_text(new.size))


def _new_config(call: Call, source: Vm, old: Mapping[str, Any]) -> dict[str, Any]:
    """What a clone has of its source, and what it gets anew: addresses, uuid, generation, name, description."""
    cluster, values = call.cluster, call.values
    config: dict[str, Any] = {}
    for key, value in old.items():
        if DRIVE.fullmatch(key) or UNUSED.fullmatch(key) or key in _NOT_COPIED or key.startswith("running"):
            continue
        config[key] = value
        if NIC.fullmatch(key):
            config[key] = printed_nic(parsed(NIC_KIND, str(value)) | {"macaddr": cluster.new_mac()})
    smbios = parsed(SMBIOS, str(old.get("smbios1", ""))) | {"uuid": new_uuid(cluster.entropy)}
    config["smbios1"] = ",".join(f"{key}={smbios[key]}" for key in sorted(smbios))
    config["vmgenid"] = new_uuid(cluster.entropy)
    config["name"] = values.get("name") or f"Copy-of-VM-{old.get('name', source.vmid)}"
    if "description" in values:
        config["description"] = values["description"].rstrip("\n")
    return config


METHODS = (
    Method(verb="POST", path=f"{VM}/clone", handler=_clone, allow=_may_clone, params={
        "newid": need(VMID), "name": DNS_NAME, "description": text(), "pool": POOL, "snapname": SNAPSHOT,
        "storage": STORAGE, "format": one_of("raw", "qcow2", "vmdk"), "full": FLAG, "target": NODE,
        "bwlimit": integer(0),
    }),
)  # fmt: skip
