"""The recipes that lie in folders, read anew when a file has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agentlab.base.shipped import shipped
from agentlab.base.yaml import Located, Place, Problem, load_documents, refuse
from agentlab.errors import PermissionMissing, SettingsInvalid
from agentlab.templates.recipe import Recipe, resolve
from agentlab.templates.recipe_file import RecipeFile


class Shelf:
    """Recipes of the shipped folder and of others; among those of one name the one from the later folder counts."""

    def __init__(self, folders: Sequence[Path], *, shipped_folder: Path | None = None) -> None:
        """`folders` need not exist."""
        self._folders = (shipped_folder or shipped("templates"), *folders)
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._recipes: Mapping[str, Recipe] = {}

    def recipes(self) -> Mapping[str, Recipe]:
        """All recipes by name.  Raises SettingsInvalid with every problem of every file, or PermissionMissing."""
        files = [file for folder in self._folders for file in recipe_files(folder)]
        seen = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
        if seen != self._seen:
            self._recipes = read_folders(self._folders)
            self._seen = seen
        return self._recipes


def recipe_files(folder: Path) -> list[Path]:
    """The `*.yaml` and `*.yml` files in a folder, by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.suffix in (".yaml", ".yml") and each.is_file())


def read_folders(folders: Sequence[Path]) -> Mapping[str, Recipe]:
    """The recipes of all folders, with what they extend resolved across them."""
    documents: list[Located[RecipeFile]] = []
    problems: list[str] = []
    for folder in folders:
        here: list[Located[RecipeFile]] = []
        for file in recipe_files(folder):
            try:
                here += load_documents(_read(file), str(file), RecipeFile)
            except SettingsInvalid as error:
                problems.append(str(error))
        try:
            refuse(_doubles(here))
        except SettingsInvalid as error:
            problems.append(str(error))
        documents += here
    if problems:
        raise SettingsInvalid(problems="\n".join(problems))
    return resolve(documents)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PermissionMissing(
            path=file, cause=error.strerror or str(error), what_to_do=f"Make {file} readable for the daemon's user."
        ) from error


def _doubles(documents: Sequence[Located[RecipeFile]]) -> list[Problem]:
    first: dict[str, str] = {}
    problems = []
    for each in documents:
        if (name := each.value.name) in first:
            place = Place(source=each.source, line=each.line, column=1)
            problems.append(
                Problem(place=place, message=f"a second recipe named {name!r}; the first is at {first[name]}")
            )
        first.setdefault(name, each.place)
    return problems
