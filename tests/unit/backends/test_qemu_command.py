"""What QEMU is told: the golden command lines, and what saved memory depends on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agentlab.backends.qemu.command import Files, Shape, command, emulation_cache_bytes, fingerprint
from agentlab.backends.qemu.host import limits, shape_of
from agentlab.backends.qemu.prepared import Kind
from agentlab.model.resources import Resources

GOLDEN = Path(__file__).parents[2] / "golden" / "vm"
TITLE = "agentlab:x3k2abcd:sb-aaaaaaaa:0123456789abcdef"
EMULATED = Shape(accelerator="tcg", memory_bytes=512 << 20, cpus=1, network=True)
ASSISTED = Shape(accelerator="kvm", memory_bytes=4 << 30, cpus=2, network=False)
FILES = Files(disk=10, below=(11, 12), memory=13, kernel=14, initrd=15, control=16, monitor=17, tap=18)
KIND = Kind(image="a" * 64, shape=EMULATED, disk_bytes=1 << 30, qemu="7.2.22 (Debian)", processor="", command_line="ro")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clone.txt", command(TITLE, EMULATED, FILES, "root=/dev/vda", shared=False, incoming=True)),
        (
            "boot_kvm.txt",
            command(TITLE, ASSISTED, replace(FILES, tap=None), "root=/dev/vda", shared=True, incoming=False),
        ),
    ],
)
def test_the_command_line_is_the_golden_one(name: str, words: list[str]) -> None:
    text = "\n".join(words) + "\n"
    if os.environ.get("GOLDEN_WRITE"):
        (GOLDEN / name).write_text(text)

    assert text == (GOLDEN / name).read_text()


def test_nothing_is_opened_by_its_path() -> None:
    words = command(TITLE, EMULATED, FILES, "root=/dev/vda", shared=False, incoming=True)

    assert [word for word in words if "/" in word and "/proc/self/fd/" not in word] == [
        "root=/dev/vda norandmaps",
        "rng-random,id=random,filename=/dev/urandom",
    ]


def test_a_clone_has_exactly_the_devices_of_the_machine_that_was_saved() -> None:
    saved = command(TITLE, EMULATED, FILES, "root=/dev/vda", shared=True, incoming=False)
    clone = command(TITLE, EMULATED, FILES, "root=/dev/vda", shared=False, incoming=True)

    assert [word for word in clone if word not in saved] == [
        next(word for word in clone if '"share": false' in word),
        "-incoming",
        "defer",
    ]


@pytest.mark.parametrize(
    "other",
    [
        replace(KIND, image="b" * 64),
        replace(KIND, qemu="7.2.23 (Debian)"),
        replace(KIND, disk_bytes=2 << 30),
        replace(KIND, command_line="rw"),
        replace(KIND, processor="flags: vmx"),
        replace(KIND, shape=replace(EMULATED, memory_bytes=1 << 30)),
        replace(KIND, shape=replace(EMULATED, cpus=2)),
        replace(KIND, shape=replace(EMULATED, network=False)),
        replace(KIND, shape=replace(EMULATED, accelerator="kvm")),
    ],
    ids=["image", "qemu", "disk", "command line", "processor", "memory", "cpus", "network", "accelerator"],
)
def test_saved_memory_fits_only_its_own_kind(other: Kind) -> None:
    assert other.key != KIND.key
    assert replace(KIND).key == KIND.key


def test_the_devices_of_a_machine_are_part_of_its_kind() -> None:
    assert fingerprint(EMULATED, "ro") != fingerprint(replace(EMULATED, network=False), "ro")


def test_a_machine_has_whole_processors_and_whole_mebibytes() -> None:
    resources = Resources(memory_bytes=(512 << 20) + 12345, cpus=1.5)

    assert shape_of(resources, "tcg", network=True) == replace(EMULATED, cpus=2)


def test_a_process_may_use_its_guests_memory_twice_and_something_for_itself() -> None:
    found = limits(EMULATED, 0.5)

    assert found.memory_bytes == (1024 + 64 + 256) << 20
    assert found.cpus == 0.5


def test_only_an_emulated_machine_needs_room_for_translated_code() -> None:
    huge = replace(EMULATED, memory_bytes=64 << 30)

    assert [emulation_cache_bytes(each) >> 20 for each in (EMULATED, huge, ASSISTED)] == [64, 256, 0]
