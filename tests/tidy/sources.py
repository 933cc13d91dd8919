"""The sources as syntax trees, for the tests of this folder."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module of ours: `name` such as `agentlab.base.clock`, and its tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    def walk(self) -> Iterator[ast.AST]:
        """Every node."""
        return ast.walk(self.tree)


@cache
def modules() -> tuple[Module, ...]:
    """Every module of both packages, in the order of their names."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        text = path.read_text()
        found.append(Module(name=".".join(parts).removesuffix(".__init__"), path=path, text=text, tree=ast.parse(text)))
    return tuple(found)


@cache
def committed() -> tuple[Path, ...]:
    """Every file that git tracks; without git, every file below the root that is not hidden."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True
    )
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def imported(module: Module) -> Iterator[tuple[str, int]]:
    """The full dotted names that a module imports, with their lines: `import a.b`, and `a.b` of `from a import b`."""
    for node in module.walk():
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def under(name: str, roots: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `roots` or lies below one."""
    return any(name == root or name.startswith(root + ".") for root in roots)
