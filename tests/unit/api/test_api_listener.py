"""The daemon's Unix socket."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from agentlab.api.listener import forget, listen
from agentlab.errors import AddressInUse, PermissionMissing


def test_the_socket_is_open_to_its_owner_and_group_only(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="gives a file to another group")
def test_the_socket_belongs_to_the_group_that_was_named(tmp_path: Path) -> None:
    group = grp.getgrgid(1)
    with listen(tmp_path / "s", group.gr_name):
        assert (tmp_path / "s").stat().st_gid == 1


def test_a_group_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PermissionMissing, match="no group 'no-such-group'"):
        listen(tmp_path / "s", "no-such-group")


def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    listen(tmp_path / "s").close()
    assert (tmp_path / "s").is_socket()
    with listen(tmp_path / "s"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


def test_a_living_daemons_socket_is_left_alone(tmp_path: Path) -> None:
    with listen(tmp_path / "s"):
        with pytest.raises(AddressInUse, match="another daemon answers"):
            listen(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


def test_something_else_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(AddressInUse, match="not a socket"):
        listen(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "mine"


def test_a_path_that_the_kernel_does_not_take_is_told_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(AddressInUse, match="107 bytes"):
        listen(tmp_path / ("s" * 120))


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PermissionMissing, match="No such file"):
        listen(tmp_path / "nowhere" / "s")


def test_only_our_own_socket_file_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path):
        inode = path.lstat().st_ino
        path.rename(tmp_path / "kept")  # its inode cannot be given to the next one
        with listen(path):
            forget(path, inode)
            assert path.exists()
            forget(path, path.lstat().st_ino)
            assert not path.exists()
