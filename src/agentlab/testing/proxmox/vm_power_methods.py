"""Methods of a VM's status: what it does, and start, stop, shutdown, reboot, reset, suspend, resume."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from agentlab.testing.proxmox import views
from agentlab.testing.proxmox.access import ROOT, Caller
from agentlab.testing.proxmox.formats import NODE, STORAGE
from agentlab.testing.proxmox.kinds import FLAG, Kind, integer, need, newer, one_of, requiring, text
from agentlab.testing.proxmox.method import VM, Call, Method, on
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.state import Power, Vm
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.vm_changes import answers, check_lock
from agentlab.testing.proxmox.vm_config_methods import check_skiplock
from agentlab.testing.proxmox.vm_power import SHUTDOWN_S, hibernate, shut_down, start_vm, stop_vm

Act = Callable[[Call, Vm, Task], Awaitable[None]]


async def _current(call: Call) -> Any:
    vm = call.vm()
    return views.current(call.cluster, vm, vm.running and await answers(call.cluster, vm))


def _method(word: str, kind: str, act: Act, params: dict[str, Kind], *, running: bool = False) -> Method:
    """A method that starts a worker which does `act` under the VM's lock."""

    async def handler(call: Call) -> Any:
        check_skiplock(call)
        vm = call.vm()
        if running and not vm.running and not (word == "resume" and vm.config.get("lock") == "suspended"):
            raise Refused(f"VM {vm.vmid} not running")
        if f"vm:{vm.vmid}" in call.cluster.ha and word in ("start", "stop"):
            return _requested(call, word)

        async def work(task: Task) -> None:
            async with call.cluster.locks.of_vm(call.vmid).held(task.log):
                await act(call, call.vm(), task)

        return call.start(kind, vm.vmid, work)

    rule = on("/vms/{vmid}", "VM.PowerMgmt")
    extra = {} if word == "reboot" else {"skiplock": FLAG}
    return Method(verb="POST", path=f"{VM}/status/{word}", handler=handler, allow=rule, params=params | extra)


def _requested(call: Call, word: str) -> str:
    """A VM under high availability is only asked for a state; the manager of the cluster follows later."""
    cluster, vmid = call.cluster, call.vmid

    async def work(task: Task) -> None:
        task.log(f"Requesting HA {word} for VM {vmid}")
        cluster.ha[f"vm:{vmid}"]["state"] = "started" if word == "start" else "stopped"
        cluster.scope.start(follow(task), f"ha of {vmid}")

    async def follow(task: Task) -> None:
        with suppress(Refused):  # the manager tries again later; nobody waits for it here
            async with cluster.locks.of_vm(vmid).held():
                vm = cluster.vms[vmid]
                if word == "stop":
                    await stop_vm(cluster, vm)
                elif not vm.running:
                    await start_vm(cluster, vm, task)

    return call.start(f"ha{word}", vmid, work)


async def _start(call: Call, vm: Vm, task: Task) -> None:
    await start_vm(call.cluster, vm, task)


async def _stop(call: Call, vm: Vm, task: Task) -> None:
    if vm.running:
        check_lock(vm)
        await call.cluster.spend("qmstop")
        await stop_vm(call.cluster, vm)


async def _shut_down(call: Call, vm: Vm, task: Task) -> None:
    if vm.running:
        check_lock(vm)
        await call.cluster.spend("qmshutdown")
        timeout_s = call.values.get("timeout", SHUTDOWN_S)
        await shut_down(call.cluster, vm, task, timeout_s, bool(call.values.get("forceStop")))


async def _reboot(call: Call, vm: Vm, task: Task) -> None:
    check_lock(vm)
    await call.cluster.spend("qmreboot")
    await shut_down(call.cluster, vm, task, call.values.get("timeout", SHUTDOWN_S), force=False)

    async def again(start: Task) -> None:
        async with call.cluster.locks.of_vm(vm.vmid).held(start.log):
            await start_vm(call.cluster, vm, start)

    # The task ends when the guest is down; what cleans up behind it starts it anew.
    call.cluster.tasks.start(vm.node, "qmstart", str(vm.vmid), Caller(user=ROOT), again)


