# SPDX-License-Identifier: Apache-2.0
"""`stc models` and docs/models.md say the same, from the tables that the package uses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import transformers

from stc_video.cli.app import run_app
from stc_video.models.families import MODEL_FAMILIES
from stc_video.towers.families import TOWER_FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_has_the_tables(capsys):
    assert run_app(["models", "--markdown"]) == 0
    tables = capsys.readouterr().out.strip()
    written = PAGE.read_text().split("<!-- tables -->")[1].split("<!-- end of tables -->")[0]
    assert written.strip() == tables, "write `stc models --markdown` between the marks of the page"


def test_every_family_is_listed(capsys):
    assert run_app(["models", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    names = [family["Whole model"] for family in made["whole_models"]]
    assert names == [family.name for family in MODEL_FAMILIES]
    assert [row["Support"] for row in made["towers"]] == [row.support for row in TOWER_FAMILIES]
    assert run_app(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(family.name in shown for family in (*MODEL_FAMILIES, *TOWER_FAMILIES))


@pytest.mark.parametrize("family", MODEL_FAMILIES, ids=lambda family: family.name)
def test_a_family_is_what_the_table_says(family):
    home, _, name = family.adapter.partition(":")
    assert hasattr(importlib.import_module(home), name)
    assert set(family.memories) <= {"plain", "rekv", "window"}
    newest = [kind for kind in family.classes.values() if hasattr(transformers, kind)]
    assert newest or family.name == "Qwen3.5"  # which came after transformers 5.0
