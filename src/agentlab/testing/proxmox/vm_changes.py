"""Changes of a VM's config: what is done at once, what waits until it has stopped, what happens to volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentlab.testing.proxmox import volumes
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.drives import Drive, drive, free_unused, unused
from agentlab.testing.proxmox.guests import AgentAbsent, GuestFailed
from agentlab.testing.proxmox.kinds import parsed
from agentlab.testing.proxmox.machine import card, disk
from agentlab.testing.proxmox.options import DRIVE, NIC, NIC_KIND, OPTIONS, UNUSED, stored
from agentlab.testing.proxmox.refusal import Refused, invalid
from agentlab.testing.proxmox.state import Vm
from agentlab.testing.proxmox.units import new_uuid, printed_nic, size_text, tags_text
from agentlab.testing.proxmox.views import agent_enabled

Log = Callable[[str], None]
HOT_BUSES = ("scsi", "virtio")
BUSY = "hotplug problem - error on hot-unplugging device '{}' - still busy in guest?\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one call wants of a config."""

    values: Mapping[str, Any]
    delete: tuple[str, ...] = ()
    revert: tuple[str, ...] = ()
    force: bool = False
    digest: str | None = None


def check_lock(vm: Vm) -> None:
    """Raise Refused while an operation has marked the config."""
    if vm.config.get("lock"):
        raise Refused(f"VM is locked ({vm.config['lock']})")


def check_protection(vm: Vm, what: str) -> None:
    """Raise Refused for a protected VM."""
    if vm.config.get("protection"):
        raise Refused(f"{what} - protection mode enabled")


async def apply(cluster: Cluster, vm: Vm, changes: Changes, log: Log) -> None:
    """Carry out a change; the caller holds the config's lock.  Raises Refused."""
    if changes.digest is not None and changes.digest != vm.digest():
        raise Refused("checksum mismatch (file change by other user?)")
    check_lock(vm)
    for key in changes.revert:
        vm.pending.pop(key, None)
        vm.removed.pop(key, None)
    for key in changes.delete:
        await _delete(cluster, vm, key, changes.force, log)
    for key, value in changes.values.items():
        if DRIVE.fullmatch(key):
            await _set_drive(cluster, vm, drive(key, str(value)), log)
        elif NIC.fullmatch(key):
            await _set_nic(cluster, vm, key, str(value))
        else:
            _set(vm, key, _normal(cluster, key, value))


def _normal(cluster: Cluster, key: str, value: Any) -> Any:
    if key == "tags":
        return tags_text(str(value))
    if key == "vmgenid" and str(value) == "1":
        return new_uuid(cluster.entropy)
    if key == "description":
        return str(value).rstrip("\n")
    return stored(key, value)


def _set(vm: Vm, key: str, value: Any) -> None:
    vm.removed.pop(key, None)
    if not vm.running or OPTIONS[key].live:
        vm.config[key] = value
        vm.pending.pop(key, None)
        if value == "":  # an empty description leaves no line in the file
            del vm.config[key]
    elif vm.config.get(key) == value:
        vm.pending.pop(key, None)
    else:
        vm.pending[key] = value


async def _set_nic(cluster: Cluster, vm: Vm, key: str, text: str) -> None:
    nic = parsed(NIC_KIND, text)
    nic.setdefault("macaddr", cluster.new_mac())
    nic["macaddr"] = str(nic["macaddr"]).upper()
    before = parsed(NIC_KIND, str(vm.config[key])) if key in vm.config else None
    value = printed_nic(nic)
    if vm.running and before is not None and (before["model"], before["macaddr"]) != (nic["model"], nic["macaddr"]):
        if agent_enabled(vm.config) and not await answers(cluster, vm):
            vm.pending[key] = value
            raise invalid({key: BUSY.format(key)})
        await cluster.spend("unplug")
    elif vm.running and before is not None:
        await cluster.guests.rewired(vm.vmid, card(key, value))
    _set(vm, key, value)


async def answers(cluster: Cluster, vm: Vm) -> bool:
    """Whether the guest's agent is there; asked without the time that a call through the API takes."""
    try:
        await cluster.guests.agent(vm.vmid, "guest-ping", {})
    except AgentAbsent:
        return False
    return True


async def _set_drive(cluster: Cluster, vm: Vm, each: Drive, log: Log) -> None:
    waiting = vm.pending.pop(each.key, None)
    if waiting is not None:
        _to_unused(cluster, vm, drive(each.key, str(waiting)))
    new = each.key not in vm.config
    text = await settled(cluster, vm.node, vm.vmid, each, log)
    found = drive(each.key, text)
    for key, volid in list(unused(vm.config)):
        if volid == found.file:
            del vm.config[key]
    before = None if new else drive(each.key, str(vm.config[each.key]))
    at_once = not vm.running or (before is not None and before.cdrom and found.cdrom) or _hot(each.key)
    vm.removed.pop(each.key, None)
    if not at_once:
        vm.pending[each.key] = text
    else:
        changed = before is None or before.file != found.file
        if before is not None and changed:
            await _unplugged(cluster, vm, each.key)
            _to_unused(cluster, vm, before)
        if changed:
            await _plugged(cluster, vm, found)
        vm.config[each.key] = text
    if new and found.cdrom and not vm.running:
        _append_boot(vm, each.key)


