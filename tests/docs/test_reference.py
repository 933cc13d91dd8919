"""The documentation says what the code says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from tests.tidy.sources import ROOT, committed

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
PROMISES = DOCS / "reference/promises.md"
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def generated() -> dict[Path, str]:
    pages: dict[Path, str] = generator().pages()
    return pages


PAGES = (
    "reference/settings.md", "reference/errors.md", "reference/events.md", "reference/api.md", "reference/cli.md",
    "reference/limits.md", "reference/agents.md", "reference/profiles.md", "reference/states.md",
    "concepts/states.md", "reference/proxmox-privileges.md", "howto/proxmox-troubleshooting.md",
)  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text() == generated()[DOCS / name], "run `make docs`"


def test_every_generated_page_is_checked() -> None:
    assert {DOCS / name for name in PAGES} == set(generated())


def test_every_promise_names_tests_that_exist_or_says_that_none_does() -> None:
    rows = [line for line in PROMISES.read_text().splitlines() if re.match(r"\| P\d+ ", line)]
    unproven = [row for row in rows if not TEST_ID.search(row) and "not yet" not in row.lower()]

    assert [row.split("|")[1].strip() for row in rows] == [f"P{number}" for number in range(1, 11)]
    assert unproven == []


def _named_tests() -> list[tuple[str, str]]:
    return TEST_ID.findall(PROMISES.read_text()) if PROMISES.exists() else []


@pytest.mark.parametrize(("file", "name"), _named_tests())
def test_the_test_that_proves_a_promise_exists(file: str, name: str) -> None:
    path, last = ROOT / file, name.rpartition("::")[2]

    assert path.is_file()
    assert re.search(rf"^\s*(async )?def {last}\(|^class {last}\b", path.read_text(), re.M)


def _snippets(language: str) -> list[tuple[str, str]]:
    found = []
    for path in committed():
        if path.suffix == ".md":
            for kind, text in BLOCK.findall(path.read_text()):
                if kind == language:
                    found.append((str(path.relative_to(ROOT)), text))
    return found


@pytest.mark.parametrize(("page", "text"), _snippets("python"))
def test_python_in_the_pages_compiles(page: str, text: str) -> None:
    compile(text, page, "exec")


@pytest.mark.parametrize("path", [each for each in committed() if each.suffix == ".sh"], ids=lambda each: each.name)
def test_shell_scripts_are_well_formed(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False).stderr == ""


def _commands() -> list[tuple[str, str]]:
    found = []
    for language in ("console", "sh", "bash"):
        for page, text in _snippets(language):
            lines = text.replace("\\\n", " ").splitlines()
            found += [
                (page, line.strip().removeprefix("$ ")) for line in lines if re.match(r"\s*(\$ )?agentlab ", line)
            ]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_in_the_pages_exist_with_their_options(page: str, line: str) -> None:
    import shlex

    import click

    from agentlab.cli.root import root

    words = shlex.split(line, comments=True)[1:]
    words = words[: next((at for at, word in enumerate(words) if word in ("|", ">", "&&", ";", "<")), len(words))]
    command: click.Command = root
    context = click.Context(root, info_name="agentlab")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: there is no `{words[0]}` in `{line}`"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    if "--" in words:
        words = words[: words.index("--")]
    assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in known] == []


@pytest.mark.parametrize(
    ("page", "kind"), [("howto/write-a-profile.md", "profile"), ("howto/write-a-recipe.md", "recipe")]
)
def test_yaml_in_the_pages_is_understood(page: str, kind: str) -> None:
    from agentlab.base.yaml import check_documents, read_documents
    from agentlab.services.profile_file import ProfileFile
    from agentlab.templates.recipe_file import RecipeFile

    snippets = [text for language, text in BLOCK.findall((DOCS / page).read_text()) if language == "yaml"]
    models = {"profile": ProfileFile, "recipe": RecipeFile}

    assert snippets
    for text in snippets:
        check_documents(read_documents(text.encode(), page), models[kind])


def test_settings_in_the_pages_about_a_cluster_are_understood(tmp_path: Path) -> None:
    from agentlab.daemon.settings import load_settings

    page = (DOCS / "howto/proxmox.md").read_text()
    [text] = [text for language, text in BLOCK.findall(page) if language == "yaml"]
    (tmp_path / "agentlabd.yaml").write_text(text)

    settings = load_settings(tmp_path / "agentlabd.yaml", {}, 0, tmp_path)

    assert settings.backends.proxmox.used
