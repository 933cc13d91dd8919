"""The options of a VM's config: what each may be, which privilege it needs, whether a running VM takes it at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from agentlab.testing.proxmox.formats import (
    ADDRESSES,
    BRIDGE,
    DNS_NAME,
    IPV4_CONFIG,
    IPV6_CONFIG,
    MAC,
    SIZE,
    STORAGE,
    TAGS,
    URL_ENCODED,
    VOLUME,
)
from agentlab.testing.proxmox.kinds import FLAG, NUMBER, Kind, integer, matching, newer, one_of, text

DRIVES = {"ide": 4, "sata": 6, "scsi": 31, "virtio": 16, "efidisk": 1, "tpmstate": 1}
UNUSED_MAX = 256
DRIVE = re.compile(r"(ide|sata|scsi|virtio)\d+|efidisk0|tpmstate0")
NIC = re.compile(r"net\d+")
UNUSED = re.compile(r"unused\d+")
BOOTABLE = re.compile(r"(ide|sata|scsi|virtio|net)\d+")
NIC_MODELS = (
    "e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er",
    "ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3",
)  # fmt: skip
BASE64_TEXT = r"[A-Za-z0-9+/]+={0,2}"
UUID = r"[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}"
DESCRIPTION_CHARACTERS_MAX = 8192
SMBIOS_CHARACTERS_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """`privilege` on /vms/{vmid}, or several of which one does; None: root alone may set it.

    `live`: a running VM takes a new value at once; else it is pending until the VM has stopped.  `since`: the major
    version that brought it.
    """

    kind: Kind
    privilege: tuple[str, ...] | None
    live: bool = False
    since: int = 8


_LIMITS = {
    f"{unit}{way}{limit}": integer() if unit != "mbps" else NUMBER
    for unit in ("bps", "iops", "mbps")
    for way in ("", "_rd", "_wr")
    for limit in ("", "_max")
}
_DRIVE_FIELDS = {
    "file": Kind(check=VOLUME.check, required=True),
    "volume": Kind(alias="file"),
    "media": one_of("cdrom", "disk"),
    "size": SIZE,
    "format": one_of("raw", "qcow", "qed", "qcow2", "vmdk", "cloop"),
    "import-from": text(),
    "cache": one_of("none", "writethrough", "writeback", "unsafe", "directsync"),
    "aio": one_of("native", "threads", "io_uring"),
    "discard": one_of("ignore", "on"),
    "detect_zeroes": FLAG,
    "serial": Kind(check=URL_ENCODED.check, length_max=60),
    "wwn": matching(r"0x[0-9a-fA-F]{16}"),
    "snapshot": FLAG,
    "backup": FLAG,
    "replicate": FLAG,
    "shared": FLAG,
    "ssd": FLAG,
    "iothread": FLAG,
    "ro": FLAG,
    "queues": integer(2),
    "scsiblock": FLAG,
    "product": matching(r"[A-Za-z0-9\-_\s]{,16}"),
    "vendor": matching(r"[A-Za-z0-9\-_\s]{,8}"),
    "model": Kind(check=URL_ENCODED.check, length_max=120),
    "rerror": one_of("ignore", "report", "stop"),
    "werror": one_of("enospc", "ignore", "report", "stop"),
    **_LIMITS,
}
_ABSENT = {"ide": {"iothread", "ro", "queues", "scsiblock", "product", "vendor"}, "virtio": {"ssd", "queues", "model"}}
_NIC_FIELDS = {
    "model": Kind(choices=NIC_MODELS, required=True),
    "macaddr": MAC,
    "bridge": BRIDGE,
    "firewall": FLAG,
    "link_down": FLAG,
    "mtu": integer(1, 65520),
    "queues": integer(0, 64),
    "rate": NUMBER,
    "tag": integer(1, 4094),
    "trunks": matching(r"\d+(?:-\d+)?(?:;\d+(?:-\d+)?)*"),
    **{model: Kind(alias="macaddr", names="model") for model in NIC_MODELS},
}
_SMBIOS_WORD = matching(BASE64_TEXT)
SMBIOS = Kind(
    length_max=SMBIOS_CHARACTERS_MAX,
    fields={
        "base64": FLAG,
        "uuid": matching(UUID),
        **dict.fromkeys(("family", "manufacturer", "product", "serial", "sku", "version"), _SMBIOS_WORD),
    },
)
AGENT = Kind(
    default_key="enabled",
    fields={
        "enabled": Kind(type="boolean", required=True),
        "type": one_of("virtio", "isa"),
        "freeze-fs-on-backup": FLAG,
        "fstrim_cloned_disks": FLAG,
    },
)
NIC_KIND = Kind(fields=_NIC_FIELDS, default_key="model")
UNUSED_KIND = Kind(fields={"file": VOLUME, "volume": Kind(alias="file")}, default_key="file")
_MEMORY = Kind(default_key="current", fields={"current": Kind(type="integer", minimum=16, required=True)})
_MACHINE = Kind(
    default_key="type",
    fields={
        "type": matching(r"pc|q35|virt|(pc|pc-i440fx|pc-q35|virt)-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?"),
        "viommu": text(),
    },
)
_VGA = Kind(
    default_key="type",
    fields={
        "type": one_of(
            "cirrus", "qxl", "qxl2", "qxl3", "qxl4", "none", "serial0", "serial1", "serial2", "serial3", "std",
            "virtio", "virtio-gl", "vmware",
        ),
        "memory": integer(4, 512),
        "clipboard": one_of("vnc"),
    },
)  # fmt: skip
_BOOT = Kind(
    default_key="legacy",
    fields={
        "legacy": matching(r"[acdn]{1,4}"),
        "order": matching(
            r"((ide|sata|scsi|virtio|net|usb|hostpci)\d+)(;(ide|sata|scsi|virtio|net|usb|hostpci)\d+)*;?"
        ),
    },
)
_CPU = Kind(
    default_key="cputype",
    fields={
        "cputype": matching(r"[a-zA-Z0-9.\-_]+"),
        "flags": text(),
        "hidden": FLAG,
        "hv-vendor-id": text(12),
        "phys-bits": text(),
        "reported-model": text(),
    },
)
_RNG = Kind(
    default_key="source",
    fields={
        "source": Kind(choices=("/dev/urandom", "/dev/random", "/dev/hwrng"), required=True),
        "max_bytes": integer(0),
        "period": integer(1),
    },
)
_WATCHDOG = Kind(
    default_key="model",
    fields={
        "model": one_of("i6300esb", "ib700"),
        "action": one_of("reset", "shutdown", "poweroff", "pause", "debug", "none"),
    },
)
_IP_CONFIG = Kind(fields={"ip": IPV4_CONFIG, "gw": text(), "ip6": IPV6_CONFIG, "gw6": text()})
_STARTUP = Kind(default_key="order", fields={"order": integer(0), "up": integer(0), "down": integer(0)})
_OSTYPE = one_of(
    "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris"
)
_LOCK = one_of(
    "backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended"
)
_CPU_P, _MEMORY_P, _HARDWARE_P = ("VM.Config.CPU",), ("VM.Config.Memory",), ("VM.Config.HWType",)
_OPTIONS_P, _DISK_P, _CLOUDINIT_P = (
    ("VM.Config.Options",),
    ("VM.Config.Disk",),
    ("VM.Config.Cloudinit", "VM.Config.Network"),
)


def _drive(bus: str) -> Kind:
    fields = {name: kind for name, kind in _DRIVE_FIELDS.items() if name not in _ABSENT.get(bus, _ABSENT["ide"])}
    if bus == "scsi":
        fields = _DRIVE_FIELDS | {}
        del fields["model"]
    if bus == "efidisk":
        fields |= {"efitype": one_of("2m", "4m"), "pre-enrolled-keys": FLAG}
    if bus == "tpmstate":
        fields |= {"version": one_of("v1.2", "v2.0")}
    return Kind(fields=fields, default_key="file")


def _of(
    privilege: tuple[str, ...] | None, kinds: dict[str, Kind], live: bool = False, since: int = 8
) -> dict[str, Option]:
    return {name: Option(kind=kind, privilege=privilege, live=live, since=since) for name, kind in kinds.items()}


OPTIONS: dict[str, Option] = {
    **_of(_CPU_P, {
        "cores": integer(1), "sockets": integer(1), "vcpus": integer(1), "cpu": _CPU, "cpulimit": NUMBER, "numa": FLAG,
        "cpuunits": integer(1, 262144), "affinity": text(),
    }),
    **_of(_MEMORY_P, {"memory": _MEMORY, "balloon": integer(0)}),
    **_of(_MEMORY_P, {"shares": integer(0, 50000)}, live=True),
    **_of(_MEMORY_P, {"allow-ksm": FLAG}, since=9),
    **_of(_HARDWARE_P, {
        "acpi": FLAG, "audio0": text(), "hotplug": text(), "kvm": FLAG, "machine": _MACHINE, "rng0": _RNG,
        "scsihw": one_of("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"),
        "smbios1": SMBIOS, "tablet": FLAG, "vga": _VGA, "watchdog": _WATCHDOG,
        **{f"serial{n}": matching(r"/dev/[^,]+|socket") for n in range(4)},
    }),
    **_of(_OPTIONS_P, {
        "agent": AGENT, "autostart": FLAG, "bios": one_of("seabios", "ovmf"), "keyboard": text(), "localtime": FLAG,
        "ostype": _OSTYPE, "reboot": FLAG, "tdf": FLAG, "template": FLAG, "startdate": text(), "freeze": FLAG,
    }),
    **_of(_OPTIONS_P, {
        "name": DNS_NAME, "description": text(DESCRIPTION_CHARACTERS_MAX), "onboot": FLAG, "protection": FLAG,
        "startup": _STARTUP, "tags": TAGS,
    }, live=True),
    **_of(_DISK_P, {"boot": _BOOT, "bootdisk": text()}),
    **_of(_DISK_P, {"vmstatestorage": STORAGE}, live=True),
    **_of(_CLOUDINIT_P, {
        "cicustom": text(), "cipassword": text(), "citype": one_of("configdrive2", "nocloud", "opennebula"),
        "ciupgrade": FLAG, "ciuser": text(), "nameserver": ADDRESSES, "searchdomain": text(), "sshkeys": URL_ENCODED,
        **{f"ipconfig{n}": _IP_CONFIG for n in range(32)},
    }),
    **_of(("VM.Config.Network",), {f"net{n}": NIC_KIND for n in range(32)}, live=True),
    **_of(_DISK_P, {
        f"{bus}{n}": _drive(bus) for bus, count in DRIVES.items() for n in range(count)
    }),
    **_of(_DISK_P, {f"unused{n}": UNUSED_KIND for n in range(UNUSED_MAX)}, live=True),
    **_of(None, {
        "args": text(), "hookscript": text(), "vmgenid": matching(rf"{UUID}|[01]"), "lock": _LOCK, "hugepages": text(),
        **{f"hostpci{n}": text() for n in range(16)}, **{f"usb{n}": text() for n in range(14)},
    }),
    **_of(None, {"intel-tdx": text()}, since=9),
}  # fmt: skip


KINDS: dict[str, Kind] = {name: newer(option.kind, option.since) for name, option in OPTIONS.items()}


def stored(name: str, value: Any) -> Any:
    """A value as a config shows it: numbers and flags as numbers, all else as text."""
    option = OPTIONS.get(name)
    if option is not None and option.kind.type in ("integer", "boolean"):
        return int(value)
    return str(value)
