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


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "qwen2_5_vl"])
def test_a_name_chooses_families(name: str, capsys):
    assert run_app(["models", name]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Qwen2.5-VL") >= 1
    assert len(shown.splitlines()) < 30
    assert "SigLIP" not in shown


def test_the_folder_of_a_model_chooses_its_families(tmp_path: Path, capsys):
    parts = {
        "model_type": "llava_onevision",
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(parts))
    assert run_app(["models", str(tmp_path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [row["Whole model"] for row in made["whole_models"]] == ["LLaVA-OneVision"]
    assert len(made["towers"]) == 1
    assert "siglip" in made["towers"][0]["In transformers"]


def test_a_name_that_no_family_has_is_refused(capsys):
    assert run_app(["models", "nothing"]) == 2
    assert "no family has 'nothing' in its name" in capsys.readouterr().err


@pytest.mark.parametrize("family", MODEL_FAMILIES, ids=lambda family: family.name)
def test_a_family_is_what_the_table_says(family):
    home, _, name = family.adapter.partition(":")
    assert hasattr(importlib.import_module(home), name)
    assert set(family.memories) <= {"plain", "rekv", "window"}
    newest = [kind for kind in family.classes.values() if hasattr(transformers, kind)]
    assert newest or family.name == "Qwen3.5"  # which came after transformers 5.0