async def _reset(call: Call, vm: Vm, task: Task) -> None:
    check_lock(vm)
    await call.cluster.spend("qmreset")
    await call.cluster.guests.reset(vm.vmid)


async def _suspend(call: Call, vm: Vm, task: Task) -> None:
    check_lock(vm)
    await call.cluster.spend("qmpause")
    await call.cluster.guests.paused(vm.vmid)
    vm.power = Power.PAUSED


async def _hibernate(call: Call, vm: Vm, task: Task) -> None:
    await call.cluster.spend("qmsuspend")
    await hibernate(call.cluster, vm, task, call.values.get("statestorage"))


async def _resume(call: Call, vm: Vm, task: Task) -> None:
    if not vm.running:
        await start_vm(call.cluster, vm, task)
        return
    await call.cluster.spend("qmresume")
    await call.cluster.guests.resumed(vm.vmid)
    vm.power = Power.RUNNING


def _suspending() -> Method:
    params = {"todisk": FLAG, "statestorage": requiring(STORAGE, "todisk")}
    pause = _method("suspend", "qmpause", _suspend, params, running=True)
    save = _method("suspend", "qmsuspend", _hibernate, params, running=True)

    async def handler(call: Call) -> Any:
        if "statestorage" in call.values:
            call.check(f"/storage/{call.values['statestorage']}", "Datastore.AllocateSpace")
        return await (save if call.values.get("todisk") else pause).handler(call)

    return Method(verb="POST", path=pause.path, handler=handler, allow=pause.allow, params=pause.params)


async def _migrate(call: Call) -> Any:
    """Move a VM to another node."""
    cluster, vm, target = call.cluster, call.vm(), call.values["target"]
    if target not in cluster.nodes:
        raise Refused(f"no such cluster node '{target}'")
    if target == call.node:
        raise Refused("target is local node.")
    if vm.running and not call.values.get("online"):
        raise Refused("can't migrate running VM without --online")
    check_lock(vm)

    async def work(task: Task) -> None:
        async with cluster.locks.of_vm(call.vmid).held(task.log):
            task.log(f"starting migration of VM {vm.vmid} to node '{target}' ({cluster.nodes[target].address})")
            if cluster.nodes[target].absence is not None:
                raise Refused("migration aborted")
            await cluster.migrate(vm.vmid, target)
            task.log("migration finished successfully (duration 00:00:02)")

    return call.start("qmigrate", vm.vmid, work)


_TIMEOUT = {"timeout": integer(0)}
_MACHINE = {
    "machine": text(),
    "force-cpu": text(),
    "stateuri": text(128),
    "targetstorage": text(),
    "migratedfrom": NODE,
}
_FORCED = {**_TIMEOUT, "keepActive": FLAG}
METHODS = (
    Method(verb="GET", path=f"{VM}/status/current", handler=_current, allow=on("/vms/{vmid}", "VM.Audit")),
    _method("start", "qmstart", _start, {**_TIMEOUT, **_MACHINE}),
    _method("stop", "qmstop", _stop, {**_FORCED, "overrule-shutdown": FLAG, "migratedfrom": NODE}),
    _method("shutdown", "qmshutdown", _shut_down, {**_FORCED, "forceStop": FLAG}),
    _method("reboot", "qmreboot", _reboot, _TIMEOUT, running=True),
    _method("reset", "qmreset", _reset, {}, running=True),
    _method("resume", "qmresume", _resume, {"nocheck": FLAG}, running=True),
    _suspending(),
    Method(verb="POST", path=f"{VM}/migrate", handler=_migrate, allow=on("/vms/{vmid}", "VM.Migrate"), params={
        "target": need(NODE), "online": FLAG, "force": FLAG, "with-local-disks": FLAG, "targetstorage": text(),
        "migration_type": one_of("secure", "insecure"), "migration_network": text(), "bwlimit": integer(0),
        "with-conntrack-state": newer(FLAG),
    }),
)  # fmt: skip
