"""Methods about the data that cloud-init gets: what was set, and the files that come of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from agentlab.testing.proxmox.formats import words
from agentlab.testing.proxmox.kinds import need, one_of
from agentlab.testing.proxmox.method import VM, Call, Method, on
from agentlab.testing.proxmox.units import digest

SHOWN = ("ciuser", "cipassword", "nameserver", "searchdomain", "sshkeys")


async def _values(call: Call) -> Any:
    config = call.vm().config
    return [{"key": name, "value": config[name]} for name in SHOWN if name in config]


async def _regenerate(call: Call) -> Any:
    call.vm()


async def _dump(call: Call) -> Any:
    vm = call.vm()
    user, network = user_data(vm.vmid, vm.config), network_data(vm.config)
    if call.values["type"] == "user":
        return user
    return network if call.values["type"] == "network" else f"instance-id: {digest(user + network)}\n"


def user_data(vmid: int, config: Mapping[str, Any]) -> str:
    """The cloud-config that a guest reads."""
    name = str(config.get("name", f"VM{vmid}")).partition(".")[0]
    lines = ["#cloud-config", f"hostname: {name}", "manage_etc_hosts: true", f"fqdn: {config.get('name', name)}"]
    if "ciuser" in config:
        lines.append(f"user: {config['ciuser']}")
    if "sshkeys" in config:
        lines.append("ssh_authorized_keys:")
        lines += [f"  - {key}" for key in unquote(str(config["sshkeys"])).splitlines() if key]
    lines += ["chpasswd:", "  expire: False", "users:", "  - default"]
    if config.get("ciupgrade", 1):
        lines.append("package_upgrade: true")
    return "\n".join(lines) + "\n"


def network_data(config: Mapping[str, Any]) -> str:
    """The network settings that a guest reads."""
    lines = ["version: 1", "config:"]
    for index in range(32):
        if f"net{index}" not in config:
            continue
        mac = str(config[f"net{index}"]).partition("=")[2].partition(",")[0].lower()
        lines += ["    - type: physical", f"      name: eth{index}", f"      mac_address: '{mac}'", "      subnets:"]
        lines += _subnet(str(config.get(f"ipconfig{index}", "ip=dhcp")))
    if "nameserver" in config:
        lines += ["    - type: nameserver", "      address:"]
        lines += [f"      - '{each}'" for each in words(str(config["nameserver"]))]
    return "\n".join(lines) + "\n"


def _subnet(text: str) -> list[str]:
    settings = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    address = settings.get("ip", "dhcp")
    if address == "dhcp":
        return ["      - type: dhcp4"]
    network = ipaddress.ip_interface(address)
    lines = ["      - type: static", f"        address: '{network.ip}'", f"        netmask: '{network.netmask}'"]
    return lines + ([f"        gateway: '{settings['gw']}'"] if "gw" in settings else [])


METHODS = (
    Method(verb="GET", path=f"{VM}/cloudinit", handler=_values, allow=on("/vms/{vmid}", "VM.Audit")),
    Method(verb="PUT", path=f"{VM}/cloudinit", handler=_regenerate, allow=on("/vms/{vmid}", "VM.Config.Cloudinit")),
    Method(verb="GET", path=f"{VM}/cloudinit/dump", handler=_dump, allow=on("/vms/{vmid}", "VM.Audit"), params={
        "type": need(one_of("user", "network", "meta")),
    }),
)  # fmt: skip
