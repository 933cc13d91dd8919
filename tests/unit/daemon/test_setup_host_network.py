"""`agentlabd setup host-network --root`: the files of an agent bridge in an image."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from agentlab.daemon.setup_host_network import host_network
from agentlab.errors import HostNetworkRefused

INTERFACES = "auto lo\niface lo inet loopback\n\nsource /etc/network/interfaces.d/*\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with a host's files in it."""
    (tmp_path / "etc/network").mkdir(parents=True)
    (tmp_path / "etc/network/interfaces").write_text(INTERFACES)
    return tmp_path


def test_an_image_gets_all_files_with_modes_and_the_unit_that_starts_at_boot(image: Path) -> None:
    said = _run(image, "--uplink", "vmbr0", "--yes")

    assert said.exit_code == 0, said.output
    assert _files(image) == {
        "agentlab/host-network/record.json": 0o644,
        "agentlab/host-network/rules.nft": 0o644,
        "network/interfaces": 0o644,
        "network/interfaces.d/agentlab": 0o644,
        "sysctl.d/60-agentlab-host-network.conf": 0o644,
        "systemd/system/agentlab-host-network.service": 0o644,
        "systemd/system/nftables.service.d/agentlab.conf": 0o644,
    }
    started = image / "etc/systemd/system/multi-user.target.wants/agentlab-host-network.service"
    assert str(started.readlink()) == "/etc/systemd/system/agentlab-host-network.service"


def test_a_second_run_on_an_image_has_nothing_to_do(image: Path) -> None:
    _run(image, "--uplink", "vmbr0", "--yes")

    said = _run(image, "--uplink", "vmbr0", "--yes", "--json")

    assert json.loads(said.stdout)["steps"] == []


def test_another_guest_port_is_written_over_the_old_one(image: Path) -> None:
    _run(image, "--uplink", "vmbr0", "--yes")

    said = _run(image, "--uplink", "vmbr0", "--guest-port", "9911", "--yes", "--json")

    assert json.loads(said.stdout)["steps"] == ["write /etc/agentlab/host-network/rules.nft (mode 0644)"]
    assert "tcp dport 9911" in (image / "etc/agentlab/host-network/rules.nft").read_text()


def test_another_uplink_needs_the_old_one_to_be_undone_first(image: Path) -> None:
    _run(image, "--uplink", "vmbr0", "--yes")

    with pytest.raises(HostNetworkRefused, match=r"has the agent bridge agbr0 .* and uplink vmbr0"):
        _run(image, "--uplink", "vmbr1", "--yes")


def test_undo_leaves_an_image_as_it_was(image: Path) -> None:
    _run(image, "--uplink", "vmbr0", "--yes")

    _run(image, "--undo", "--yes")

    assert _files(image) == {"network/interfaces": 0o644}
    assert sorted(each.name for each in (image / "etc").iterdir()) == ["network"]


def test_a_folder_that_was_made_and_then_used_by_others_stays(image: Path) -> None:
    _run(image, "--uplink", "vmbr0", "--yes")
    theirs = image / "etc/sysctl.d/theirs.conf"
    theirs.write_text("kernel.sysrq = 1\n")

    _run(image, "--undo", "--yes")

    assert theirs.exists()


def test_a_file_of_somebody_else_at_one_of_our_paths_is_neither_replaced_nor_removed(image: Path) -> None:
    theirs = image / "etc/network/interfaces.d/agentlab"
    theirs.parent.mkdir()
    theirs.write_text("# mine\n")

    with pytest.raises(HostNetworkRefused, match="was not written by AgentLab"):
        _run(image, "--uplink", "vmbr0", "--yes")
    said = _run(image, "--undo", "--yes")

    assert theirs.read_text() == "# mine\n"
    assert "stays" in said.stderr


def test_an_image_needs_its_uplink_named(image: Path) -> None:
    with pytest.raises(HostNetworkRefused, match="the way to the internet is not known"):
        _run(image, "--yes")


def test_all_obstacles_are_told_at_once(image: Path) -> None:
    (image / "etc/network/interfaces").write_text("auto agbr0\niface agbr0 inet manual\n")

    with pytest.raises(HostNetworkRefused) as refused:
        _run(image, "--uplink", "vmbr0", "--yes")

    assert "does not include" in refused.value.cause
    assert "defines an interface agbr0" in refused.value.cause
    assert "source /etc/network/interfaces.d/*" in refused.value.advice


def test_a_program_that_cannot_be_asked_has_to_consent_beforehand(image: Path) -> None:
    with pytest.raises(click.UsageError, match="give --yes"):
        _run(image, "--uplink", "vmbr0", "--json")

    assert _files(image) == {"network/interfaces": 0o644}


def _run(image: Path, *words: str) -> Result:
    """As `main` calls it: errors come through."""
    return CliRunner().invoke(
        host_network, ["--root", str(image), *words], catch_exceptions=False, standalone_mode=False
    )


def _files(image: Path) -> dict[str, int]:
    etc = image / "etc"
    found = (each for each in etc.rglob("*") if each.is_file() and not each.is_symlink())
    return {str(each.relative_to(etc)): each.stat().st_mode & 0o7777 for each in sorted(found)}
