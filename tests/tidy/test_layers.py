"""The house: who may import whom.  The contracts stand in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tidy.sources import ROOT, modules

GUEST_MODULES = [module.name for module in modules() if module.name.split(".")[0] == "agentlab_guest"]


def test_imports_go_strictly_downward() -> None:
    # As a program: called from here, it would replace the logging of every test that follows.
    program = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_package_init_files_are_empty_except_the_top_ones() -> None:
    tops = {"agentlab", "agentlab_guest"}

    filled = [
        each.name for each in modules() if each.path.name == "__init__.py" and each.text and each.name not in tops
    ]

    assert filled == []


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {module.path.parent for module in modules()}

    assert [str(each) for each in sorted(folders) if not (each / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", GUEST_MODULES)
def test_the_guest_program_needs_only_the_standard_library(name: str) -> None:
    module = next(each for each in modules() if each.name == name)

    foreign = {
        root
        for node in module.walk()
        for root in _roots(node)
        if root not in sys.stdlib_module_names and root != "agentlab_guest"
    }

    assert foreign == set()


def _roots(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        return [node.module.split(".")[0]]
    return []
