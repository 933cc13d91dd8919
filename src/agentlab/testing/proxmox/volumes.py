"""The making, copying, linking and removing of volumes, under the locks that Proxmox VE takes for it."""

from __future__ import annotations

from collections.abc import Callable

from agentlab.testing.proxmox.cluster import Cluster
from agentlab.testing.proxmox.drives import Drive
from agentlab.testing.proxmox.locks import FileLock
from agentlab.testing.proxmox.refusal import Refused
from agentlab.testing.proxmox.storage import CLOUDINIT_BYTES, Store, Volume
from agentlab.testing.proxmox.units import GIB, MIB, size_text

Log = Callable[[str], None]
PROGRESS_BYTES = 40 * MIB
NEW_USED = {"qcow2": 331_776, "raw": 4096}


def lock_of(cluster: Cluster, store: Store, node: str) -> FileLock:
    """The lock under which volumes of a storage are made."""
    return cluster.locks.of_storage(store.name, None if store.shared else node)


def located(cluster: Cluster, node: str, volid: str) -> tuple[Store, Volume]:
    """A volume by its id.  Raises Refused if storage or volume are not there."""
    name, _, rest = volid.partition(":")
    store = cluster.store(name, node)
    volume = store.find(node, rest)
    if volume is None:
        raise Refused(f"volume '{volid}' does not exist")
    return store, volume


def owned(cluster: Cluster, node: str, volid: str, vmid: int) -> tuple[Store, Volume] | None:
    """A volume if it is there and belongs to this VM."""
    name, _, rest = volid.partition(":")
    store = cluster.stores.get(name)
    volume = None if store is None else store.find(node, rest)
    return (store, volume) if store is not None and volume is not None and volume.vmid == vmid else None


def _check_space(store: Store, node: str, bytes_count: int) -> None:
    if store.used(node) + bytes_count > store.total:
        raise Refused(f"unable to create image: no space left on storage '{store.name}'")


async def make(
    cluster: Cluster,
    node: str,
    vmid: int,
    store: Store,
    size: int,
    kind: str,
    own: str | None = None,
    log: Log | None = None,
) -> Volume:
    """A new empty volume of a VM."""
    async with lock_of(cluster, store, node).held():
        kind = kind if store.keeps_files else "raw"
        own = own or store.free_name(node, vmid, store.extension(kind))
        _check_space(store, node, size if kind == "raw" and not store.keeps_files else 0)
        volume = Volume(own=own, content="images", format=kind, size=size, ctime=_now(cluster), vmid=vmid)
        volume.used = NEW_USED.get(kind, 0)
        store.on(node)[own] = volume
        if log is not None:
            log(formatting(store, node, volume))
        path = store.real(node, volume)
        if path is not None:
            await cluster.guests.disk_made(path, kind, size)
        return volume


async def make_cloudinit(cluster: Cluster, node: str, vmid: int, store: Store, log: Log | None = None) -> Volume:
    """The small volume with the data of cloud-init."""
    kind = "qcow2" if store.keeps_files else "raw"
    own = store.own_name(vmid, f"vm-{vmid}-cloudinit{store.extension(kind)}")
    return await make(cluster, node, vmid, store, CLOUDINIT_BYTES, kind, own, log)


async def link(cluster: Cluster, node: str, vmid: int, store: Store, base: Volume, log: Log) -> Volume:
    """A linked clone.  The storage is locked for as long as it takes."""
    async with lock_of(cluster, store, node).held():
        await cluster.spend("qmclone")
        own = store.free_name(node, vmid, store.extension(base.format))
        volume = Volume(own=own, content="images", format=base.format, size=base.size, ctime=_now(cluster), vmid=vmid)
        volume.parent, volume.used = base.own, 528_384
        file = own.rpartition("/")[2]
        log(f"clone {base.name}: images, {file}, {vmid} to {file} (base=../{base.own})")
        store.on(node)[own] = volume
        log(formatting(store, node, volume))
        source, path = store.real(node, base), store.real(node, volume)
        if source is not None and path is not None:
            await cluster.guests.disk_linked(source, path)
        return volume


