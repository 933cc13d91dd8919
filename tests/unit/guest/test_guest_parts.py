"""Smaller parts of the guest program: packing, globs, spool, what waits for a socket."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agentlab.base.pyz import build_guest_pyz
from agentlab_guest.globs import pattern
from agentlab_guest.link import parse_address
from agentlab_guest.repo import without_credentials
from agentlab_guest.spool import SEGMENT_BYTES, EventSpool, OutputSpool
from agentlab_guest.state import AnotherGuest, StateDirectory
from agentlab_guest.transfers import Pending, Range


def test_the_packed_program_is_the_same_bytes_in_every_process() -> None:
    code = "import hashlib; from agentlab.base.pyz import build_guest_pyz as b; print(hashlib.sha256(b()).hexdigest())"

    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("0", "1", "2")
    }

    assert found == {hashlib.sha256(build_guest_pyz()).hexdigest() + "\n"}


def test_the_packed_program_runs_and_tells_its_version(tmp_path: Path) -> None:
    (tmp_path / "guest.pyz").write_bytes(build_guest_pyz())
    argv = [sys.executable, "-I", "-S", str(tmp_path / "guest.pyz")]

    assert subprocess.run([*argv, "--version"], capture_output=True, text=True).stdout.startswith("agentlab-guest ")
    wrong = subprocess.run([*argv, "--link", "nonsense"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert wrong.returncode == 2
    assert "not a link address" in wrong.stderr


def test_the_packed_program_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "guest.pyz").write_bytes(build_guest_pyz())
    names = zipfile.ZipFile(tmp_path / "guest.pyz").namelist()

    assert all(name == "__main__.py" or name.startswith("agentlab_guest/") for name in names)


@pytest.mark.parametrize(
    ("glob", "matches", "others"),
    [
        ("dist/*", ["dist/a", "dist/.b"], ["dist/a/b", "xdist/a", "dist"]),
        ("**/*.py", ["a.py", "x/y/b.py"], ["a.pyc", "a.py/b"]),
        ("out/**", ["out/a", "out/b/c"], ["out", "outer/a"]),
        ("./a?.t[xz]t", ["ab.txt", "ab.tzt"], ["a/.txt", "abc.txt", "ab.tat"]),
        ("[!a]", ["b"], ["a", "/"]),
        ("[z-a]", [], ["a"]),
        ("a+b(c)", ["a+b(c)"], ["aab(c)"]),
    ],
)
def test_globs_match_as_a_shell_with_globstar_would(glob: str, matches: list[str], others: list[str]) -> None:
    made = pattern(glob)

    assert [path for path in matches + others if made.fullmatch(path)] == matches


def test_the_spool_gives_back_what_is_not_acknowledged_after_a_restart(tmp_path: Path) -> None:
    spool = OutputSpool(str(tmp_path / "output"))
    piece = bytes(range(256)) * 4096
    for _ in range(12):
        spool.append(piece)
    spool.ack(9 << 20)

    again = OutputSpool(str(tmp_path / "output"))

    assert again.end == 12 << 20
    assert again.acked == 8 << 20
    assert again.read((9 << 20) + 5, 100) == piece[5:105]
    assert len(list((tmp_path / "output").iterdir())) == (4 << 20) // SEGMENT_BYTES
    assert again.read(0, 4) == b"...."


def test_a_spool_that_was_lost_goes_on_where_the_daemon_is(tmp_path: Path) -> None:
    spool = OutputSpool(str(tmp_path / "output"))
    spool.ack(1000)
    spool.append(b"more")

    assert (spool.end, spool.read(1000, 10)) == (1004, b"more")


def test_events_survive_a_restart_but_for_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events"
    EventSpool(str(path)).append(1.5, "fetch", "a")
    EventSpool(str(path)).append(2.5, "run", "b")
    path.write_bytes(path.read_bytes() + b'{"seq":3,"at"')

    again = EventSpool(str(path))
    again.ack(1)

    assert [(event.seq, event.phase) for event in again.waiting] == [(2, "run")]
    assert again.last == 2


def test_a_state_directory_has_one_guest(tmp_path: Path) -> None:
    first = StateDirectory(str(tmp_path / "state"))
    first.lock(evict=False)

    with pytest.raises(AnotherGuest):
        StateDirectory(str(tmp_path / "state")).lock(evict=False)


def test_what_waits_for_a_socket_keeps_its_order_and_its_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    pending = Pending()
    with (tmp_path / "file").open("rb") as file:
        pending.add(b"ab")
        pending.add(b"cd")
        pending.add_range(Range(1, file.fileno(), 2, 5))
        pending.add(b"e")

    pending.sent(3)
    assert [bytes(each) for each in pending.front()] == [b"d"]  # type: ignore[union-attr]
    pending.sent(1)
    part = pending.front()
    assert isinstance(part, Range)
    pending.sent(2)
    assert (part.offset, part.size, pending.bytes) == (4, 3, 4)
    pending.clear()
    assert pending.front() == []


@pytest.mark.parametrize("wrong", ["unix:relative", "tcp:host", "tcp::1", "http://x", ""])
def test_an_address_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="link address"):
        parse_address(wrong)


def test_credentials_are_taken_out_of_addresses() -> None:
    assert without_credentials("cannot read https://user:pass@host/x@y and ssh://git@h") == (
        "cannot read https://host/x@y and ssh://h"
    )
