"""The daemon's settings."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from agentlab.base.places import places
from agentlab.daemon.reference import setting_rows
from agentlab.daemon.settings import Settings, load_settings
from agentlab.errors import SettingsInvalid


def load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "agentlabd.yaml"
    file.write_text(text)
    return load_settings(file, {}, 0)


def problems(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsInvalid) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_root_without_a_file_gets_the_systems_directories(tmp_path: Path) -> None:
    found = places({}, 0)

    assert (found.config, found.state) == (Path("/etc/agentlab"), Path("/var/lib/agentlab"))
    assert found.socket == Path("/run/agentlab/agentlabd.sock")


def test_a_user_gets_the_xdg_directories_and_relative_ones_are_ignored() -> None:
    found = places({"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_CONFIG_HOME": "relative"}, 7)

    assert found.config == Path("/home/u/.config/agentlab")
    assert found.state == Path("/home/u/.local/state/agentlab")
    assert found.run == Path("/run/user/7/agentlab")


def test_a_user_without_a_runtime_directory_gets_one_in_the_state_directory() -> None:
    assert places({"HOME": "/home/u"}, 7).run == Path("/home/u/.local/state/agentlab/run")


def test_a_user_without_a_home_is_told_what_to_give() -> None:
    with pytest.raises(SettingsInvalid, match="--dir"):
        load_settings(None, {}, 7)


def test_one_directory_holds_everything(tmp_path: Path) -> None:
    by_flag = load_settings(None, {}, 0, tmp_path)
    by_variable = load_settings(None, {"AGENTLAB_DIR": str(tmp_path)}, 0)

    assert by_flag == by_variable
    assert (by_flag.state_dir, by_flag.run_dir) == (tmp_path / "state", tmp_path / "run")
    assert by_flag.socket == tmp_path / "run" / "agentlabd.sock"
    assert by_flag.profile_dirs == (tmp_path / "config" / "profiles",)
    assert by_flag.source == "defaults"


def test_the_file_in_the_config_directory_is_read_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "agentlabd.yaml").write_text("limits: {jobs_running_max: 9}\n")

    found = load_settings(None, {}, 0, tmp_path)

    assert (found.limits.jobs_running_max, found.source) == (9, str(tmp_path / "config" / "agentlabd.yaml"))


def test_the_defaults_are_those_that_are_promised() -> None:
    found = load_settings(None, {}, 0)

    assert found.limits.jobs_running_max == 4
    assert found.limits.disk_reserve_bytes == 1 << 30
    assert (found.durations.reconcile_interval_s, found.durations.link_lost_s) == (5, 30)
    assert found.durations.harvest_s_max == 900
    assert (found.default_backend, found.network.subnet, found.log.format) == ("oci", None, "auto")


def test_sizes_and_durations_are_written_as_people_write_them(tmp_path: Path) -> None:
    found = load(tmp_path, "limits: {disk_reserve_bytes: 2GiB}\ndurations: {harvest_s_max: 15m}\n")

    assert (found.limits.disk_reserve_bytes, found.durations.harvest_s_max) == (2 << 30, 900)


def test_other_directories_move_what_lies_in_them(tmp_path: Path) -> None:
    found = load(tmp_path, "config_dir: /srv/conf\nrun_dir: /srv/run\n")

    assert found.socket == Path("/srv/run/agentlabd.sock")
    assert found.profile_dirs == (Path("/srv/conf/profiles"),)


def test_a_private_subnet_is_taken_and_a_public_one_refused(tmp_path: Path) -> None:
    assert load(tmp_path, "network: {subnet: 10.9.0.0/20}\n").network.subnet == IPv4Network("10.9.0.0/20")
    assert "not in a private range" in problems(tmp_path, "network: {subnet: 8.8.8.0/24}\n")
    assert "has host bits set" in problems(tmp_path, "network: {subnet: 10.9.0.1/20}\n")


def test_a_socket_path_beyond_the_systems_limit_is_refused_with_a_remedy(tmp_path: Path) -> None:
    found = problems(tmp_path, f"log: {{}}\nsocket: /{'x' * 120}\n")

    assert found.startswith("agentlabd.yaml:2:9: the socket path /x")
    assert "--dir" in found


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"nowhere\.yaml: there is no such file"):
        load_settings(tmp_path / "nowhere.yaml", {}, 0)


def test_a_second_document_is_refused(tmp_path: Path) -> None:
    assert "a second document" in problems(tmp_path, "log: {}\n---\nlog: {}\n")


def test_settings_that_are_not_a_mapping_are_refused(tmp_path: Path) -> None:
    assert (
        problems(tmp_path, "- a\n") == "agentlabd.yaml:1:1: this document: expected a mapping (key: value), not a list"
    )


def test_every_setting_has_a_description_and_a_kind() -> None:
    rows = list(setting_rows())

    assert len(rows) > 25
    assert all(row.description.endswith((".", "`")) for row in rows)
    assert len({row.name for row in rows}) == len(rows)
