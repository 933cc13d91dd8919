"""All of the way on a simulated cluster whose guests are real: image, upload, template, clone, boot, walls, removal."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from agentlab.backends.interface import Command
from agentlab.backends.proxmox.leak import reached
from agentlab.backends.proxmox.ownership import uuid_of
from agentlab.backends.proxmox.plan import Addresses
from agentlab.backends.proxmox.shelf import ClusterImage
from agentlab.base.process import run
from agentlab.model.network import Card, NetworkMode
from agentlab.model.sandbox import SandboxSpec
from agentlab.testing.backend_contract import result_of
from agentlab.testing.images import shared_image
from agentlab.testing.netlab import NetLab
from agentlab.testing.proxmox.qemu_command import PROGRAM
from agentlab.testing.proxmox.qemu_guests import QemuGuests
from agentlab.testing.proxmox_rig import BRIDGE, ProxmoxRig, proxmox_rig

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="QEMU is not installed"),
    pytest.mark.timeout(600),
]

GATEWAY = IPv4Address("10.77.7.1")
ADDRESSES = Addresses(
    network=IPv4Network("10.77.7.0/24"),
    first=IPv4Address("10.77.7.10"),
    last=IPv4Address("10.77.7.99"),
    gateway=GATEWAY,
    nameserver=IPv4Address(NetLab.NAME_SERVER),
)
INTERNET = [(each, 80) for each in NetLab.INTERNET]
WALLS = [
    *((each, 80) for each in (*NetLab.LAN, *NetLab.TAILNET, *NetLab.METADATA, *NetLab.PRIVATE[:2])),
    *((each, port) for each in (NetLab.HOST[0], str(GATEWAY)) for port in (22, 8006)),
]
SPOOF = """
import socket, subprocess
subprocess.run(["ip", "address", "add", "10.77.7.77/24", "dev", "eth0"], check=True)
one = socket.socket()
one.bind(("10.77.7.77", 0))
one.settimeout(2)
print(one.connect_ex(("1.1.1.10", 80)))
"""


@pytest.fixture(scope="module")
def seen() -> Mapping[str, object]:
    """Everything that is seen of one sandbox, in order."""
    image = shared_image(variant="firmware")
    brought = ClusterImage(digest=image.digest, disk=image.disk, guest_version=image.guest_version)
    with tempfile.TemporaryDirectory(prefix="vm", dir="/tmp") as folder:
        return asyncio.run(observe(Path(folder), brought))


async def observe(folder: Path, image: ClusterImage) -> dict[str, object]:
    async with NetLab() as lab:
        with lab.on_host():
            await bridge()
            guests = QemuGuests(folder=folder / "guests")
            plan = {"addresses": ADDRESSES}
            link = (str(GATEWAY), 0)
            async with proxmox_rig(folder, guests=guests, image=image, link=link, plan=plan, walls=WALLS) as rig:
                rig.sim.cluster.firewall.options["enable"] = 1
                found = await life(rig, guests)
            found["interfaces"] = (await run(["ip", "-brief", "link"])).out.decode()
            found["tables"] = (await run(["nft", "list", "tables"])).out.decode()
            found["folder left"] = guests.folder.exists()
            return found


async def bridge() -> None:
    """The node's bridge, and its way to the internet."""
    for words in (f"link add {BRIDGE} type bridge", f"address add {GATEWAY}/24 dev {BRIDGE}", f"link set {BRIDGE} up"):
        await run(["ip", *words.split()])
    await run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])


async def life(rig: ProxmoxRig, guests: QemuGuests) -> dict[str, object]:
    found: dict[str, object] = {"probe": (await rig.backend.probe()).findings}
    spec, began = rig.spec(network=NetworkMode.NAT), time.monotonic()
    vm = await rig.up(spec)
    found["ready after"] = round(time.monotonic() - began, 1)
    found["templates"] = [each.config["name"] for each in rig.sim.cluster.vms.values() if each.is_template]
    found["walls"] = await out_of(rig, spec, [*WALLS[:12], *INTERNET])
    found["name"] = await says(rig, spec, "getent ahostsv4 web.netlab.test | cut -d' ' -f1 | sort -u")
    found["host"] = await says(
        rig, spec, "hostname; cat /sys/class/net/eth0/address; cat /sys/class/dmi/id/product_uuid"
    )
    port = rig.network.port(spec.mark.sandbox, spec.slot, spec.network)
    found["wanted"] = f"{spec.hostname}\n{port.mac}\n{uuid_of(spec.mark)}"
    found["spoofed"] = await says(rig, spec, f"python3 -c '{SPOOF}'")
    rig.sim.cluster.firewall.options["enable"] = 0
    await asyncio.sleep(2 * guests.enforce_s)
    found["without walls"] = await out_of(rig, spec, WALLS[:2])
    rig.sim.cluster.firewall.options["enable"] = 1
    found["cut off"] = await cut_off(rig, spec, guests, vm.vmid)
    found["plugged again"] = await says(rig, spec, "cat /sys/class/net/eth0/carrier")
    await workspace(rig, spec, found)
    await again(rig, spec, found)
    found["console"] = guests.console(vm.vmid)
    pid = guests.guests[vm.vmid].process.pid
    await rig.backend.destroy(spec.mark)
    found["process left"] = Path(f"/proc/{pid}").exists()
    found["vms left"] = [each for each in rig.sim.cluster.vms.values() if not each.is_template and each.vmid == vm.vmid]
    volumes = rig.sim.cluster.stores["local"].on("pve1").values()
    found["volumes left"] = [each.own for each in volumes if each.vmid == vm.vmid]
    print(f"ready after {found['ready after']} s, again after {found['again after']} s")
    return found


