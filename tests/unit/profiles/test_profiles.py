"""Profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.base.shipped import shipped
from agentlab.errors import HostMountRefused, NotFound, SettingsInvalid
from agentlab.model.network import NetworkMode
from agentlab.services.profiles import Profiles, yaml_files

SHIPPED = ("interactive-dev", "yolo-ephemeral", "yolo-workspace")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def profiles(folder: Path) -> Profiles:
    loaded = Profiles([folder])
    loaded.load()
    return loaded


def test_the_shipped_profiles_are_three_and_load(profiles: Profiles) -> None:
    assert tuple(each.name for each in profiles.list()) == SHIPPED


def test_the_default_profile_is_root_on_nat_and_keeps_nothing(profiles: Profiles) -> None:
    found = profiles.get("yolo-ephemeral")

    assert (found.user, found.network, found.keepalive) == ("root", NetworkMode.NAT, False)
    assert (found.template, found.agent, found.ttl_s) == ("base", "shell", 4 * 3600)


def test_the_workspace_profile_keeps_its_sandbox_longer(profiles: Profiles) -> None:
    found = profiles.get("yolo-workspace")

    assert found.keepalive
    assert found.ttl_s > profiles.get("yolo-ephemeral").ttl_s


def test_the_interactive_profile_is_for_the_user_agent(profiles: Profiles) -> None:
    found = profiles.get("interactive-dev")

    assert (found.user, found.keepalive, found.ttl_s) == ("agent", True, 7 * 86400)


@pytest.mark.parametrize("file", yaml_files(shipped("profiles")), ids=lambda file: file.name)
def test_each_shipped_file_is_valid_by_itself(profiles: Profiles, file: Path) -> None:
    assert profiles.validate(file.read_bytes(), file.name)


def test_an_unknown_name_suggests_the_nearest(profiles: Profiles) -> None:
    with pytest.raises(NotFound, match="Did you mean 'yolo-ephemeral'"):
        profiles.get("yolo-ephemera")


def test_several_documents_of_one_file_are_several_profiles(folder: Path, profiles: Profiles) -> None:
    (folder / "mine.yaml").write_text("name: one\n---\nname: two\nnetwork: {mode: off}\n---\nname: three\n")

    assert profiles.reload() is None

    assert {"one", "two", "three"} <= {each.name for each in profiles.list()}
    assert profiles.get("two").network is NetworkMode.OFF
    assert profiles.get("three").source.endswith("mine.yaml:6")


def test_a_users_profile_overrides_a_shipped_one(folder: Path, profiles: Profiles) -> None:
    (folder / "mine.yml").write_text("name: yolo-ephemeral\ndescription: mine\n")

    profiles.load()

    assert profiles.get("yolo-ephemeral").description == "mine"


def test_two_profiles_of_one_name_in_a_folder_are_refused(folder: Path, profiles: Profiles) -> None:
    (folder / "a.yaml").write_text("name: twin\n")
    (folder / "b.yaml").write_text("\nname: twin\n")

    with pytest.raises(
        SettingsInvalid, match=r"b\.yaml:2:1: a second profile named 'twin'; the first is at .*a\.yaml:1"
    ):
        profiles.load()


def test_a_reload_that_fails_keeps_the_old_set_and_says_why(folder: Path, profiles: Profiles) -> None:
    (folder / "bad.yaml").write_text("name: bad\nagnt: shell\n")

    error = profiles.reload()

    assert error is not None
    assert "Did you mean 'agent'" in str(error)
    assert tuple(each.name for each in profiles.list()) == SHIPPED


def test_problems_of_all_files_are_told_at_once(folder: Path, profiles: Profiles) -> None:
    (folder / "a.yaml").write_text("agnt: shell\n")
    (folder / "b.yaml").write_text("name: [\n")

    error = profiles.reload()

    assert {"a.yaml", "b.yaml"} == {line.split("/")[-1].split(":")[0] for line in str(error).splitlines()}


@pytest.mark.parametrize(
    "text",
    [
        "name: x\nmounts: [/home/me]\n",
        "name: x\nvolumes: {/home/me: /mnt}\n",
        "name: x\nhost_mounts:\n  - source: /home/me\n",
        "name: x\nresources: {volumes: [/home/me]}\n",
        "name: x\nvolume: /home/me\nunknown: 1\n",
    ],
)
def test_a_host_mount_is_refused_with_the_reason(profiles: Profiles, text: str) -> None:
    with pytest.raises(HostMountRefused) as caught:
        profiles.validate(text.encode(), "x.yaml")

    assert "x.yaml:" in str(caught.value)
    assert "hole in the wall" in caught.value.advice


def test_an_environment_variable_may_be_called_volumes(profiles: Profiles) -> None:
    [found] = profiles.validate(b"name: x\nenv: {VOLUMES: /a}\n", "x.yaml")

    assert found.env == (("VOLUMES", "/a"),)


def test_every_group_reaches_the_profile(profiles: Profiles) -> None:
    text = (
        b"name: full\ndescription: all\ntemplate: agents\nbackend: oci\nagent: claude\nuser: agent\n"
        b"resources: {memory: 1GiB, cpus: 0.5, pids: 64, disk: 2GiB}\nnetwork: {mode: off}\nlease: {ttl: 90m}\n"
        b"job: {timeout: 30m, keepalive: true}\nenv: {A: '1'}\n"
        b"artifacts: {globs: ['dist/*'], file_max: 1MiB, total_max: 2MiB}\nnested_sandboxes: true\n"
    )

    [found] = profiles.validate(text, "full.yaml")

    assert (found.template, found.backend, found.agent, found.user) == ("agents", "oci", "claude", "agent")
    assert (found.resources.memory_bytes, found.resources.cpus) == (1 << 30, 0.5)
    assert (found.resources.pids_max, found.resources.disk_bytes) == (64, 2 << 30)
    assert (found.ttl_s, found.timeout_s, found.keepalive, found.nested_sandboxes) == (5400, 1800, True, True)
    assert (found.artifacts.globs, found.artifacts.file_bytes_max) == (("dist/*",), 1 << 20)
