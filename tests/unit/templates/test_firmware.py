"""What a PC's firmware reads first."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.templates.firmware import PARTITION_BYTES, boot_sector, make_bootable

BOOT = b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa"


def test_the_boot_sector_has_one_active_linux_partition() -> None:
    sector = boot_sector(BOOT, 4096)

    assert sector[446:462] == bytes.fromhex("80 feffff 83 feffff 00080000 00100000")
    assert sector[462:510] == bytes(48)
    assert sector[510:] == b"\x55\xaa"
    assert sector[:446] == BOOT[:446]


def test_what_is_no_boot_sector_is_refused() -> None:
    with pytest.raises(ValueError, match="not a boot sector"):
        boot_sector(bytes(512), 4096)


def test_the_core_lies_between_boot_sector_and_partition(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(PARTITION_BYTES) + b"file system".ljust(1024))

    make_bootable(disk, BOOT, b"core")

    assert disk.read_bytes()[512:516] == b"core"
    assert disk.read_bytes()[PARTITION_BYTES : PARTITION_BYTES + 11] == b"file system"


def test_a_core_that_would_reach_into_the_partition_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(PARTITION_BYTES + 1024))

    with pytest.raises(ValueError, match="does not fit"):
        make_bootable(disk, BOOT, bytes(PARTITION_BYTES))
