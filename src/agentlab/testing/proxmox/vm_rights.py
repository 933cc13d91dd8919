"""Which rights a change of a VM needs: by option, by the storage of a drive, by the bridge of a NIC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentlab.testing.proxmox.drives import Drive, drive
from agentlab.testing.proxmox.kinds import parsed
from agentlab.testing.proxmox.method import Call
from agentlab.testing.proxmox.options import DRIVE, NIC, NIC_KIND, OPTIONS, UNUSED
from agentlab.testing.proxmox.refusal import Refused, denied, invalid
from agentlab.testing.proxmox.state import LOCAL_ZONE

ROOT_ONLY_PATH = "Only root can pass arbitrary filesystem paths. at /usr/share/perl5/PVE/Storage.pm line 651."
CHANGING = tuple(
    f"VM.Config.{part}" for part in ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit")
)


def check_vm(call: Call, vmid: int, pool: str | None, *privileges: str) -> None:
    """Like `Call.check` on the VM, or for a VM to be on its pool."""
    if pool is not None and call.has(f"/pool/{pool}", *privileges):
        return
    call.check(f"/vms/{vmid}", *privileges)


def check_options(call: Call, vmid: int, names: Iterable[str], pool: str | None = None) -> None:
    """Raise Refused unless the caller may change these options; drives are looked at by their values."""
    if call.caller.is_root:
        return
    for name in sorted(names, key=_tags_last):
        if DRIVE.fullmatch(name) or UNUSED.fullmatch(name) or name not in OPTIONS:
            continue
        privileges = OPTIONS[name].privilege
        if privileges is None:
            raise Refused(f"only root can set '{name}' config")
        check_vm(call, vmid, pool, *privileges)
        if name == "startup":
            call.check("/", "Sys.Modify")


def _tags_last(name: str) -> tuple[bool, str]:
    return name == "tags", name


def check_drives(call: Call, vmid: int, values: Mapping[str, Any], default_storage: str | None = None) -> None:
    """Raise Refused unless the caller may use the storages and volumes of these drives."""
    for key, text in values.items():
        if DRIVE.fullmatch(key):
            _check_drive(call, vmid, drive(key, str(text)), default_storage)


def _check_drive(call: Call, vmid: int, each: Drive, default_storage: str | None) -> None:
    if each.file == "none":
        return
    if each.file == "cdrom":
        call.check("/", "Sys.Console")
    elif each.file.endswith(":cloudinit") or each.new_gib is not None:
        call.check(f"/storage/{each.storage}", "Datastore.AllocateSpace")
        _check_images(call, each.storage)
    else:
        _check_volume(call, vmid, each.file)
    source = each.settings.get("import-from")
    if source is not None:
        _check_volume(call, vmid, str(source), any_state=True)


def _check_images(call: Call, storage: str) -> None:
    store = call.cluster.store(storage, call.node)
    if "images" not in store.content:
        raise invalid({"storage": f"storage '{storage}' does not support vm images"})


def _check_volume(call: Call, vmid: int, volid: str, any_state: bool = False) -> None:
    if volid.startswith("/"):
        if not call.caller.is_root:
            raise Refused(ROOT_ONLY_PATH)
        return
    name, _, rest = volid.partition(":")
    store = call.cluster.store(name, call.node)
    volume = store.find(call.node, rest)
    owner = volume.vmid if volume is not None else _owner(rest)
    if owner in (None, vmid):
        call.check(f"/storage/{name}", "Datastore.Audit", "Datastore.AllocateSpace")
    elif not call.has(f"/storage/{name}", "Datastore.Allocate"):
        call.check(f"/vms/{owner}", "VM.Config.Disk")
    if volume is None and not any_state:
        raise Refused(f"volume '{volid}' does not exist")


def _owner(rest: str) -> int | None:
    folder = rest.rpartition("/")[0].rpartition("/")[2]
    return int(folder) if folder.isdigit() else None


def check_special_import(values: Mapping[str, Any]) -> None:
    """Raise Refused (400) if an import states a size."""
    for key, text in values.items():
        if DRIVE.fullmatch(key):
            each = drive(key, str(text))
            if "import-from" in each.settings and each.new_gib != 0:
                usage = "use <storage ID>:0,import-from=<source>"
                raise invalid({key: f"'import-from' requires special syntax - {usage}"})


def check_drive_change(call: Call, vmid: int, each: Drive) -> None:
    """Raise Refused unless the caller may put this drive into the VM."""
    if call.caller.is_root:
        return
    if each.cdrom:
        call.check(f"/vms/{vmid}", "VM.Config.CDROM")
        if each.file.endswith(":cloudinit"):
            call.check(f"/vms/{vmid}", "VM.Config.Cloudinit")
    else:
        call.check(f"/vms/{vmid}", "VM.Config.Disk")


def check_bridges(call: Call, values: Mapping[str, Any]) -> None:
    """Raise Refused unless the caller may use the bridges and vnets of these NICs."""
    for key, text in values.items():
        if NIC.fullmatch(key):
            nic = parsed(NIC_KIND, str(text))
            if "bridge" in nic:
                call.check(bridge_path(call, str(nic["bridge"]), nic.get("tag")), "SDN.Use")


def bridge_path(call: Call, name: str, tag: int | None = None) -> str:
    """The path of the access control for a bridge or vnet."""
    vnet = call.cluster.sdn.vnets.get(name)
    path = f"/sdn/zones/{LOCAL_ZONE if vnet is None else vnet['zone']}/{name}"
    if tag is not None and not call.has(path, "SDN.Use"):
        path += f"/{tag}"
    return path


def check_pool(call: Call, pool: str | None) -> None:
    """Raise Refused (403, without a path) for a pool that is not there."""
    if pool is not None and pool not in call.cluster.access.pools:
        raise denied()
