"""Variables are called by the noun they hold: docs/glossary.md has the words."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILLERS = {"found", "given", "held", "known", "made", "told"}
"""Participles that say nothing of what a variable holds."""
EXCEPT = {
    "compiler/errors.py": {"found"},  # a part of every error, and so of the interface
    "compiler/ir/text/print.py": {"found"},  # passed on to it
    "compiler/runtime/kernels/device.py": {"found", "held"},  # Triton kernels
    "compiler/runtime/kernels/device_peers.py": {"found"},
}
FOLDERS = ("bench", "commplan", "compiler", "models", "passes", "scripts")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def bindings(function: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of parameters and local variables."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def fillers(text: str) -> set[tuple[int, str]]:
    """Line and name of variables of functions that are called by a filler."""
    functions = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    )
    return {(line, name) for f in functions for line, name in bindings(f) if name in FILLERS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_variables_are_called_by_a_noun(path: Path) -> None:
    allowed = EXCEPT.get(str(path.relative_to(ROOT)), set())
    assert [
        (line, name) for line, name in sorted(fillers(path.read_text())) if name not in allowed
    ] == []


def test_fillers_are_noticed() -> None:
    assert fillers("def f(given):\n    found = [held for held in given]\n    return found") == {
        (1, "given"), (2, "found"), (2, "held")
    }  # fmt: skip
    assert fillers("class A:\n    found: int") == set()
