# SPDX-License-Identifier: Apache-2.0
"""The layout of the sources: short files and functions, and imports that go one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("python/**/*.py"), *ROOT.glob("stc_kernels/**/*.py")]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def too_long(name: str, text: str) -> Iterator[str]:
    """Names of a source that are too long; the docstring of a function does not count."""
    if len(text.splitlines()) > LONGEST_FILE:
        yield name
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body[ast.get_docstring(node) is not None :]
        lines = node.end_lineno - node.lineno + 1
        if len(body) < len(node.body):
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > LONGEST_FUNCTION:
            yield f"{name}:{node.name}"


def test_files_and_functions_are_short():
    found = set()
    for path in SOURCES:
        found |= set(too_long(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")))
    assert sorted(found) == []


@pytest.mark.parametrize(("statements", "is_long"), [(59, False), (60, True)])
def test_docstrings_do_not_count(statements, is_long):
    text = 'def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * statements
    assert list(too_long("a.py", text)) == (["a.py:f"] if is_long else [])


def test_only_packages_list_their_names():
    modules = [path for path in SOURCES if path.name != "__init__.py"]
    assert not [path for path in modules if "\n__all__" in path.read_text("utf-8")]


def test_imports_go_one_way(capsys):
    """The layers are written in pyproject.toml."""
    failed = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert not failed, capsys.readouterr().out
