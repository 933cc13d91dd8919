"""Snapshots as they lie in their sandbox's folder: names for the layers of a disk, and saved memory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentlab.backends.interface import Refused
from agentlab.backends.qemu import disk, layers
from agentlab.backends.qemu.command import Shape
from agentlab.backends.qemu.host import Host
from agentlab.backends.qemu.layout import Layout, read_note, write_note
from agentlab.backends.qemu.origin import INITRD, KERNEL, origin_of
from agentlab.backends.qemu.prepared import MEMORY, STATE, Prepared
from agentlab.base.files import make_directory, remove_tree, sync_directory, write_atomic
from agentlab.model.ids import SandboxId
from agentlab.model.snapshot import Snapshot

ORIGIN = "origin.json"
RECORD = "record.json"
_NEW = ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBy:
    """The machine whose memory was saved; only its like can have that memory."""

    qemu: str
    processor: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One snapshot, which is complete."""

    folder: Path
    shown: Snapshot
    sandbox: SandboxId
    ran: bool  # the disk was no longer that of the memory that every sandbox of its kind begins with
    saved_by: SavedBy | None


def saved_by(host: Host, shape: Shape) -> SavedBy:
    """A machine of this host."""
    return SavedBy(qemu=host.version, processor=host.processor if shape.accelerator == "kvm" else "", shape=shape)


def scratch(layout: Layout, sandbox: SandboxId, name: str) -> Path:
    """An empty folder for a snapshot in the making.  Raises OSError."""
    folder = layout.snapshots(sandbox) / f".{name}{_NEW}"
    remove_tree(folder)
    return make_directory(folder)


def admit(layout: Layout, kept: Kept) -> None:
    """Take in what was made in `kept.folder`, in one rename; durable on return.  Raises OSError."""
    record = {"shown": asdict(kept.shown), "sandbox": kept.sandbox, "ran": kept.ran}
    saved = None if kept.saved_by is None else asdict(kept.saved_by)
    write_atomic(kept.folder / RECORD, json.dumps(record | {"saved_by": saved}).encode())
    target = layout.snapshots(kept.sandbox) / kept.shown.name
    kept.folder.rename(target)
    sync_directory(target.parent)


def find(layout: Layout, sandbox: SandboxId, name: str) -> Kept | None:
    """The snapshot of this name; None if there is none that is complete.  ValueError if its record is not ours."""
    folder = layout.snapshots(sandbox) / name
    if (record := read_note(folder / RECORD)) is None:
        return None
    return _kept(folder, record)


def _kept(folder: Path, record: dict[str, Any]) -> Kept:
    try:
        saved = record["saved_by"]
        return Kept(
            folder=folder,
            shown=Snapshot(**record["shown"]),
            sandbox=SandboxId(record["sandbox"]),
            ran=bool(record["ran"]),
            saved_by=None if saved is None else SavedBy(**saved | {"shape": Shape(**saved["shape"])}),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder} holds a record that cannot be read") from error


def all_of(layout: Layout, sandbox: SandboxId) -> list[Kept]:
    """All that are complete, oldest first."""
    folder = layout.snapshots(sandbox)
    names = [each.name for each in folder.iterdir() if each.name[0] != "."] if folder.is_dir() else []
    found = [kept for name in names if (kept := find(layout, sandbox, name)) is not None]
    return sorted(found, key=lambda kept: (kept.shown.taken_at, kept.shown.name))


def forget(kept: Kept) -> None:
    """Remove it; it is gone at once.  Raises OSError."""
    doomed = kept.folder.with_name(f".{kept.folder.name}.gone")
    remove_tree(doomed)
    kept.folder.rename(doomed)
    remove_tree(doomed)


def sweep(layout: Layout, sandbox: SandboxId) -> None:
    """Remove what a crash left half made or half removed.  Raises OSError."""
    folder = layout.snapshots(sandbox)
    for each in folder.glob(".*") if folder.is_dir() else ():
        remove_tree(each)


def fill(layout: Layout, sandbox: SandboxId, folder: Path) -> None:
    """Name in `folder` all that the sandbox's disk stands on, which must not be written any more.  Raises OSError."""
    home = layout.home(sandbox)
    for layer in layers.below(home):
        layers.seal(layer)
    layers.share(layers.below(home), folder)
    for each in (KERNEL, INITRD):
        disk.share(home / each, folder / each)
    disk.share(layout.origin(sandbox), folder / ORIGIN)


async def become(layout: Layout, sandbox: SandboxId, kept: Kept, uid: int) -> None:
    """Give a sandbox that has no process the disk of a snapshot, and its memory for the next start.

    May be repeated at any point; the disk appears last.  Raises OSError, ProgramFailed, ValueError.
    """
    home, target = layout.home(sandbox), layout.disk(sandbox)
    target.unlink(missing_ok=True)
    layers.share(layers.below(kept.folder), home)
    for each in (KERNEL, INITRD):
        disk.share(kept.folder / each, home / each)
    note = read_note(kept.folder / ORIGIN)
    write_note(layout.origin(sandbox), note or {})
    _let_wake(layout, sandbox, kept)
    if kept.ran and kept.saved_by is None:
        layout.ran(sandbox).touch()
    else:
        layout.ran(sandbox).unlink(missing_ok=True)
    (await layers.lay_next(home, origin_of(layout, sandbox).disk_bytes, uid)).replace(target)


def _let_wake(layout: Layout, sandbox: SandboxId, kept: Kept) -> None:
    folder = layout.waking(sandbox)
    remove_tree(folder)
    if kept.saved_by is None:
        return
    made = make_directory(folder.with_name(f".{folder.name}{_NEW}"))
    for name in (MEMORY, STATE, KERNEL, INITRD, RECORD):
        disk.share(kept.folder / name, made / name)
    made.rename(folder)


def waking(layout: Layout, sandbox: SandboxId, fits: SavedBy) -> Prepared | None:
    """The memory that the next start of this sandbox brings back, if there is some.

    Raises Refused if this machine cannot have it.
    """
    folder = layout.waking(sandbox)
    if layout.ran(sandbox).exists() or (record := read_note(folder / RECORD)) is None:
        return None
    kept = _kept(folder, record)
    must_fit(kept, fits)
    return Prepared(folder, bare=True, own=kept.sandbox == sandbox)


def must_fit(kept: Kept, machine: SavedBy) -> None:
    """Refused, with the difference, if the snapshot has memory that this machine cannot have."""
    if kept.saved_by is None:
        return
    saved = asdict(kept.saved_by) | asdict(kept.saved_by.shape)
    for name, found in (asdict(machine) | asdict(machine.shape)).items():
        if name != "shape" and saved[name] != found:
            raise Refused(
                f"the memory of the snapshot {kept.shown.name} is another machine's: {name} {saved[name]}, not {found}",
                "Use a snapshot without memory, or the same resources and network as the sandbox it was taken of.",
            )


def only_name(prepared: Prepared) -> bool:
    """Whether nobody else waits for this memory."""
    return prepared.file(MEMORY).stat().st_nlink <= 1
