"""Rules of the house that a syntax tree shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from tests.tidy.sources import Module, modules, under

LINES_MAX = 600
FUNCTION_LINES_MAX = 70

LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "agentlab.daemon.build.build_core": "composes; one keyword a line, no branch",
}

SQL = re.compile(
    r"\b(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|CREATE\s+TABLE|PRAGMA\s)\b", re.S
)

CHANGING = frozenset({"create", "arm", "start", "stop", "pause", "resume", "destroy", "launch"})
BACKEND = re.compile(r"(^|\.|_)backends?(\[.*\])?$")

# The fences, and what else catches everything without raising it again.
FENCES = {
    "agentlab.api.dispatch": "fence: a defect becomes a problem with a request id",
    "agentlab.cli.main": "fence: a defect becomes a message with a request to report it",
    "agentlab.network.namespace": "carries whatever happened over to the waiting task",
    "agentlab.secrets.seal": "pyrage raises its own DecryptError, which derives from Exception alone",
    "agentlab.services.reconcile.interpret": "fence of a sandbox's steps: a defect is the step's failure",
    "agentlab.services.reconcile.jobs": "fence of a job's steps: tried again a few times, then the job ends",
    "agentlab.services.reconcile.loop": "fence of a pass: whatever it meets, the next pass is made",
    "agentlab.store.database": "the failure is the caller's; where nobody waits, it is logged",
    "agentlab.store.writer": "carries whatever happened over to the waiting caller",
    "agentlab.testing.simloop": "a task's failure becomes the simulation's",
    "agentlab_guest.steps": "fence of a step's thread: a defect ends the job with a failure instead of hanging it",
}


def test_sql_stands_only_in_the_store() -> None:
    found = [
        f"{module.name}:{node.lineno}"
        for module in modules()
        if not under(module.name, ("agentlab.store",))
        for node in _texts(module)
        if SQL.search(str(node.value))
    ]

    assert found == []


def test_only_the_reconciler_changes_what_a_backend_holds() -> None:
    found = {
        module.name
        for module in modules()
        for node in module.walk()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CHANGING
        and BACKEND.search(ast.unparse(node.func.value))
    }

    outside = [name for name in found if not under(name, ("agentlab.services.reconcile", "agentlab.testing"))]

    assert outside == []
    assert "agentlab.services.reconcile.interpret" in found  # the pattern still sees them


def test_everything_is_caught_only_at_the_fences() -> None:
    caught = {
        module.name
        for module in modules()
        for node in module.walk()
        if isinstance(node, ast.ExceptHandler) and _broad(node) and not _raises_again(node)
    }

    assert caught == set(FENCES)


def test_cancellation_is_never_swallowed() -> None:
    swallowed = [
        f"{module.name}:{node.lineno}"
        for module in modules()
        for node in module.walk()
        if isinstance(node, ast.ExceptHandler)
        and node.type is not None
        and "CancelledError" in ast.unparse(node.type)
        and all(isinstance(each, ast.Pass) for each in node.body)
    ]

    assert swallowed == []


def test_no_object_relies_on_its_finalizer() -> None:
    assert [module.name for module in modules() for node in module.walk() if _named(node, "__del__")] == []


def test_every_module_says_what_it_is() -> None:
    silent = [each.name for each in modules() if each.path.name != "__init__.py" and not ast.get_docstring(each.tree)]

    assert silent == []


def test_every_public_name_says_what_its_signature_cannot() -> None:
    promised = {name for module in modules() for name, node in _methods(module) if ast.get_docstring(node)}

    silent = [f"{module.name}.{name}" for module in modules() for name, node in _public(module, promised) if node]

    assert silent == []


def test_a_module_is_one_idea() -> None:
    long = {module.name for module in modules() if module.text.count("\n") > LINES_MAX}

    assert long == set(LONG_MODULES)


def test_a_function_fits_a_screen() -> None:
    long = {
        f"{module.name}.{node.name}"
        for module in modules()
        for node in module.walk()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    }

    assert long == set(LONG_FUNCTIONS)


@pytest.mark.parametrize("word", ["Manager", "Helper", "Util", "Utils"])
def test_no_class_bears_a_word_that_says_nothing(word: str) -> None:
    named = [
        f"{module.name}.{node.name}"
        for module in modules()
        for node in module.walk()
        if isinstance(node, ast.ClassDef) and node.name.endswith(word)
    ]

    assert named == []


def _texts(module: Module) -> Iterator[ast.Constant]:
    documents = {
        id(node.body[0].value)
        for node in module.walk()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in module.walk():
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node


def _broad(node: ast.ExceptHandler) -> bool:
    names = "BaseException" if node.type is None else ast.unparse(node.type)
    return bool(re.search(r"\b(Base)?Exception\b", names))


def _raises_again(node: ast.ExceptHandler) -> bool:
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _named(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _methods(module: Module) -> Iterator[tuple[str, Function]]:
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((each.name, each) for each in node.body if isinstance(each, Function))


def _public(module: Module, promised: set[str]) -> Iterator[tuple[str, bool]]:
    """Public names, and whether each lacks a docstring.  A method may rely on the one that promises its name."""
    for node in module.tree.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield node.name, not ast.get_docstring(node)
        if not isinstance(node, ast.ClassDef):
            continue
        for each in node.body:
            if isinstance(each, Function) and not each.name.startswith(("_", "test_")) and not node.bases:
                yield f"{node.name}.{each.name}", not ast.get_docstring(each) and each.name not in promised