async def _plugged(cluster: Cluster, vm: Vm, each: Drive) -> None:
    """A running guest gets a disk that it did not begin with."""
    if vm.running and not each.cdrom:
        try:
            await cluster.guests.plugged(vm.vmid, disk(cluster, vm, each))
        except GuestFailed as error:
            raise invalid({each.key: f"hotplug problem - {error}\n"}) from None


async def _unplugged(cluster: Cluster, vm: Vm, key: str) -> None:
    if vm.running and key in vm.config and not drive(key, str(vm.config[key])).cdrom:
        try:
            await cluster.guests.unplugged(vm.vmid, key)
        except GuestFailed:
            vm.removed[key] = 1  # the wish stays, for the next stop or the next try
            raise invalid({key: BUSY.format(key)}) from None


async def settled(cluster: Cluster, node: str, vmid: int, each: Drive, log: Log) -> str:
    """The text of a drive whose volume exists: made if the option asks for a new one, else with its size noted."""
    if each.file in ("none", "cdrom"):
        return each.text()
    if each.new_gib is not None or each.file.endswith(":cloudinit"):
        return await volumes.made_for(cluster, node, vmid, each, log)
    _, volume = volumes.located(cluster, node, each.file)
    return each.text(size=size_text(volume.size))


def _hot(key: str) -> bool:
    return key.startswith(HOT_BUSES)


def _to_unused(cluster: Cluster, vm: Vm, each: Drive, force: bool = False) -> None:
    """What becomes of a volume that leaves its place: noted as unused, or gone; others' volumes are left alone."""
    found = volumes.owned(cluster, vm.node, each.file, vm.vmid)
    if found is None or (each.cdrom and not each.cloudinit):
        return
    store, volume = found
    if force or each.cloudinit:
        store.remove(vm.node, volume)
    else:
        vm.config[free_unused(vm.config)] = each.file


async def _delete(cluster: Cluster, vm: Vm, key: str, force: bool, log: Log) -> None:
    if key not in vm.config and key not in vm.pending:
        log(f"cannot delete '{key}' - not set in current configuration!")
        return
    vm.pending.pop(key, None)
    if DRIVE.fullmatch(key) or UNUSED.fullmatch(key):
        check_protection(vm, f"can't remove {'unused disk' if UNUSED.fullmatch(key) else 'drive'} '{key}'")
    if key not in vm.config:
        return
    live = _hot(key) or OPTIONS[key].live
    if vm.running and not live:
        vm.removed[key] = 2 if force else 1
    else:
        if vm.running and _hot(key):
            await cluster.spend("unplug")
            await _unplugged(cluster, vm, key)
            vm.removed.pop(key, None)
        _take_out(cluster, vm, key, force)
    _shorten_boot(vm, key)


def _take_out(cluster: Cluster, vm: Vm, key: str, force: bool) -> None:
    value = str(vm.config.pop(key))
    if UNUSED.fullmatch(key):
        found = volumes.owned(cluster, vm.node, value.partition(",")[0], vm.vmid)
        if found is not None:
            found[0].remove(vm.node, found[1])
    elif DRIVE.fullmatch(key):
        _to_unused(cluster, vm, drive(key, value), force)


def boot_order(config: Mapping[str, Any]) -> list[str]:
    """The devices of the boot option."""
    text = str(config.get("boot", ""))
    return [each for each in text.removeprefix("order=").split(";") if each] if text.startswith("order=") else []


def _append_boot(vm: Vm, key: str) -> None:
    order = boot_order(vm.config)
    if order and key not in order:
        vm.config["boot"] = "order=" + ";".join([*order, key])


def _shorten_boot(vm: Vm, key: str) -> None:
    order = boot_order({"boot": vm.pending.get("boot", vm.config.get("boot", ""))})
    if key in order:
        order.remove(key)
        _set(vm, "boot", "order=" + ";".join(order))


def apply_pending(cluster: Cluster, vm: Vm) -> None:
    """What happens when a VM has stopped: all that was waiting takes effect."""
    for key, how in list(vm.removed.items()):
        if key in vm.config:
            _take_out(cluster, vm, key, how == 2)
    for key, value in list(vm.pending.items()):
        if DRIVE.fullmatch(key) and key in vm.config:
            before, after = drive(key, str(vm.config[key])), drive(key, str(value))
            if before.file != after.file:
                _to_unused(cluster, vm, before)
        vm.config[key] = value
    vm.removed.clear()
    vm.pending.clear()
