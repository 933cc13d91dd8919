"""Which way home a guest program takes: its port, an invitation, or none that it says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agentlab_guest.dialled import DialledPort
from agentlab_guest.home import NoWay, find
from agentlab_guest.invitation import Invitation, encode
from agentlab_guest.keepsake import KEEPSAKE_BYTES_MAX, Keepsake
from agentlab_guest.port import DevicePort, Port, SocketPort
from agentlab_guest.reactor import Reactor

INVITATION = Invitation(sandbox="sb-abcdefgh", daemon="10.0.0.1:1", token="f" * 32, fingerprint="A" * 43)


def way(folder: Path, device: str = "", looks_max: int = 1) -> Port:
    device = device or str(folder / "port")
    return find(device, str(folder / "serial"), str(folder), Reactor(), machine=False, looks_max=looks_max)


def test_a_port_comes_before_an_invitation(tmp_path: Path) -> None:
    (tmp_path / "serial").write_bytes(encode(INVITATION))

    assert isinstance(way(tmp_path, "/dev/null"), DevicePort)


def test_without_a_port_an_invitation_is_followed(tmp_path: Path) -> None:
    (tmp_path / "serial").write_bytes(encode(INVITATION) + b"\n")

    assert isinstance(way(tmp_path), DialledPort)


def test_an_invitation_that_comes_late_is_seen(tmp_path: Path) -> None:
    writing = threading.Timer(0.3, lambda: (tmp_path / "serial").write_bytes(encode(INVITATION)))
    writing.start()

    assert isinstance(way(tmp_path, looks_max=10), DialledPort)


@pytest.mark.parametrize(
    ("serial", "remark"), [(None, "does not exist"), (b"Not Specified\n", "holds no invitation: not JSON")]
)
def test_where_there_is_no_way_it_is_said_what_was_found(tmp_path: Path, serial: bytes | None, remark: str) -> None:
    if serial is not None:
        (tmp_path / "serial").write_bytes(serial)

    with pytest.raises(NoWay, match=f"there is no .*/port, and .*/serial {remark}"):
        way(tmp_path)


def test_nobody_who_looks_for_an_invitation_makes_a_socket_instead(tmp_path: Path) -> None:
    with pytest.raises(NoWay):
        way(tmp_path)

    assert not (tmp_path / "port").exists()
    assert isinstance(find(str(tmp_path / "port"), None, "", Reactor(), machine=False), SocketPort)


def test_what_is_kept_is_found_again_for_the_same_token_only(tmp_path: Path) -> None:
    first = Keepsake(str(tmp_path), "token")
    first.keep("credential")

    again, other = Keepsake(str(tmp_path), "token"), Keepsake(str(tmp_path), "another")

    assert (again.nonce, again.credential) == (first.nonce, "credential")
    assert other.credential is None
    assert other.nonce != first.nonce


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"token":1}', b"x" * (KEEPSAKE_BYTES_MAX + 1)], ids=range(5))
def test_a_keepsake_that_was_harmed_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "link.json").write_bytes(content)

    made = Keepsake(str(tmp_path), "token")

    assert made.credential is None
    assert made.nonce
