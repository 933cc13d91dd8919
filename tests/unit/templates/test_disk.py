"""How large an image's file system is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.errors import DiskFull
from agentlab.templates.disk import SLACK_BYTES, check_room, shape_of

MIB = 1 << 20


def test_a_file_system_has_room_for_its_content_and_little_more() -> None:
    shape = shape_of(400 * MIB, 10_000)

    assert 400 * MIB + SLACK_BYTES < shape.size_bytes < 540 * MIB
    assert shape.size_bytes % MIB == 0


def test_many_small_files_get_more_inodes() -> None:
    assert shape_of(400 * MIB, 10_000).bytes_per_inode == 16384
    assert shape_of(400 * MIB, 25_000).bytes_per_inode == 10066
    assert shape_of(400 * MIB, 500_000).bytes_per_inode == 4096


def test_there_are_twice_as_many_inodes_as_files() -> None:
    shape = shape_of(400 * MIB, 25_000)

    assert shape.size_bytes // shape.bytes_per_inode > 50_000


def test_a_disk_that_would_not_fit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    check_room(tmp_path, 1)

    with pytest.raises(DiskFull, match=r"1024\.0 TiB are needed"):
        check_room(tmp_path, 1 << 50)