async def cut_off(rig: ProxmoxRig, spec: SandboxSpec, guests: QemuGuests, vmid: int) -> str:
    """What the guest's card says, by its agent, while its network is detached."""
    await rig.network.detach(spec.mark.sandbox)
    look = {"path": "/bin/cat", "arg": ["/sys/class/net/eth0/carrier"], "capture-output": True}
    pid = (await guests.agent(vmid, "guest-exec", look))["pid"]
    async with asyncio.timeout(30):
        while not (said := await guests.agent(vmid, "guest-exec-status", {"pid": pid}))["exited"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await rig.network.attach(rig.network.port(spec.mark.sandbox, spec.slot, spec.network), Card(vmid))
    return base64.b64decode(said["out-data"]).decode().strip()


async def workspace(rig: ProxmoxRig, spec: SandboxSpec, found: dict[str, object]) -> None:
    """A disk comes and goes while it runs; then it is kept as it is, paused, and changed."""
    workspaces, snapshots, disk = rig.backend.workspaces, rig.backend.snapshots, rig.disk()
    assert workspaces is not None
    assert snapshots is not None
    await workspaces.attach(spec.mark, disk)
    found["mounted"] = await says(rig, spec, "echo mine > /work/file; findmnt -no SOURCE /work")
    await workspaces.detach(spec.mark, disk.serial)
    found["unmounted"] = await says(rig, spec, "ls /work; ls /dev/vd* 2>/dev/null || true")
    await says(rig, spec, "echo then > /root/file; sync")
    await snapshots.take(spec.mark, "s", memory=False)
    await says(rig, spec, "echo later > /root/file; echo more > /root/another; sync")
    await rig.backend.pause(spec.mark)
    await rig.backend.resume(spec.mark)
    found["resumed"] = await says(rig, spec, "cat /root/file")


async def again(rig: ProxmoxRig, spec: SandboxSpec, found: dict[str, object]) -> None:
    """Stopped, taken back, and begun once more."""
    assert rig.backend.snapshots is not None
    began = time.monotonic()
    await rig.backend.stop(spec.mark, 30)
    found["stopped after"] = round(time.monotonic() - began, 1)
    await rig.backend.snapshots.restore(spec.mark, "s")
    began = time.monotonic()
    await rig.up(spec)
    found["again after"] = round(time.monotonic() - began, 1)
    found["taken back"] = await says(rig, spec, "cat /root/file; ls /root")


async def out_of(rig: ProxmoxRig, spec: SandboxSpec, targets: list[tuple[str, int]]) -> list[str]:
    control = rig.guests.linked(spec.mark.sandbox)
    assert control is not None
    return await reached(control, targets)


async def says(rig: ProxmoxRig, spec: SandboxSpec, script: str) -> str:
    status, out, err = await result_of(rig.backend, spec.mark, Command(argv=("sh", "-c", script)))
    assert status == 0, err
    return out.decode().strip()


def test_the_image_became_a_template_of_the_cluster(seen: Mapping[str, object]) -> None:
    assert len(seen["templates"]) == 1  # type: ignore[arg-type]


def test_it_reaches_the_internet_and_nothing_behind_the_walls(seen: Mapping[str, object]) -> None:
    assert seen["walls"] == [f"{host}:{port}" for host, port in INTERNET]


def test_without_the_clusters_firewall_the_same_questions_are_answered(seen: Mapping[str, object]) -> None:
    assert seen["without walls"] == [f"{host}:{port}" for host, port in WALLS[:2]]


def test_an_address_that_is_not_its_own_gets_nowhere(seen: Mapping[str, object]) -> None:
    assert seen["spoofed"] == "11"  # EAGAIN: nobody answered


def test_it_has_the_name_that_it_was_given_and_asks_the_clusters_name_server(seen: Mapping[str, object]) -> None:
    assert seen["host"] == seen["wanted"]
    assert seen["name"] == "1.1.1.10"


def test_a_detached_network_is_a_cable_that_was_pulled_and_comes_back(seen: Mapping[str, object]) -> None:
    assert (seen["cut off"], seen["plugged again"]) == ("0", "1")


def test_a_workspace_comes_and_goes_while_it_runs(seen: Mapping[str, object]) -> None:
    assert seen["mounted"] == "/dev/vda"
    assert seen["unmounted"] == ""


def test_it_goes_back_to_its_snapshot(seen: Mapping[str, object]) -> None:
    assert seen["resumed"] == "later"
    assert seen["taken back"] == "then\nfile"


def test_nothing_is_left_of_it(seen: Mapping[str, object]) -> None:
    assert (seen["process left"], seen["vms left"], seen["volumes left"]) == (False, [], [])
    assert "tap" not in str(seen["interfaces"])
    assert (seen["tables"], seen["folder left"]) == ("", False)
