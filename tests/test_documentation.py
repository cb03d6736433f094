# SPDX-License-Identifier: Apache-2.0
"""What the documents show must run."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


BLOCKS = [
    (f"{name}, example {number}", block)
    for name in ("README.md", "docs/pruners.md")  # the others show parts
    for number, block in enumerate(blocks_of(ROOT / name))
]


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_examples_run(name, block):
    exec(compile(block, name, "exec"), {})


def test_there_are_examples():
    assert len(BLOCKS) >= 3


def test_what_the_examples_import_is_there_under_its_newest_name():
    imports = [
        ast.unparse(line)
        for document in DOCUMENTS
        for block in blocks_of(document)
        for line in ast.walk(ast.parse(textwrap.dedent(block)))
        if isinstance(line, ast.Import | ast.ImportFrom) and "stc_" in ast.unparse(line)
    ]
    assert len(imports) > len(BLOCKS)
    program = "import warnings, stc_video\nwarnings.simplefilter('error', DeprecationWarning)\n"
    lines = program + "\n".join(dict.fromkeys(imports))
    run = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_page_is_named_by_a_link():
    for document in (ROOT / "docs").glob("*.md"):
        bare = re.findall(r"(?<![\w/(])docs/\w+\.md", document.read_text())
        assert not bare, f"{document.name} names {bare}, which is no link on the site"


@pytest.mark.parametrize(
    "name",
    [
        "stc_kernels.ops.select_changed",
        "stc_video.cacher.attach",
        "stc_video.pruners",
        "stc_video.pruners.attention_capture",
        "stc_video.pruners.tower_merging",
    ],
)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_documents_name_files_that_exist():
    for document in DOCUMENTS:
        for path in re.findall(r"`((?:csrc|stc_kernels|python|benchmarks|tests|docs)/[\w./-]*)`",
                               document.read_text()):  # fmt: skip
            assert (ROOT / path).exists(), f"{document.name} names {path}"
