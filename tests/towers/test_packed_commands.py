# SPDX-License-Identifier: Apache-2.0
"""The commands with a saved tower of packed rows alone: what they do, or one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from zoo import ENTRIES, PATCH

for _folder in ("video", "evaluation"):
    sys.path.append(str(Path(__file__).parents[1] / _folder))

# ruff: noqa: E402
from benchmark_files import ovo_choice, write_json
from clip_maker import write_clip

from stc_video.cli.app import run_app
from stc_video.cli.models import tower_rows
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.models.packed_vision import PackedEncoder
from stc_video.models.preprocess import processor_class
from stc_video.towers.families import TOWER_FAMILIES

if Version(transformers.__version__) < Version("4.57"):
    pytest.skip("towers of packed frames need transformers 4.57", allow_module_level=True)

#: in zoo.py, what makes the arguments of towers that have all pictures in one row
IN_A_ROW = ("make", "video_rows", "merged_rows", "whole_patches", "one_of_patches", "strip")
PACKED = {e.model: e for e in ENTRIES if e.arguments.__name__ in IN_A_ROW or e.model == "pixtral"}
#: takes rows, takes pictures, has windows; the others are for `make test-long`
QUICK = ("glm4v", "pixtral", "qwen2_5_vl")


def named(models: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=marks(name)) for name in models]


def marks(name: str) -> Sequence[pytest.MarkDecorator]:
    if name == "pixtral" and Version(transformers.__version__) < Version("5.24"):
        return [pytest.mark.skip("no places for a picture beyond the configuration's size")]
    return [] if name in QUICK else [pytest.mark.long]


#: one of each family, and those of QUICK
FAMILIES = {family.models[0] for family in TOWER_FAMILIES if family.in_rows} | set(QUICK)
#: image processors that need no torchvision -> model whose rows they make
PROCESSORS = {
    "Qwen2VLImageProcessor": "qwen2_5_vl",
    "Glm4vImageProcessor": "glm4v",
    "HunYuanVLImageProcessor": "hunyuan_vl",
    "PaddleOCRVLImageProcessor": "paddleocr_vl",
    "Ernie4_5_VLMoeImageProcessor": "ernie4_5_vl_moe",
    "VideoLlama3ImageProcessor": "video_llama_3",
    "CohereCompassImageProcessor": "cohere_compass",
    "Cosmos3EdgeImageProcessor": "cosmos3_edge",
    "PixtralImageProcessor": "pixtral",
}
#: a picture of 20 x 36 merge blocks, which no processor has to resize
HEIGHT, WIDTH = 560, 1008


@pytest.fixture(scope="module", params=named(PACKED))
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    PACKED[request.param].build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("videos") / "clip.mp4", 4)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def load(folder: Path) -> LoadedModel:
    loaded = load_model(folder)
    assert isinstance(loaded.vision, PackedEncoder)
    return loaded


def test_rows_are_where_they_are_in_the_picture(saved: Path) -> None:
    """What changes most behind a patch that changed is its row, and its merged token."""
    loaded, before = load(saved), noise(HEIGHT, WIDTH)
    after = before.copy()
    corner = slice(8 * PATCH, 10 * PATCH), slice(30 * PATCH, 32 * PATCH)
    after[corner] = 255 - after[corner]
    found = []
    with torch.inference_mode():
        for picture in (before, after):
            inputs = loaded.pixels([picture])
            tokens = loaded.encode(inputs)
            found.append(
                (loaded.in_raster(tokens[0].norm(dim=-1)), tokens, loaded.features(tokens))
            )
    assert np.abs(np.asarray(loaded.display(inputs)[0], int) - after).max() <= 1
    rows, columns = loaded.grid
    marks = torch.zeros(rows, columns)
    marks[8:10, 30:32] = 1.0
    changed = loaded.in_raster((found[1][1] - found[0][1])[0].norm(dim=-1))
    assert set(changed.topk(4).indices.tolist()) == set(marks.flatten().nonzero()[:, 0].tolist())
    merged = (found[1][2] - found[0][2])[0].norm(dim=-1)
    height, width = loaded.feature_grid
    assert height * width == len(merged)
    most = int(merged.argmax())
    assert (most // width * rows // height // 2, most % width * columns // width // 2) == (4, 15)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_picture_is_prepared_as_by_its_own_processor(name: str, tmp_path: Path) -> None:
    try:
        make = processor_class(name)
    except AttributeError:
        pytest.skip(f"transformers {transformers.__version__} has no such {name}")
    own = make(patch_size=PATCH)
    PACKED[PROCESSORS[name]].build().save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    loaded, picture = load(tmp_path), noise(HEIGHT, WIDTH)
    expected = own(images=[picture], return_tensors="pt", input_data_format="channels_last")
    given = loaded.vision.arguments(loaded.pixels([picture])["pixel_values"])
    rows = expected.pop("pixel_values")
    ours = next(value for value in given.values() if value.is_floating_point())
    torch.testing.assert_close(ours.view_as(rows), rows, rtol=1e-4, atol=1e-4)
    if "image_grid_thw" in expected:
        assert given["grid_thw"].tolist() == expected["image_grid_thw"].tolist()


@pytest.mark.parametrize("saved", named(sorted(FAMILIES)), indirect=True)
def test_commands_that_look_at_frames(saved: Path, clip, tmp_path) -> None:
    given = (clip, "--model", saved, "--max-frames", 3)
    for words in (
        ("run", *given, "--tokens-per-frame", 2, "--out", tmp_path / "r"),
        ("fidelity", *given, "--policies", "stc", "--no-times", "--out", tmp_path / "f"),
        ("calibrate", *given, "--out", tmp_path / "c.json"),
        ("prune-study", *given, "--methods", "stc", "--budgets", 10, "--out", tmp_path / "p"),
    ):
        assert run_app([str(word) for word in (*words, "--threads", 1)]) == 0, words


@pytest.mark.parametrize("saved", named(QUICK[:1]), indirect=True)
def test_commands_that_ask_say_what_they_need(saved: Path, clip, tmp_path, capsys) -> None:
    given = (clip, "--model", saved, "--max-frames", 3)
    data = write_json(tmp_path / "data.json", [ovo_choice(0, video=clip.name)])
    for words in (
        ("run", *given, "--ask", "what?", "--out", tmp_path / "a"),
        ("chat", clip, "--model", saved),
        ("serve", "--model", saved),
        ("eval", "ovo-bench", "--data", data, "--videos", clip.parent, "--model", saved),
    ):
        assert run_app([str(word) for word in words]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "questions need a whole model" in said, words


def test_the_table_names_their_commands() -> None:
    of = {model: row[3] for row in tower_rows() for model in row[1].split(", ")}
    assert {model: of[model] for model in PACKED if "run" not in of[model]} == {}
