"""What happens to sandboxes on a cluster beyond the contract: their network, restarts, templates, other people."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentlab.backends.interface import Command, Gone, NotOurs, Refused
from agentlab.backends.proxmox import firewall
from agentlab.backends.proxmox.shelf import ClusterImage
from agentlab.base.files import mounts_below
from agentlab.model.ids import Digest
from agentlab.model.network import Card, NetworkMode
from agentlab.model.sandbox import Power, SandboxSpec
from agentlab.testing.backend_contract import power_of, result_of, running
from agentlab.testing.proxmox import state
from agentlab.testing.proxmox.images import small_qcow2
from agentlab.testing.proxmox.process_guests import ProcessGuests
from agentlab.testing.proxmox.units import GIB
from agentlab.testing.proxmox_rig import ProxmoxRig, proxmox_rig

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="guests in namespaces of their own need root"),
]

SOON_S = 10.0


@pytest.fixture
def guests(tmp_path: Path) -> ProcessGuests:
    return ProcessGuests(folder=tmp_path / "guests")


@pytest.fixture
async def rig(tmp_path: Path, guests: ProcessGuests) -> AsyncIterator[ProxmoxRig]:
    async with proxmox_rig(tmp_path, guests=guests) as rig:
        yield rig


async def says(rig: ProxmoxRig, spec: SandboxSpec, *argv: str) -> str:
    status, out, err = await result_of(rig.backend, spec.mark, Command(argv=argv))
    assert status == 0, err
    return out.decode().strip()


async def until(rig: ProxmoxRig, spec: SandboxSpec, power: Power) -> None:
    async with asyncio.timeout(SOON_S):
        while await power_of(rig.backend, spec.mark.sandbox) is not power:  # noqa: ASYNC110 - nothing tells but looking
            await asyncio.sleep(0.1)


# Network


async def test_the_walls_stand_before_the_start_and_hold_the_sandboxes_own_address(rig: ProxmoxRig) -> None:
    spec = rig.spec(network=NetworkMode.NAT)

    vm = await rig.up(spec)

    address = str(rig.network.port(spec.mark.sandbox, spec.slot, NetworkMode.NAT).address)
    assert set(vm.firewall.ipsets[firewall.IPSET]) == {address}
    assert (vm.firewall.options["policy_out"], vm.firewall.options["enable"]) == ("DROP", 1)
    assert f"virtio={rig.network.port(spec.mark.sandbox, spec.slot, NetworkMode.NAT).mac.upper()}" in vm.config["net0"]


async def test_a_rule_that_somebody_adds_is_noticed_and_the_card_can_be_cut_off(rig: ProxmoxRig) -> None:
    spec = rig.spec(network=NetworkMode.NAT)
    vm = await rig.up(spec)
    port = rig.network.port(spec.mark.sandbox, spec.slot, NetworkMode.NAT)

    vm.firewall.rules.insert(0, {"type": "out", "action": "ACCEPT", "enable": 1})
    noticed = await rig.network.verify(port)
    await rig.network.detach(spec.mark.sandbox)
    cut_off = vm.config["net0"]
    await rig.network.attach(port, Card(vm.vmid))

    assert not noticed
    assert "link_down=1" in cut_off
    assert "link_down" not in vm.config["net0"]
    assert await rig.network.verify(port)


# The invitation


async def test_a_redeemed_invitation_leaves_the_configuration(rig: ProxmoxRig) -> None:
    spec = rig.spec()
    vm = await rig.up(spec)

    async with asyncio.timeout(SOON_S):
        while "serial" in str({**vm.config, **vm.pending}["smbios1"]):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)

    assert rig.home.replayed == []
    record = rig.cluster.records.read(spec.mark.sandbox)
    assert record is not None
    assert not record.invited


# Restarts


async def test_a_sandbox_goes_on_under_the_next_daemon(rig: ProxmoxRig) -> None:
    spec = rig.spec()
    await rig.up(spec)
    pid = await says(rig, spec, "sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!")

    await rig.home.begin()
    rig.backend = rig.another()
    await rig.backend.probe()

    assert [(each.mark, each.power) for each in await rig.backend.list()] == [(spec.mark, Power.RUNNING)]
    assert await says(rig, spec, "cat", f"/proc/{pid}/comm") == "sleep"


async def test_what_switches_itself_off_is_seen_to_be_stopped_and_can_be_started_again(rig: ProxmoxRig) -> None:
    spec = rig.spec()
    await rig.up(spec)
    await says(rig, spec, "sh", "-c", "echo kept > /root/file")

    control = rig.guests.linked(spec.mark.sandbox)
    assert control is not None
    await control.shutdown()
    await until(rig, spec, Power.STOPPED)
    await running(rig.backend, spec)

    assert await says(rig, spec, "cat", "/root/file") == "kept"


# Templates


async def test_a_template_is_brought_once_and_an_old_one_goes(tmp_path: Path, guests: ProcessGuests) -> None:
    image = ClusterImage(digest=Digest("a" * 64), disk=tmp_path / "one.qcow2", guest_version="1")
    image.disk.write_bytes(small_qcow2(GIB))
    async with proxmox_rig(tmp_path, guests=guests, image=image) as rig:
        first, second = rig.spec(), rig.spec()
        await rig.up(first)
        await rig.up(second)
        templates = [vm for vm in rig.sim.cluster.vms.values() if vm.is_template]
        uploads = [path for verb, path in rig.sim.cluster.calls if path.endswith("/upload") and verb == "POST"]
        await rig.backend.destroy(first.mark)
        await rig.backend.destroy(second.mark)
        rig.image = ClusterImage(digest=Digest("b" * 64), disk=image.disk, guest_version="2")
        third = rig.spec(template_digest=Digest("1" * 64))
        await rig.up(third)
        later = [vm for vm in rig.sim.cluster.vms.values() if vm.is_template]

        assert len(uploads) == 1
        assert [vm.config["name"] for vm in templates] == ["agentlab-test-aaaaaaaaaaaa"]
        assert [vm.config["name"] for vm in later] == ["agentlab-test-bbbbbbbbbbbb"]
        assert await says(rig, third, "hostname") == third.mark.sandbox
        imports = [each for each in rig.sim.cluster.stores["local"].on("pve1").values() if each.content == "import"]
        assert imports == []


# Other people


async def test_a_persons_copy_of_a_sandbox_is_left_alone(rig: ProxmoxRig) -> None:
    spec = rig.spec()
    vm = await rig.up(spec)
    copy = rig.sim.cluster.human_clone(vm.vmid, 500)
    rig.sim.cluster.access.pools["agentlab"].vms.add(500)

    seen = await rig.backend.list()
    await rig.backend.destroy(spec.mark)

    assert [each.mark for each in seen] == [spec.mark]
    assert rig.sim.cluster.vms.get(500) is copy
    assert vm.vmid not in rig.sim.cluster.vms


async def test_a_number_that_was_given_to_somebody_else_is_not_touched(rig: ProxmoxRig) -> None:
    spec = rig.spec()
    vm = await rig.up(spec)
    await rig.sim.cluster.destroy(vm.vmid)
    rig.sim.cluster.human_clone(9000, vm.vmid, "theirs").power = state.Power.RUNNING
    rig.sim.cluster.access.pools["agentlab"].vms.add(vm.vmid)
    rig.cluster.forget(spec.mark.sandbox)

    with pytest.raises(NotOurs):
        await rig.backend.stop(spec.mark, 0)
    await rig.backend.destroy(spec.mark)

    assert rig.sim.cluster.vms[vm.vmid].config["name"] == "theirs"
    assert await rig.backend.inspect(spec.mark.sandbox) is None


async def test_a_vm_that_was_removed_is_gone_and_its_sandbox_can_be_made_again(rig: ProxmoxRig) -> None:
    spec = rig.spec()
    vm = await rig.up(spec)
    await rig.sim.cluster.destroy(vm.vmid)
    rig.cluster.forget(spec.mark.sandbox)

    with pytest.raises(Gone):
        await rig.backend.stop(spec.mark, 1)
    seen = await rig.backend.list()
    await rig.backend.create(spec)
    await rig.up(spec)

    assert [each.power for each in seen] == []
    assert await says(rig, spec, "echo", "again") == "again"


async def test_a_vm_that_was_moved_to_another_node_is_followed(tmp_path: Path, guests: ProcessGuests) -> None:
    async with proxmox_rig(tmp_path, guests=guests, sim={"nodes": ("pve1", "pve2")}) as rig:
        spec, store = rig.spec(), rig.sim.cluster.stores["local"]
        store.shared, store.volumes = True, {"": store.volumes["pve1"]}
        vm = await rig.up(spec)
        await rig.backend.stop(spec.mark, 0)
        await rig.sim.cluster.migrate(vm.vmid, "pve2")
        rig.cluster.forget(spec.mark.sandbox)

        await running(rig.backend, spec)
        said = await says(rig, spec, "echo", "here")
        await rig.backend.destroy(spec.mark)

        assert said == "here"
        assert vm.vmid not in rig.sim.cluster.vms


# The end


async def test_nothing_is_left_of_destroyed_sandboxes_nor_of_the_cluster(tmp_path: Path, guests: ProcessGuests) -> None:
    async with proxmox_rig(tmp_path, guests=guests) as rig:
        destroyed, left = rig.spec(network=NetworkMode.NAT), rig.spec()
        for spec in (destroyed, left):
            await rig.up(spec)
        pids = [guest.room.init for guest in guests.guests.values()]
        assert rig.backend.workspaces is not None
        await rig.backend.workspaces.attach(destroyed.mark, rig.disk())
        gone = rig.vm_of(destroyed).vmid
        await rig.backend.destroy(destroyed.mark)
        volumes = rig.sim.cluster.stores["local"].on("pve1").values()
        assert [each for each in volumes if each.vmid == gone] == []
        rig.made.clear()

    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert mounts_below(tmp_path) == []
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert [each for each in backing if str(tmp_path) in each] == []
    assert not guests.folder.exists()


async def test_a_guest_that_fills_its_disk_fills_no_more_than_that(rig: ProxmoxRig) -> None:
    spec = rig.spec()
    await rig.up(spec)
    fill = (
        "dd if=/dev/zero of=/root/all bs=1M count=4000 2>&1 | grep -o 'No space left on device'; df -m --output=size /"
    )

    said = await says(rig, spec, "sh", "-c", f"{fill}; rm /root/all; echo works > /root/file && cat /root/file")

    assert said.splitlines()[0] == "No space left on device"
    assert 1100 < int(said.splitlines()[2]) < 1300  # the template's GiB, and what was asked for beside it
    assert said.splitlines()[3] == "works"


async def test_walls_that_do_not_hold_are_named_and_the_machine_is_stopped(
    tmp_path: Path, guests: ProcessGuests
) -> None:
    plan = {"enforce_s_max": 0.5}
    async with proxmox_rig(tmp_path, guests=guests, plan=plan, walls=[("127.0.0.1", 1)]) as rig:
        spec = rig.spec()

        with pytest.raises(Refused, match=r"127\.0\.0\.1:1 answered"):
            await rig.up(spec)

        assert not rig.vm_of(spec).running
        assert await power_of(rig.backend, spec.mark.sandbox) is Power.STOPPED


async def test_a_disk_that_the_guest_holds_on_to_is_not_given_to_another(rig: ProxmoxRig) -> None:
    first, second, disk, workspaces = rig.spec(), rig.spec(), rig.disk(), rig.backend.workspaces
    assert workspaces is not None
    await rig.up(first)
    await rig.up(second)
    await workspaces.attach(first.mark, disk)
    await says(rig, first, "mount", "--bind", "/work", "/mnt")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await workspaces.detach(first.mark, disk.serial)
    with pytest.raises(Refused, match="is plugged into"):
        await workspaces.attach(second.mark, disk)
    await says(rig, first, "umount", "/mnt")
    await workspaces.detach(first.mark, disk.serial)
    await workspaces.attach(second.mark, disk)

    assert [each.serial for each in await workspaces.list(second.mark)] == [disk.serial]
