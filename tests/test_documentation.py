# SPDX-License-Identifier: Apache-2.0
"""What the documents show must run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    (f"{name}, example {number}", block)
    for name in ("README.md", "docs/pruners.md")  # the others show parts
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    )
]


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_examples_run(name, block):
    exec(compile(block, name, "exec"), {})


def test_there_are_examples():
    assert len(BLOCKS) >= 3


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
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for path in re.findall(r"`((?:csrc|stc_kernels|python|benchmarks|tests|docs)/[\w./-]*)`",
                               document.read_text()):  # fmt: skip
            assert (ROOT / path).exists(), f"{document.name} names {path}"
