"""Starting, stopping, pausing and hibernating a VM: what a worker does once it holds the lock."""

from __future__ import annotations

from datetime import UTC, datetime

from agentlab.base.clock import sleep
from agentlab.testing.proxmox import views, volumes
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.drives import drives
from agentlab.testing.proxmox.guests import GuestFailed
from agentlab.testing.proxmox.kinds import parsed
from agentlab.testing.proxmox.machine import machine
from agentlab.testing.proxmox.options import NIC, NIC_KIND
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.state import Power, Vm
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.units import MIB
from agentlab.testing.proxmox.vm_changes import answers, apply_pending, check_lock

QUICK_S = 2.0  # a start this soon after a stop may meet the clean-up of the old process
AGENT_WAIT_S = 3.0
SHUTDOWN_S = 60
STATE_OVERHEAD_BYTES = 500 * MIB
_WAKING = ("vmstate", "runningmachine", "runningcpu", "running-nets-host-mtu", "lock")


async def start_vm(cluster: Cluster, vm: Vm, task: Task) -> None:
    """Start it, or wake it up.  Raises Refused."""
    if vm.running:
        raise Refused(f"VM {vm.vmid} already running")
    if vm.config.get("lock") != "suspended":
        check_lock(vm)
    if vm.is_template:
        raise Refused("you can't start a vm if it's a template")
    _check_parts(cluster, vm)
    if any(each.cloudinit for each in drives(vm.config)):
        task.log("generating cloud-init ISO")
    waking = vm.config.get("lock") == "suspended"
    if waking:
        task.log("Resuming suspended VM")
        task.log("netdev net0: using 'host_mtu=1500' for migration compat")
        task.log(f"activating and using '{vm.config['vmstate']}' as vmstate")
    await cluster.spend("qmstart")
    await run(cluster, vm)
    if waking:
        task.log("Resumed VM, removing state")
        forget_state(cluster, vm)
    quick = vm.stopped is not None and cluster.clock.monotonic() - vm.stopped < QUICK_S
    if (quick or waking) and cluster.entropy.fraction() < cluster.latency.cleanup_chance:
        cluster.hold_lock(vm.vmid, cluster.latency.cleanup_s)


def _check_parts(cluster: Cluster, vm: Vm) -> None:
    for each in drives(vm.config):
        if each.file not in ("none", "cdrom"):
            volumes.located(cluster, vm.node, each.file)
    for key, value in vm.config.items():
        if NIC.fullmatch(key):
            name = parsed(NIC_KIND, str(value)).get("bridge")
            if name is not None and not cluster.has_bridge(vm.node, name):
                raise Refused(f"bridge '{name}' does not exist")


async def run(cluster: Cluster, vm: Vm) -> None:
    """Let the process be there."""
    state = None
    if "vmstate" in vm.config:
        store, volume = volumes.located(cluster, vm.node, str(vm.config["vmstate"]))
        state = store.real(vm.node, volume)
    try:
        await cluster.guests.started(machine(cluster, vm, state))
    except GuestFailed as error:
        raise Refused(f"start failed: {error}") from None
    vm.power, vm.started, vm.booted = Power.RUNNING, cluster.clock.monotonic(), "vmstate" not in vm.config
    vm.pid = cluster.tasks.new_pid()


async def stop_vm(cluster: Cluster, vm: Vm) -> None:
    """Switch it off at once; what was pending takes effect."""
    if not vm.running:
        return
    await cluster.guests.stopped(vm.vmid)
    down(cluster, vm)


def down(cluster: Cluster, vm: Vm) -> None:
    """Note that the process is gone."""
    vm.power, vm.stopped = Power.STOPPED, cluster.clock.monotonic()
    apply_pending(cluster, vm)


async def shut_down(cluster: Cluster, vm: Vm, task: Task, timeout_s: float, force: bool) -> None:
    """Ask the guest; if it does not follow in time, stop it by force or fail.  Raises Refused."""
    if views.agent_enabled(vm.config) and not await answers(cluster, vm):
        await sleep(min(AGENT_WAIT_S, timeout_s) if cluster.latency.work else 0)
        task.log(f"QEMU Guest Agent is not running - VM {vm.vmid} qga command 'guest-ping' failed - got timeout")
    if vm.power is not Power.PAUSED and await cluster.guests.shut_down(vm.vmid, timeout_s):
        down(cluster, vm)
        return
    await sleep(timeout_s if cluster.latency.work else 0)
    if not force:
        raise Refused("VM quit/powerdown failed - got timeout")
    task.log("VM still running - terminating now with SIGTERM")
    await stop_vm(cluster, vm)


async def hibernate(cluster: Cluster, vm: Vm, task: Task, storage: str | None) -> None:
    """Write the memory to a volume and stop.  Raises Refused."""
    check_lock(vm)
    day = datetime.fromtimestamp(cluster.clock.now(), UTC).strftime("%Y-%m-%d")
    vm.config["lock"] = "suspending"
    await save_state(cluster, vm, task, f"suspend-{day}", storage)
    await cluster.guests.stopped(vm.vmid)
    task.log("State saved, quitting")
    down(cluster, vm)
    vm.config["lock"] = "suspended"


async def save_state(cluster: Cluster, vm: Vm, task: Task, name: str, storage: str | None = None) -> str:
    """A volume with the memory, noted in the config; its id."""
    store = cluster.store(storage or str(vm.config.get("vmstatestorage", _state_storage(cluster, vm))), vm.node)
    size = 2 * views.memory_bytes(vm.config) + STATE_OVERHEAD_BYTES
    own = store.own_name(vm.vmid, f"vm-{vm.vmid}-state-{name}{store.extension('raw')}")
    volume = await volumes.make(cluster, vm.node, vm.vmid, store, size, "raw", own, task.log)
    await cluster.guests.saved(vm.vmid, store.real(vm.node, volume))
    vm.config["vmstate"] = store.volid(volume)
    vm.config |= {"runningmachine": views.MACHINE, "runningcpu": vm.config.get("cpu", "kvm64")}
    vm.config["running-nets-host-mtu"] = "net0=1500"
    return store.volid(volume)


def forget_state(cluster: Cluster, vm: Vm) -> None:
    """Take the volume with the memory away, and what the config says of it."""
    found = volumes.owned(cluster, vm.node, str(vm.config.get("vmstate", "")), vm.vmid)
    if found is not None:
        found[0].remove(vm.node, found[1])
    for key in _WAKING:
        vm.config.pop(key, None)


def _state_storage(cluster: Cluster, vm: Vm) -> str:
    first = next((each.storage for each in drives(vm.config) if not each.cdrom), None)
    if first is None:
        first = next((name for name, store in cluster.stores.items() if "images" in store.content), "local")
    return first
