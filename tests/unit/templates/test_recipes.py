"""Recipes and their steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.base.shipped import shipped
from agentlab.errors import SettingsInvalid
from agentlab.model.agents import AGENTS
from agentlab.services.profiles import Profiles
from agentlab.templates.recipe import Recipe
from agentlab.templates.rootfs import script_of
from agentlab.templates.shelf import Shelf

SHIPPED = shipped("templates")


def recipe(tmp_path: Path, text: str, name: str = "mine") -> Recipe:
    (tmp_path / "mine.yaml").write_text(text)
    return Shelf([tmp_path]).recipes()[name]


def problems(tmp_path: Path, text: str) -> str:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        Shelf([tmp_path]).recipes()
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_the_shipped_recipes_load() -> None:
    assert set(Shelf([]).recipes()) == {"base", "node", "agents", "cloud"}


def test_the_agents_template_has_exactly_the_pinned_agents() -> None:
    steps = {step.name: step for step in Shelf([]).recipes()["agents"].steps}

    assert set(steps["agents/npm"].npm) == {agent.npm for agent in AGENTS.values() if agent.npm}


def test_every_agent_and_every_shipped_profile_names_a_shipped_template() -> None:
    profiles = Profiles([])
    profiles.load()

    named = {agent.template for agent in AGENTS.values()} | {profile.template for profile in profiles.list()}

    assert named <= set(Shelf([]).recipes())


def test_steps_come_in_one_order_with_the_parents_first_and_the_seal_last(tmp_path: Path) -> None:
    found = recipe(
        tmp_path,
        "name: parent\npackages: [python3-pip]\ncommands: ['true']\n---\nname: mine\nextends: parent\n"
        "commands: [{name: hello, run: echo}]\nfiles: [{path: /etc/x, content: y}]\nnpm: ['a@1.0.0']\npip: ['b==1']\n",
    )

    assert [step.name for step in found.steps] == [
        "parent/base",
        "parent/packages",
        "parent/command 1",
        "mine/pip",
        "mine/npm",
        "mine/files",
        "mine/hello",
        "mine/seal",
    ]


def test_the_description_does_not_change_the_digest_and_a_package_does(tmp_path: Path) -> None:
    before = recipe(tmp_path, "name: mine\npackages: [jq, curl]\n").digest
    described = recipe(tmp_path, "name: mine\ndescription: hello\npackages: [curl, jq]\n").digest
    changed = recipe(tmp_path, "name: mine\npackages: [jq]\n").digest

    assert before == described
    assert before != changed


def test_a_change_to_the_parent_changes_the_child(tmp_path: Path) -> None:
    child = "---\nname: mine\nextends: parent\n"

    one = recipe(tmp_path, f"name: parent\npackages: [jq]\n{child}").digest
    two = recipe(tmp_path, f"name: parent\npackages: [curl]\n{child}").digest

    assert one != two


def test_layers_below_a_change_keep_their_addresses(tmp_path: Path) -> None:
    one = recipe(tmp_path, "name: mine\npackages: [jq]\ncommands: ['echo 1']\n").digests("x86_64")
    two = recipe(tmp_path, "name: mine\npackages: [jq]\ncommands: ['echo 2']\n").digests("x86_64")

    assert one[:2] == two[:2]
    assert not set(one[2:]) & set(two[2:])


def test_another_processor_and_a_refresh_have_layers_of_their_own(tmp_path: Path) -> None:
    found = recipe(tmp_path, "name: mine\n")

    assert not set(found.digests("x86_64")) & set(found.digests("aarch64"))
    assert not set(found.digests("x86_64")) & set(found.digests("x86_64", "1700000000"))


def test_templates_of_equal_content_are_still_two(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: one\n---\nname: two\n")
    found = Shelf([tmp_path]).recipes()

    assert found["one"].digest != found["two"].digest
    assert found["one"].digests("m")[0] == found["two"].digests("m")[0]


def test_an_unknown_parent_suggests_the_nearest(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: mine\nextends: bsae\n") == (
        "mine.yaml:1:1: extends: there is no template 'bsae'. Did you mean 'base'?"
    )


def test_a_circle_of_parents_is_named(tmp_path: Path) -> None:
    found = problems(tmp_path, "name: a\nextends: b\n---\nname: b\nextends: a\n")

    assert "extends: a → b → a is a circle" in found


def test_a_users_recipe_overrides_a_shipped_one_and_its_children(tmp_path: Path) -> None:
    before = Shelf([]).recipes()["agents"].digest

    (tmp_path / "base.yaml").write_text("name: base\npackages: [python3-pip, git]\n")

    assert Shelf([tmp_path]).recipes()["agents"].digest != before


def test_a_recipe_that_changes_on_disk_is_read_anew(tmp_path: Path) -> None:
    shelf = Shelf([tmp_path])
    assert "mine" not in shelf.recipes()

    (tmp_path / "mine.yaml").write_text("name: mine\n")

    assert "mine" in shelf.recipes()


def test_two_recipes_of_one_name_in_a_folder_are_refused(tmp_path: Path) -> None:
    assert "a second recipe named 'mine'" in problems(tmp_path, "name: mine\n---\nname: mine\n")


def test_names_and_paths_are_quoted_for_the_shell(tmp_path: Path) -> None:
    found = recipe(tmp_path, 'name: mine\nfiles: [{path: "/etc/a b\'; rm -rf $HOME", content: x, mode: 0755}]\n')

    assert script_of(found.steps[1]) == (
        "install -D -o root -g root -m 0755 -- /run/agentlab-build/files/0 '/etc/a b'\"'\"'; rm -rf $HOME'"
    )


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.name)
def test_no_shipped_recipe_names_a_host(file: Path) -> None:
    assert "://" not in file.read_text()
