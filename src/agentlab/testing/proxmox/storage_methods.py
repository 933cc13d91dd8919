"""Methods of /storage and of the storages of a node: settings, states, contents."""

from __future__ import annotations

import re
from typing import Any

from agentlab.testing.proxmox import views
from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.formats import CONFIG_IDS, STORAGE, VMID, words
from agentlab.testing.proxmox.kinds import FLAG, Kind, Malformed, integer, matching, need, one_of, requiring, text
from agentlab.testing.proxmox.method import Call, Method, everybody, on
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.storage import Store, Volume
from agentlab.testing.proxmox.tasks import Task
from agentlab.testing.proxmox.units import digest, size_bytes

CONTENT_TYPES = ("images", "rootdir", "vztmpl", "iso", "backup", "snippets", "import", "none")
TYPES = (
    "btrfs", "cephfs", "cifs", "dir", "esxi", "iscsi", "iscsidirect", "lvm", "lvmthin", "nfs", "pbs", "rbd", "zfs",
    "zfspool",
)  # fmt: skip


def _content_types(given: str) -> None:
    for each in words(given):
        if each not in CONTENT_TYPES:
            raise Malformed(f"invalid content type '{each}'")


def _settings_digest(cluster: Cluster) -> str:
    stated = {name: f"{store.type} {store.content} {store.settings}" for name, store in cluster.stores.items()}
    return digest(stated) if cluster.stores else digest("")


def _row(call: Call, store: Store) -> dict[str, Any]:
    row: dict[str, Any] = {"storage": store.name, "type": store.type, "content": ",".join(store.content)}
    row["digest"] = _settings_digest(call.cluster)
    if store.path is not None:
        row["path"] = store.path
    if store.shared:
        row["shared"] = 1
    if store.nodes is not None:
        row["nodes"] = ",".join(sorted(store.nodes))
    return row | store.settings


def _visible(call: Call, store: Store) -> bool:
    return call.has(f"/storage/{store.name}", "Datastore.Audit", "Datastore.AllocateSpace")


async def _stores(call: Call) -> Any:
    kind = call.values.get("type")
    found = (store for store in call.cluster.stores.values() if kind in (None, store.type))
    return [_row(call, store) for store in found if _visible(call, store)]


def _store(call: Call, prefix: str = "") -> Store:
    found = call.cluster.stores.get(call.values["storage"])
    if found is None:
        raise Refused(f"{prefix}storage '{call.values['storage']}' does not exist")
    return found


async def _one_store(call: Call) -> Any:
    return _row(call, _store(call))


async def _new_store(call: Call) -> Any:
    values, stores = call.values, call.cluster.stores
    name = values["storage"]
    if name in stores:
        raise Refused(f"create storage failed: storage ID '{name}' already defined")
    nodes = frozenset(words(values["nodes"])) if "nodes" in values else None
    stores[name] = Store(
        name=name,
        type=values["type"],
        content=words(values.get("content", "images,rootdir")),
        shared=bool(values.get("shared")),
        path=values.get("path"),
        nodes=nodes,
    )
    return {"storage": name, "type": values["type"]}


async def _change_store(call: Call) -> Any:
    store, values = _store(call, "update storage failed: "), call.values
    if "digest" in values and values["digest"] != _settings_digest(call.cluster):
        raise Refused("update storage failed: detected modified configuration - file changed by other user? Try again.")
    if "content" in values:
        store.content = words(values["content"])
    if "shared" in values:
        store.shared = bool(values["shared"])
    if "disable" in values:
        store.settings["disable"] = values["disable"]
    if "nodes" in values:
        store.nodes = frozenset(words(values["nodes"]))
    for name in words(values.get("delete", "")):
        store.settings.pop(name, None)
    return {"storage": store.name, "type": store.type}


async def _drop_store(call: Call) -> Any:
    _store(call, "delete storage failed: ")
    del call.cluster.stores[call.values["storage"]]


async def _node_stores(call: Call) -> Any:
    wanted, content = call.values.get("storage"), set(words(call.values.get("content", "")))
    rows = []
    for store in call.cluster.stores.values():
        if (store.nodes is not None and call.node not in store.nodes) or wanted not in (None, store.name):
            continue
        if not _visible(call, store) or (content and not content & set(store.content)):
            continue
        row = views.store_status(store, call.node) | {"storage": store.name}
        rows.append(row | {"used_fraction": row["used"] / store.total})
    return rows


async def _status(call: Call) -> Any:
    return views.store_status(call.cluster.store(call.values["storage"], call.node), call.node)


async def _content(call: Call) -> Any:
    """The volumes that the caller may see: images with the rights on their VM, or with Datastore.Allocate."""
    store = call.cluster.store(call.values["storage"], call.node)
    kind, vmid = call.values.get("content"), call.values.get("vmid")
    rows = []
    for volume in sorted(store.on(call.node).values(), key=lambda volume: volume.name):
        if kind not in (None, volume.content) or (volume.vmid is not None and vmid not in (None, volume.vmid)):
            continue
        if vmid is not None and volume.content in ("iso", "vztmpl"):
            continue
        if volume.vmid is not None and not _may_see(call, store, volume):
            continue
        rows.append(store.row(volume))
    return rows


