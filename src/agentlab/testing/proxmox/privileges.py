"""The privileges and the built-in roles of Proxmox VE, by version."""

from __future__ import annotations

_AGENT = (
    "VM.GuestAgent.Audit", "VM.GuestAgent.FileRead", "VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.FileWrite",
    "VM.GuestAgent.Unrestricted",
)  # fmt: skip
_VM = (
    "VM.Allocate", "VM.Audit", "VM.Backup", "VM.Clone", "VM.Config.CDROM", "VM.Config.CPU", "VM.Config.Cloudinit",
    "VM.Config.Disk", "VM.Config.HWType", "VM.Config.Memory", "VM.Config.Network", "VM.Config.Options", "VM.Console",
    "VM.Migrate", "VM.PowerMgmt", "VM.Snapshot", "VM.Snapshot.Rollback",
)  # fmt: skip
_STORE = ("Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit")
_REST = (
    "Group.Allocate", "Mapping.Audit", "Mapping.Modify", "Mapping.Use", "Permissions.Modify", "Pool.Allocate",
    "Pool.Audit", "Realm.Allocate", "Realm.AllocateUser", "SDN.Allocate", "SDN.Audit", "SDN.Use", "Sys.AccessNetwork",
    "Sys.Audit", "Sys.Console", "Sys.Incoming", "Sys.Modify", "Sys.PowerMgmt", "Sys.Syslog", "User.Modify",
)  # fmt: skip
_ADMIN_LACKS = frozenset({
    "Mapping.Modify", "Permissions.Modify", "Realm.Allocate", "Sys.AccessNetwork", "Sys.Incoming", "Sys.Modify",
    "Sys.PowerMgmt",
})  # fmt: skip


def privileges(major: int) -> frozenset[str]:
    """Every privilege that this version knows: 9 has VM.GuestAgent.* and VM.Replicate where 8 has VM.Monitor."""
    return frozenset({*_VM, *_STORE, *_REST, *(("VM.Replicate", *_AGENT) if major >= 9 else ("VM.Monitor",))})


def builtin_roles(major: int) -> dict[str, frozenset[str]]:
    """The roles that are always there and cannot be changed."""
    everything = privileges(major)
    of_vms = frozenset(each for each in everything if each.startswith("VM."))
    agent = frozenset(_AGENT[:4]) if major >= 9 else frozenset({"VM.Monitor"})
    audits = {each for each in everything if each.endswith(".Audit")}
    return {
        "Administrator": everything,
        "NoAccess": frozenset(),
        "PVEAdmin": everything - _ADMIN_LACKS,
        "PVEAuditor": frozenset(audits),
        "PVEDatastoreAdmin": frozenset(_STORE),
        "PVEDatastoreUser": frozenset({"Datastore.AllocateSpace", "Datastore.Audit"}),
        "PVEMappingAdmin": frozenset({"Mapping.Audit", "Mapping.Modify", "Mapping.Use"}),
        "PVEMappingUser": frozenset({"Mapping.Audit", "Mapping.Use"}),
        "PVEPoolAdmin": frozenset({"Pool.Allocate", "Pool.Audit"}),
        "PVEPoolUser": frozenset({"Pool.Audit"}),
        "PVESDNAdmin": frozenset({"SDN.Allocate", "SDN.Audit", "SDN.Use"}),
        "PVESDNUser": frozenset({"SDN.Audit", "SDN.Use"}),
        "PVESysAdmin": frozenset({"Sys.Audit", "Sys.Console", "Sys.Syslog"}),
        "PVETemplateUser": frozenset({"VM.Audit", "VM.Clone"}),
        "PVEUserAdmin": frozenset({"Group.Allocate", "Realm.AllocateUser", "User.Modify"}),
        "PVEVMAdmin": of_vms,
        "PVEVMUser": agent
        | {"VM.Audit", "VM.Backup", "VM.Config.CDROM", "VM.Config.Cloudinit", "VM.Console", "VM.PowerMgmt"},
    }
