"""Prepared memory is used only if it is whole, fits, and could not have been changed by others."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.backends.qemu import memory_file
from agentlab.backends.qemu.command import Shape
from agentlab.backends.qemu.prepared import BASE, BLANK, DISK, INITRD, KERNEL, MEMORY, RECORD, STATE, Kind, Shelf

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="prepared memory belongs to root")

SHAPE = Shape(accelerator="tcg", memory_bytes=1 << 20, cpus=1, network=False)
KIND = Kind(image="a" * 64, shape=SHAPE, disk_bytes=1 << 30, qemu="7.2.22", processor="", command_line="ro")


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    put(made, tmp_path, KIND)
    yield made
    made.close()


def put(shelf: Shelf, folder: Path, kind: Kind) -> None:
    scratch = folder / ".scratch"
    scratch.mkdir()
    for name in (MEMORY, STATE, BASE, DISK, BLANK, KERNEL, INITRD):
        (scratch / name).write_bytes(f"what {name} holds".encode())
    shelf.admit(scratch, kind)


def test_what_was_admitted_is_found_by_its_kind_and_no_other(shelf: Shelf) -> None:
    found = shelf.find(KIND)

    assert found is not None
    assert found.file(STATE).read_bytes() == b"what state holds"
    assert shelf.find(replace(KIND, disk_bytes=2 << 30)) is None


def test_nobody_may_write_what_was_admitted(shelf: Shelf) -> None:
    found = shelf.find(KIND)

    assert found is not None
    assert {oct(each.stat().st_mode & 0o777) for each in found.folder.iterdir()} == {"0o444"}


def truncated(folder: Path) -> None:
    (folder / MEMORY).write_bytes(b"what")


def absent(folder: Path) -> None:
    (folder / STATE).unlink()


def writable(folder: Path) -> None:
    (folder / DISK).chmod(0o666)


def anothers(folder: Path) -> None:
    os.chown(folder / MEMORY, 12345, 12345)


def without_record(folder: Path) -> None:
    (folder / RECORD).unlink()


def garbled(folder: Path) -> None:
    (folder / RECORD).write_bytes(b"[]")


def of_another_qemu(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_bytes())
    (folder / RECORD).write_text(json.dumps(record | {"qemu": "6.0"}))


@pytest.mark.parametrize(
    "harm", [truncated, absent, writable, anothers, without_record, garbled, of_another_qemu], ids=lambda f: f.__name__
)
def test_what_was_harmed_is_not_used(shelf: Shelf, harm: Callable[[Path], None]) -> None:
    harm(shelf.place(KIND))

    assert shelf.find(KIND) is None


def test_what_was_harmed_is_replaced_by_what_is_made_anew(shelf: Shelf, tmp_path: Path) -> None:
    truncated(shelf.place(KIND))

    put(shelf, tmp_path, KIND)

    assert shelf.find(KIND) is not None


def test_what_another_qemu_saved_goes(shelf: Shelf) -> None:
    shelf.prune("8.0.0")

    assert not shelf.place(KIND).exists()


def test_of_many_kinds_those_used_last_stay(shelf: Shelf, tmp_path: Path) -> None:
    kinds = [replace(KIND, disk_bytes=number << 30) for number in range(2, 10)]
    for number, kind in enumerate(kinds):
        put(shelf, tmp_path, kind)
        os.utime(shelf.place(kind), (2_000_000_000 + number,) * 2)

    shelf.prune("7.2.22")

    assert [shelf.find(each) is not None for each in (KIND, *kinds)] == [False] + [True] * 8


@pytest.mark.anyio
async def test_loaded_memory_equals_the_file_and_cannot_be_changed(shelf: Shelf) -> None:
    found = shelf.find(KIND)
    assert found is not None

    descriptor = await shelf.memory(found)

    assert os.pread(descriptor, 100, 0) == b"what memory holds"
    assert await shelf.memory(found) == descriptor
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE


def test_memory_is_kept_without_its_holes_and_loads_as_it_was(tmp_path: Path) -> None:
    memory = memory_file.blank(8 << 20)
    os.pwrite(memory, b"in the middle", 4 << 20)
    memory_file.seal(memory)

    written = memory_file.keep(memory, tmp_path / "memory")
    loaded = memory_file.load(tmp_path / "memory")

    assert written <= 64 << 10
    assert os.fstat(loaded).st_size == 8 << 20
    assert os.pread(loaded, 8 << 20, 0) == os.pread(memory, 8 << 20, 0)
    os.close(memory)
    os.close(loaded)