async def copied(
    cluster: Cluster, node: str, vmid: int, source: tuple[Store, Volume], target: Store, kind: str, log: Log
) -> Volume:
    """An independent copy in another place or format."""
    store, original = source
    if original.size and target.used(node) + original.size > target.total:
        raise Refused(f"unable to create image: no space left on storage '{target.name}'")
    if "-cloudinit" in original.own:
        volume = await make_cloudinit(cluster, node, vmid, target, log)
        log(f"allocated target volume '{target.volid(volume)}'")
        return volume
    volume = await make(cluster, node, vmid, target, original.size, kind, None, log)
    volume.used = original.used
    log(f"allocated target volume '{target.volid(volume)}'")
    await cluster.spend("copy")
    whole = f"{original.size / GIB:.1f} GiB" if original.size >= GIB else f"{original.size / MIB:.1f} MiB"
    log(f"transferred 0.0 B of {whole} (0.00%)")
    if original.content == "import" and original.used >= PROGRESS_BYTES:
        for done in range(PROGRESS_BYTES, original.size, PROGRESS_BYTES):
            log(f"transferred {done / MIB:.1f} MiB of {whole} ({100 * done / original.size:.2f}%)")
    log(f"transferred {whole} of {whole} (100.00%)")
    before, after = store.real(node, original), target.real(node, volume)
    if before is not None and after is not None:
        await cluster.guests.disk_copied(before, original.format, after, kind)
    return volume


async def made_for(cluster: Cluster, node: str, vmid: int, drive: Drive, log: Log) -> str:
    """Make what a drive option asks for; the option's text with the volume that came of it."""
    store = cluster.store(drive.storage, node)
    if drive.cloudinit:
        volume = await make_cloudinit(cluster, node, vmid, store, log)
        text = drive.text(store.volid(volume))
    elif "import-from" in drive.settings:
        source = located_import(cluster, node, str(drive.settings["import-from"]))
        log(f"create full clone of drive ({drive.settings['import-from']})")
        kind = str(drive.settings.get("format", source[1].format if source[1].format == "qcow2" else "raw"))
        volume = await copied(cluster, node, vmid, source, store, kind, log)
        text = drive.text(store.volid(volume), size=size_text(volume.size))
    else:
        kind = str(drive.settings.get("format", store.default_format()))
        size = 4 * MIB if drive.key == "tpmstate0" else int((drive.new_gib or 0) * GIB)
        volume = await make(cluster, node, vmid, store, size, kind, None, log)
        text = drive.text(store.volid(volume), size=size_text(size))
    log(f"{drive.key}: successfully created disk '{text}'")
    return text


def located_import(cluster: Cluster, node: str, volid: str) -> tuple[Store, Volume]:
    """The source of an import; its size is that of the disk within.  Raises Refused if it is not there."""
    name, _, rest = volid.partition(":")
    store = cluster.store(name, node)
    volume = store.find(node, rest)
    if volume is None:
        ghost = Volume(
            own=rest, content="import" if rest.startswith("import/") else "images", format="raw", size=0, ctime=0
        )
        raise Refused(f"failed to stat '{store.file(node, ghost)}'")
    inside = Volume(
        own=volume.own,
        content=volume.content,
        format=volume.format,
        size=volume.used or volume.size,
        ctime=volume.ctime,
    )
    inside.used = volume.size
    return store, inside


def formatting(store: Store, node: str, volume: Volume) -> str:
    """The line that a new image leaves in a task's log."""
    path = store.file(node, volume)
    if volume.format != "qcow2":
        return f"Formatting '{path}', fmt={volume.format} size={volume.size} preallocation=off"
    clusters = "cluster_size=131072 extended_l2=on" if volume.parent else "cluster_size=65536 extended_l2=off"
    backing = f" backing_file=../{volume.parent} backing_fmt=qcow2" if volume.parent else ""
    return (
        f"Formatting '{path}', fmt=qcow2 {clusters} preallocation=metadata compression_type=zlib "
        f"size={volume.size}{backing} lazy_refcounts=off refcount_bits=16"
    )


def _now(cluster: Cluster) -> int:
    return int(cluster.clock.now())