def _may_see(call: Call, store: Store, volume: Volume) -> bool:
    return call.has(f"/storage/{store.name}", "Datastore.Allocate") or call.has(
        f"/vms/{volume.vmid}", "VM.Config.Disk", "VM.Audit"
    )


async def _allocate(call: Call) -> Any:
    values = call.values
    store = call.cluster.store(values["storage"], call.node)
    vmid, file = values["vmid"], values["filename"]
    if not re.fullmatch(rf"(vm|subvol)-{vmid}-\S+", file):
        raise Refused(f"illegal name '{file}' - should be 'vm-{vmid}-*'")
    own = store.own_name(vmid, file)
    if own in store.on(call.node):
        raise Refused(f"unable to create image: volume '{store.name}:{own}' already exists")
    kind = values.get("format") or ("qcow2" if file.endswith(".qcow2") else "raw")
    volume = Volume(
        own=own, content="images", format=kind, size=size_bytes(values["size"], "K"), vmid=vmid,
        ctime=int(call.cluster.clock.now()), used=266_240,
    )  # fmt: skip
    store.on(call.node)[own] = volume
    path = store.real(call.node, volume)
    if path is not None:
        await call.cluster.guests.disk_made(path, kind, volume.size)
    return store.volid(volume)


def _named(call: Call) -> tuple[Store, str]:
    given = call.values["volume"]
    name, colon, rest = given.partition(":")
    if not colon:
        name, rest = call.values["storage"], given
    return call.cluster.store(name, call.node), rest


async def _one_volume(call: Call) -> Any:
    store, name = _named(call)
    call.check(f"/storage/{store.name}", "Datastore.Audit", "Datastore.AllocateSpace")
    volume = store.find(call.node, name)
    if volume is None:
        raise Refused(f"volume_size_info on '{store.name}:{name}' failed")
    size, used = (volume.size, volume.used) if volume.vmid else (volume.used or volume.size, volume.size)
    return {"format": volume.format, "path": store.file(call.node, volume), "size": size, "used": used}


async def _drop_volume(call: Call) -> Any:
    store, name = _named(call)
    call.check(f"/storage/{store.name}", "Datastore.Allocate")
    volume = store.find(call.node, name)
    about = f"{volume.vmid}@{store.name}" if volume is not None and volume.vmid else store.name

    async def work(task: Task) -> None:
        await call.cluster.spend("imgdel")
        found = store.find(call.node, name)
        if found is None:
            ghost = Volume(own=name, content=name.partition("/")[0], format="raw", size=0, ctime=0)
            task.log(f"disk image '{store.file(call.node, ghost)}' does not exist")
        else:
            store.remove(call.node, found)
        task.log(f"Removed volume '{store.name}:{name}'")

    return call.start("imgdel", about, work)


_S, _C = "/nodes/{node}/storage/{storage}", "/nodes/{node}/storage/{storage}/content"
_SEE = on("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace")
_ADMIN = on("/storage", "Datastore.Allocate")
_CONTENT_TYPES = Kind(check=_content_types)
_SETTINGS = {
    "content": _CONTENT_TYPES, "shared": FLAG, "nodes": text(), "disable": FLAG, "prune-backups": text(),
    "preallocation": text(), "mkdir": FLAG, "is_mountpoint": text(), "create-base-path": FLAG, "format": text(),
    "snapshot-as-volume-chain": FLAG,
}  # fmt: skip
METHODS = (
    Method(verb="GET", path="/storage", handler=_stores, allow=everybody, params={"type": one_of(*TYPES)}),
    Method(verb="POST", path="/storage", handler=_new_store, allow=_ADMIN, params={
        "storage": need(STORAGE), "type": need(one_of(*TYPES)), "path": text(), "vgname": text(), "thinpool": text(),
        "pool": text(), "server": text(), "export": text(), **_SETTINGS,
    }),
    Method(verb="GET", path="/storage/{storage}", handler=_one_store, allow=_ADMIN),
    Method(verb="PUT", path="/storage/{storage}", handler=_change_store, allow=_ADMIN, params={
        **_SETTINGS, "delete": CONFIG_IDS, "digest": text(64),
    }),
    Method(verb="DELETE", path="/storage/{storage}", handler=_drop_store, allow=_ADMIN),
    Method(verb="GET", path="/nodes/{node}/storage", handler=_node_stores, allow=everybody, params={
        "storage": STORAGE, "content": _CONTENT_TYPES, "enabled": FLAG, "format": FLAG, "target": text(),
    }),
    Method(verb="GET", path=f"{_S}/status", handler=_status, allow=_SEE),
    Method(verb="GET", path=_C, handler=_content, allow=_SEE, params={"content": _CONTENT_TYPES, "vmid": VMID}),
    Method(verb="POST", path=_C, handler=_allocate, allow=on("/storage/{storage}", "Datastore.AllocateSpace"), params={
        "filename": need(text()), "size": need(matching(r"\d+[MG]?")), "vmid": need(VMID),
        "format": requiring(one_of("raw", "qcow2", "subvol", "vmdk"), "size"),
    }),
    Method(verb="GET", path=f"{_C}/{{volume}}", handler=_one_volume, allow=everybody),
    Method(verb="DELETE", path=f"{_C}/{{volume}}", handler=_drop_volume, allow=everybody, params={
        "delay": integer(1, 30),
    }),
)  # fmt: skip
