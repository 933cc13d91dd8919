"""From a VM's config to what a guest is started with."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentlab.testing.proxmox import views
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.drives import Drive, drives
from agentlab.testing.proxmox.guests import GuestDisk, GuestMachine, GuestNic
from agentlab.testing.proxmox.kinds import parsed
from agentlab.testing.proxmox.options import NIC, NIC_KIND, SMBIOS
from agentlab.testing.proxmox.state import Vm


def machine(cluster: Cluster, vm: Vm, state: Path | None = None) -> GuestMachine:
    """All that the host of the guests needs."""
    return GuestMachine(
        vmid=vm.vmid,
        node=vm.node,
        name=str(vm.config.get("name", f"VM{vm.vmid}")),
        cores=views.cores(vm.config),
        memory_bytes=views.memory_bytes(vm.config),
        smbios=smbios(vm.config),
        nics=tuple(card(key, str(vm.config[key])) for key in sorted(vm.config) if NIC.fullmatch(key)),
        disks=tuple(disk(cluster, vm, each) for each in drives(vm.config)),
        agent=views.agent_enabled(vm.config),
        config=dict(vm.config),
        state=state,
    )


def disk(cluster: Cluster, vm: Vm, each: Drive) -> GuestDisk:
    """One drive of a VM, and where its file really lies."""
    store = cluster.stores.get(each.storage)
    volume = None if store is None else store.find(vm.node, each.volume)
    return GuestDisk(
        key=each.key,
        volid=each.file,
        path=None if store is None or volume is None else store.real(vm.node, volume),
        format="raw" if volume is None else volume.format,
        size_bytes=0 if volume is None else volume.size,
        cdrom=each.cdrom,
        serial=each.settings.get("serial"),
    )


def smbios(config: Mapping[str, Any]) -> dict[str, str]:
    """The identity of the machine with its texts decoded."""
    values = parsed(SMBIOS, str(config.get("smbios1", "")))
    encoded = values.pop("base64", 0)
    found = {key: str(value) for key, value in values.items()}
    if encoded:
        found = {key: value if key == "uuid" else _decoded(value) for key, value in found.items()}
    return found


def _decoded(given: str) -> str:
    try:
        return base64.b64decode(given).decode("utf-8", errors="replace")
    except binascii.Error:
        return given


def card(key: str, text: str) -> GuestNic:
    """One network card of a VM."""
    found = parsed(NIC_KIND, text)
    return GuestNic(
        key=key,
        model=str(found["model"]),
        mac=str(found["macaddr"]),
        bridge=found.get("bridge"),
        firewall=bool(found.get("firewall")),
        tag=found.get("tag"),
        link_down=bool(found.get("link_down")),
    )
