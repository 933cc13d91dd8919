"""Which daemon a client talks to, and what it says when there is none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agentlab.client.discover import socket_path
from agentlab.client.sync import Connection
from agentlab.errors import DaemonNotRunning, PermissionMissing


def test_the_variable_for_the_socket_comes_first(tmp_path: Path) -> None:
    environ = {"AGENTLAB_SOCKET": str(tmp_path / "x"), "AGENTLAB_DIR": "/d"}
    assert socket_path(environ, 1000) == tmp_path / "x"


def test_then_the_variable_for_the_folder() -> None:
    assert socket_path({"AGENTLAB_DIR": "/d", "HOME": "/h"}, 1000) == Path("/d/run/agentlabd.sock")


def test_then_the_users_own_daemon_if_there_is_one(tmp_path: Path) -> None:
    own = tmp_path / "agentlab" / "agentlabd.sock"
    own.parent.mkdir()
    own.touch()
    assert socket_path({"XDG_RUNTIME_DIR": str(tmp_path), "HOME": "/h"}, 1000) == own


def test_root_uses_the_systems() -> None:
    assert socket_path({"HOME": "/root"}, 0) == Path("/run/agentlab/agentlabd.sock")


def test_without_a_home_the_systems_is_used() -> None:
    assert socket_path({}, 1000) == Path("/run/agentlab/agentlabd.sock")


def test_a_missing_socket_is_told_with_how_to_start_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotRunning, match="no such socket") as caught:
        Connection(tmp_path / "s").call("daemon.status")
    assert "agentlab up" in caught.value.advice


def test_a_socket_where_nobody_listens_is_told(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    with pytest.raises(DaemonNotRunning, match="nobody listens"):
        Connection(tmp_path / "s").call("daemon.status")


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user for a moment")
def test_a_socket_that_may_not_be_opened_is_told_with_its_group(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    os.chown(path, 0, 1)
    path.chmod(0o660)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionMissing) as caught:
            Connection(path).call("daemon.status")
    finally:
        os.seteuid(0)
        listener.close()
    assert "usermod -aG daemon" in caught.value.advice
