"""What people read when a file is wrong, word for word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentlab.base.yaml import load_documents
from agentlab.daemon.settings import load_settings
from agentlab.errors import SettingsInvalid
from agentlab.services.profiles import parse_profiles
from agentlab.templates.recipe_file import RecipeFile

GOLDEN = Path(__file__).parents[2] / "golden" / "yaml"


def profile(file: Path) -> object:
    return parse_profiles(file.read_bytes(), file.name)


def recipe(file: Path) -> object:
    return load_documents(file.read_bytes(), file.name, RecipeFile)


def settings(file: Path) -> object:
    return load_settings(file, {}, 0)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("profile-wrong", profile),
        ("profile-values", profile),
        ("settings-values", settings),
        ("recipe-values", recipe),
        ("not-yaml", profile),
        ("exotic", profile),
    ],
)
def test_the_messages_for_a_wrong_file_are_those_that_were_reviewed(name: str, load: Callable[[Path], object]) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load(GOLDEN / f"{name}.yaml")

    said = str(caught.value).replace(f"{GOLDEN}/", "") + "\n"
    assert said == (GOLDEN / f"{name}.txt").read_text()
