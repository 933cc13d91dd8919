"""Methods of /pools."""

from __future__ import annotations

from typing import Any

from agentlab.testing.proxmox import views
from agentlab.testing.proxmox.access import Pool
from agentlab.testing.proxmox.formats import POOL, VMID, words
from agentlab.testing.proxmox.kinds import FLAG, Kind, need, one_of, requiring, text
from agentlab.testing.proxmox.method import Call, Method, everybody, on
from agentlab.testing.proxmox.refusal import Refused, denied


def _vmids(given: str) -> None:
    for each in words(given):
        assert VMID.check is not None
        VMID.check(each)


async def _pools(call: Call) -> Any:
    access, wanted = call.cluster.access, call.values.get("poolid")
    if wanted is not None:
        return [_with_members(call, wanted)]
    return [_row(name, pool) for name, pool in access.pools.items() if call.has(f"/pool/{name}", "Pool.Audit")]


async def _pool(call: Call) -> Any:
    found = _with_members(call, call.values["poolid"])
    del found["poolid"]
    return found


def _row(name: str, pool: Pool) -> dict[str, Any]:
    return {"poolid": name} | ({} if pool.comment is None else {"comment": pool.comment})


def _with_members(call: Call, name: str) -> dict[str, Any]:
    """A pool with those members that exist."""
    if not call.cluster.access.rights(call.caller, f"/pool/{name}"):
        raise denied(f"/pool/{name}", "Pool.Audit")
    pool = call.cluster.access.pools.get(name)
    if pool is None:
        raise Refused(f"pool '{name}' does not exist")
    list(views.vm_resources(call.cluster, call.caller))  # what is published is shown here too
    vms = [call.cluster.vms[vmid] for vmid in sorted(pool.vms) if vmid in call.cluster.vms]
    members = [views.vm_resource(call.cluster, vm, marks=False) for vm in vms]
    for store in (call.cluster.stores[each] for each in sorted(pool.storages) if each in call.cluster.stores):
        members += [views.store_row(call.cluster, store, node) for node in call.cluster.nodes]
    return _row(name, pool) | {"members": members}


async def _new_pool(call: Call) -> Any:
    pools, name = call.cluster.access.pools, call.values["poolid"]
    if name in pools:
        raise Refused(f"create pool failed: pool '{name}' already exists")
    parent = name.rpartition("/")[0]
    if parent and parent not in pools:
        raise Refused(f"create pool failed: parent '{parent}' of pool '{name}' does not exist")
    pools[name] = Pool(comment=call.values.get("comment"))


async def _change_pool(call: Call) -> Any:
    pools, values = call.cluster.access.pools, call.values
    name = values["poolid"]
    pool = pools.get(name)
    if pool is None:
        raise Refused(f"update pools failed: pool '{name}' does not exist")
    if "comment" in values:
        pool.comment = values["comment"]
    for vmid in (int(each) for each in words(values.get("vms", ""))):
        call.check(f"/vms/{vmid}", "Permissions.Modify", "VM.Allocate")
        _change_vm(call, name, pool, vmid)
    for storage in words(values.get("storage", "")):
        call.check(f"/storage/{storage}", "Permissions.Modify", "Datastore.Allocate")
        if values.get("delete"):
            if storage not in pool.storages:
                raise Refused(f"update pools failed: Storage '{storage}' is not a pool member")
            pool.storages.discard(storage)
        elif storage in pool.storages:
            raise Refused(f"update pools failed: Storage '{storage}' is already a pool member")
        else:
            pool.storages.add(storage)


def _change_vm(call: Call, name: str, pool: Pool, vmid: int) -> None:
    access = call.cluster.access
    if call.values.get("delete"):
        if vmid not in pool.vms:
            raise Refused(f"update pools failed: VM {vmid} is not a pool member")
        pool.vms.discard(vmid)
        return
    if vmid in pool.vms:
        raise Refused(f"update pools failed: VM {vmid} is already a pool member")
    other = access.pool_of(vmid)
    if other is not None:
        if not call.values.get("allow-move"):
            raise Refused(
                f"update pools failed: VM {vmid} belongs already to pool '{other}' and 'allow-move' is not set"
            )
        call.check(f"/pool/{other}", "Pool.Allocate")
        access.pools[other].vms.discard(vmid)
    pool.vms.add(vmid)


async def _drop_pool(call: Call) -> Any:
    pools, name = call.cluster.access.pools, call.values["poolid"]
    pool = pools.get(name)
    if pool is None:
        raise Refused(f"delete pool failed: pool '{name}' does not exist")
    below = next((each for each in pools if each.startswith(f"{name}/")), None)
    if below is not None:
        raise Refused(f"delete pool failed: pool '{name}' is not empty (contains pool '{below}')")
    for vmid in sorted(pool.vms):
        if vmid in call.cluster.vms:
            raise Refused(f"delete pool failed: pool '{name}' is not empty (contains VM {vmid})")
    if pool.storages:
        raise Refused(f"delete pool failed: pool '{name}' is not empty (contains storage '{min(pool.storages)}')")
    del pools[name]


_ALLOCATE = on("/pool/{poolid}", "Pool.Allocate")
_CHANGE = {
    "comment": text(), "vms": Kind(check=_vmids), "storage": text(), "delete": FLAG, "allow-move": FLAG,
}  # fmt: skip
METHODS = (
    Method(verb="GET", path="/pools", handler=_pools, allow=everybody, params={
        "poolid": POOL, "type": requiring(one_of("qemu", "lxc", "storage"), "poolid"),
    }),
    Method(verb="POST", path="/pools", handler=_new_pool, allow=_ALLOCATE, params={
        "poolid": need(POOL), "comment": text(),
    }),
    Method(verb="PUT", path="/pools", handler=_change_pool, allow=_ALLOCATE, params={"poolid": need(POOL), **_CHANGE}),
    Method(verb="DELETE", path="/pools", handler=_drop_pool, allow=_ALLOCATE, params={"poolid": need(POOL)}),
    Method(verb="GET", path="/pools/{poolid}", handler=_pool, allow=everybody),
    Method(verb="PUT", path="/pools/{poolid}", handler=_change_pool, allow=_ALLOCATE, params=_CHANGE),
    Method(verb="DELETE", path="/pools/{poolid}", handler=_drop_pool, allow=_ALLOCATE),
)  # fmt: skip
