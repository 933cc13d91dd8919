"""The small initrd: what is in it, in which order, and that it is an archive as others read it."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from agentlab.templates.initrd import (
    INITRD_BYTES_MAX,
    Entry,
    build_initrd,
    init_script,
    modules_in_order,
    newc,
    parse_dependencies,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "vm"
KERNEL: Mapping[str, bytes] = {
    "modules.dep": (
        b"kernel/virtio_ring.ko:\n"
        b"kernel/virtio.ko: kernel/virtio_ring.ko\n"
        b"kernel/virtio_blk.ko: kernel/virtio.ko kernel/virtio_ring.ko\n"
        b"kernel/virtio-rng.ko.xz: kernel/virtio.ko kernel/virtio_ring.ko\n"
    ),
    "modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
    "kernel/virtio_ring.ko": b"ring",
    "kernel/virtio.ko": b"virtio",
    "kernel/virtio_blk.ko": b"blk",
    "kernel/virtio-rng.ko.xz": lzma.compress(b"rng"),
}


def test_modules_come_after_what_they_need_and_once() -> None:
    found = modules_in_order(KERNEL.__getitem__, ("virtio_blk", "virtio_rng"))

    assert found == [
        ("virtio_ring.ko", b"ring"),
        ("virtio.ko", b"virtio"),
        ("virtio_blk.ko", b"blk"),
        ("virtio_rng.ko", b"rng"),
    ]


def test_what_is_built_into_the_kernel_needs_no_module() -> None:
    assert modules_in_order(KERNEL.__getitem__, ("ext4",)) == []


def test_a_module_that_the_kernel_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="no module virtio_gpu"):
        modules_in_order(KERNEL.__getitem__, ("virtio_gpu",))


def test_dependencies_are_read_as_depmod_writes_them() -> None:
    assert parse_dependencies("a.ko: b.ko c.ko\nb.ko:\n") == {"a.ko": ("b.ko", "c.ko"), "b.ko": ()}


def test_the_first_program_is_as_it_was_reviewed() -> None:
    assert init_script(("virtio_ring.ko", "virtio.ko")) == (GOLDEN / "init.sh").read_text()


def test_the_first_program_is_a_shell_script_without_errors() -> None:
    checked = subprocess.run(
        ["sh", "-n"], input=init_script(["virtio.ko"]), text=True, capture_output=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_the_archive() -> None:
    archive = build_initrd(b"program", [("virtio_ring.ko", b"ring"), ("virtio.ko", b"12345")])

    listed = subprocess.run(
        ["cpio", "--list", "--verbose", "--numeric-uid-gid"],
        input=archive,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "TZ": "UTC", "LC_ALL": "C"},
        check=True,
    )

    assert listed.stdout.decode() == (GOLDEN / "initrd.txt").read_text()


def test_the_same_entries_make_the_same_bytes() -> None:
    entries = [Entry(name="a", mode=0o100644, content=b"x"), Entry(name="d", mode=0o040755)]

    assert newc(entries) == newc(entries)
    assert len(newc(entries)) % 4 == 0


def test_an_initrd_that_grew_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="INITRD_BYTES_MAX"):
        build_initrd(bytes(INITRD_BYTES_MAX), [])
