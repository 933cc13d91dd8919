"""Empty disk images are kept in bounded numbers, whatever sizes are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.backends.oci import disk
from agentlab.base.process import which

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(which("mkfs.ext4") is None, reason="needs mkfs.ext4 (e2fsprogs)"),
]


async def test_p9_empty_images_of_ever_new_sizes_do_not_pile_up(tmp_path: Path) -> None:
    for number in range(disk.BLANKS_KEPT_MAX + 4):
        newest = await disk.blank(tmp_path, (16 << 20) + 4096 * number)

    assert newest.exists()
    assert len(list(tmp_path.iterdir())) == disk.BLANKS_KEPT_MAX


async def test_an_empty_image_is_made_once_for_each_size(tmp_path: Path) -> None:
    first = await disk.blank(tmp_path, 16 << 20)
    made = first.stat().st_mtime_ns

    again = await disk.blank(tmp_path, 16 << 20)

    assert (again, again.stat().st_mtime_ns) == (first, made)
