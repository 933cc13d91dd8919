"""What a template is made of, step by step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentlab.base.text import did_you_mean
from agentlab.base.yaml import Located, Place, Problem, refuse
from agentlab.model.ids import Digest
from agentlab.templates.recipe_file import RecipeFile

# Part of every digest: raise it when the same recipe would come out differently, so that layers are built anew.
BUILDER_VERSION = 1
EXTENDS_DEPTH_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The first layer.  `mirror` None: the machine's own apt sources, because a recipe must not name a host."""

    suite: str = "bookworm"
    variant: str = "minbase"
    mirror: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFileEntry:
    """One file that a recipe puts into the template, owned by root."""

    path: str
    content: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One layer: exactly one of the fields beside `name` and `env` is filled."""

    name: str  # such as base/packages: the recipe and what it does
    base: Base | None = None
    packages: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    files: tuple[RecipeFileEntry, ...] = ()
    command: str | None = None
    seal: str = ""  # the recipe's name: templates of equal content are still two
    env: tuple[tuple[str, str], ...] = ()

    def content(self) -> str:
        """What decides the outcome, as canonical JSON; the step's name does not."""
        parts = {
            "base": None if self.base is None else [self.base.suite, self.base.variant, self.base.mirror],
            "packages": sorted(self.packages),
            "pip": sorted(self.pip),
            "npm": sorted(self.npm),
            "files": [[each.path, each.content, each.mode] for each in self.files],
            "command": self.command,
            "seal": self.seal,
            "env": sorted(self.env),
        }
        return json.dumps({key: value for key, value in parts.items() if value}, sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe with what it extends already in its steps, first to last; the last step seals."""

    name: str
    description: str
    steps: tuple[Step, ...]
    source: str  # file:line

    @property
    def digest(self) -> Digest:
        """Of the name, the steps and the builder's version; the description does not count."""
        return self.digests(machine="")[-1]

    def digests(self, machine: str, salt: str = "") -> tuple[Digest, ...]:
        """The address of each step's layer: a digest of that step and all before it.

        `machine` is the processor's architecture; `salt` tells a refreshed build from an earlier one.
        """
        return continued(f"agentlab-template-{BUILDER_VERSION}\n{machine}\n{salt}", self.steps)


def continued(before: str, steps: Sequence[Step]) -> tuple[Digest, ...]:
    """The addresses of the layers that `steps` make upon what `before` addresses."""
    found: list[Digest] = []
    for step in steps:
        before = hashlib.sha256(f"{before}\n{step.content()}".encode()).hexdigest()
        found.append(Digest(before))
    return tuple(found)


def resolve(documents: Sequence[Located[RecipeFile]]) -> Mapping[str, Recipe]:
    """Recipes by name, each with its parents' steps before its own; a later document of a name overrides.

    Raises SettingsInvalid for an unknown or circular `extends`, and for a `base` beside `extends`.
    """
    by_name = {document.value.name: document for document in documents}
    problems: list[Problem] = []
    recipes: dict[str, Recipe] = {}
    for name, document in by_name.items():
        if (line := _ancestry(document, by_name, problems)) is None:
            continue
        steps = [step for each in line for step in _own_steps(each.value)]
        env = tuple(pair for each in line for pair in each.value.env.items())
        seal = Step(name=f"{name}/seal", seal=name, env=tuple(sorted(dict(env).items())))
        file = document.value
        recipes[name] = Recipe(name=name, description=file.description, steps=(*steps, seal), source=document.place)
    refuse(problems)
    return recipes


def _ancestry(
    document: Located[RecipeFile], by_name: Mapping[str, Located[RecipeFile]], problems: list[Problem]
) -> list[Located[RecipeFile]] | None:
    """The recipe and what it extends, the root first; None and a problem if that does not end well."""
    line = [document]
    place = Place(source=document.source, line=document.line, column=1)
    while (parent := line[0].value.extends) is not None:
        if parent not in by_name:
            message = f"extends: there is no template {parent!r}.{did_you_mean(parent, by_name)}"
        elif by_name[parent] in line:
            message = f"extends: {' → '.join(each.value.name for each in reversed(line))} → {parent} is a circle"
        elif len(line) >= EXTENDS_DEPTH_MAX:
            message = f"extends: more than EXTENDS_DEPTH_MAX = {EXTENDS_DEPTH_MAX} templates upon each other"
        else:
            line.insert(0, by_name[parent])
            continue
        problems.append(Problem(place=place, message=message))
        return None
    return line


def _own_steps(file: RecipeFile) -> list[Step]:
    env = tuple(sorted(file.env.items()))
    steps: list[Step] = []
    if file.extends is None:
        base = file.base
        mirror = None if base is None else base.mirror
        suite, variant = ("bookworm", "minbase") if base is None else (base.suite, base.variant)
        steps.append(Step(name=f"{file.name}/base", base=Base(suite=suite, variant=variant, mirror=mirror)))
    if file.packages:
        steps.append(Step(name=f"{file.name}/packages", packages=file.packages))
    if file.pip:
        steps.append(Step(name=f"{file.name}/pip", pip=file.pip))
    if file.npm:
        steps.append(Step(name=f"{file.name}/npm", npm=file.npm))
    if file.files:
        entries = tuple(
            RecipeFileEntry(path=each.path, content=each.content, mode=int(each.mode, 8)) for each in file.files
        )
        steps.append(Step(name=f"{file.name}/files", files=entries))
    for number, command in enumerate(file.commands, start=1):
        title = command.name or f"command {number}"
        steps.append(Step(name=f"{file.name}/{title}", command=command.run, env=env))
    return steps
