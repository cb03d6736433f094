# SPDX-License-Identifier: Apache-2.0
"""Qwen's towers in the commands that look at frames one by one, loaded with their whole models."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_qwen_vl
import tiny_video_llms
import torch
from test_video_llm_sessions import writer_of

sys.path.append(str(Path(__file__).parents[1] / "video"))

from clip_maker import write_clip

from stc_video import StreamingSession, make_pruner
from stc_video.calibration import Calibration
from stc_video.cli.app import run_app
from stc_video.cli.questions import Interview, Question
from stc_video.loading.video_llm import load_chat_model
from stc_video.loading.vision import load_model
from stc_video.memory.config import RekvConfig
from stc_video.models.preprocess import processor_class
from stc_video.models.qwen_prompt import token_rows
from stc_video.pruners.base import with_rows

NAMES = [
    *tiny_qwen_vl.NAMES,
    *(name for name in tiny_video_llms.model_names() if name in tiny_video_llms.QWEN),
]
#: a picture of 18 x 36 patches of 14 pixels, and rows and columns of those that change
HEIGHT, WIDTH, PATCH = 252, 504, 14
CHANGED = (slice(12, 18), slice(0, 5))


def make_model(name: str):
    home = tiny_qwen_vl if name in tiny_qwen_vl.NAMES else tiny_video_llms
    return home.make_model(name)


def writer(name: str):
    known = name in tiny_qwen_vl.NAMES
    return tiny_qwen_vl.make_tokenizer(tiny_qwen_vl.CHAT) if known else writer_of(name)


@pytest.fixture(scope="module", params=NAMES)
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param).save_pretrained(folder)
    return request.param, folder


def paint(index: int) -> np.ndarray:
    """A still ground whose lower left corner is a chessboard that changes sides."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([40 + rows // 2, 40 + columns // 4, 200 - rows // 2], axis=-1)
    chessboard = 255 * ((rows // PATCH + columns // PATCH + index) % 2)
    corner = tuple(slice(part.start * PATCH, part.stop * PATCH) for part in CHANGED)
    picture[corner] = chessboard[corner][..., None]
    return picture.astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("videos") / "c.mp4", 4, paint=paint, quality=2)


def test_tokens_are_those_of_the_model(saved) -> None:
    name, folder = saved
    loaded, stock = load_model(folder), make_model(name)
    inputs = loaded.pixels([paint(0), paint(1)])
    assert loaded.grid == (18, 36)
    assert loaded.feature_grid == (9, 18)
    grids = torch.tensor([[1, 18, 36]] * 2)
    with torch.inference_mode():
        found = loaded.features(loaded.encode(inputs))
        rows = inputs["pixel_values"].flatten(0, 2)
        made = token_rows(stock.model.get_image_features(rows, grids))
    expected = made[:, : found.shape[-1]].view(2, 9 * 18, -1)
    assert found.shape[-1] == stock.config.get_text_config().hidden_size
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_picture_is_prepared_as_the_processor_does(saved) -> None:
    """And can be shown again as it was."""
    _, folder = saved
    loaded = load_model(folder)
    processor = loaded.preprocessor.processor
    out = processor(images=[paint(0)], return_tensors="pt", input_data_format="channels_last")
    inputs = loaded.pixels([paint(0)])
    assert out["image_grid_thw"].tolist() == [[1, 18, 36]]
    torch.testing.assert_close(inputs["pixel_values"].flatten(0, 2), out["pixel_values"])
    assert np.array_equal(np.asarray(loaded.display(inputs)[0]), paint(0))


def test_the_report_shows_where_the_picture_changed(saved, clip, tmp_path) -> None:
    _, folder = saved
    given = ("--fps", 4, "--threshold", 0.9, "--tokens-per-frame", 9)
    words = ("run", clip, "--model", folder, *given)
    assert run_app([str(word) for word in (*words, "--out", tmp_path, "--threads", 1)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"]["grid"] == [18, 36]
    assert report["model"]["feature_grid"] == [9, 18]
    assert [frame["kind"] for frame in report["frames"]] == ["dense", *["cached"] * 3]
    for frame in report["frames"][1:]:
        assert len(frame["kept"]) == 9
        encoded = np.reshape(frame["encoded"], (18, 36))
        assert encoded[CHANGED].all()
        encoded[CHANGED] = 0.0
        assert encoded.mean() < 0.1  # those that are refreshed in turn


def test_fidelity_and_calibration(saved, clip, tmp_path) -> None:
    _, folder = saved
    given = [str(clip), "--model", str(folder), "--fps", "4", "--threads", "1"]
    policies = ["--policies", "dense,stc", "--interval", "9", "--ratio", "1/4"]
    assert run_app(["fidelity", *given, *policies, "--out", str(tmp_path), "--no-times"]) == 0
    assert run_app(["calibrate", *given, "--out", str(tmp_path / "c.json")]) == 0
    assert Calibration.load(tmp_path / "c.json").fits(layers=3, width=32)


def test_a_fit_is_refused(saved, clip, tmp_path, capsys) -> None:
    _, folder = saved
    words = ("run", clip, "--model", folder, "--fit", "crop", "--out", tmp_path)
    assert run_app([str(word) for word in words]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "this model takes whole pictures of any shape" in said


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen3-vl"])
def test_a_question_of_a_run_is_about_pictures_that_stand_still(name, tmp_path) -> None:
    """As a session answers to which each of them was pushed twice."""
    make_model(name).save_pretrained(tmp_path)
    writer(name).save_pretrained(tmp_path)
    chat = load_chat_model(tmp_path)
    settings = {"retrieve_tokens": 400, "max_new_tokens": 8}
    pictures = [paint(number) for number in range(3)]
    vision = chat.vision()
    interview = Interview(chat, [Question("what?", math.inf)], **settings)
    with torch.inference_mode():
        for time, picture in enumerate(pictures):
            tokens = vision.features(vision.encode(vision.pixels([picture])))
            kept = make_pruner("none")(tokens)
            if deep := vision.deep_features:
                kept = with_rows(kept, torch.cat(list(deep), dim=-1))
            interview.take(kept, float(time), vision.feature_grid)
        interview.finish()
    interview.close()
    assert bool(vision.deep_features) == (name == "qwen3-vl")
    memory = RekvConfig(retrieve_tokens=400)
    with StreamingSession(
        chat.model, chat.processor, memory=memory, cache=None, prune="none"
    ) as session:
        for time, picture in enumerate(pictures):
            session.push(np.stack([picture, picture]), [float(time)] * 2)
        answer = session.ask("what?", max_new_tokens=8)
    assert interview.answers[0].answer == answer.text
    assert interview.answers[0].context_tokens == answer.context_tokens


def test_merged_tokens_have_no_features_for_the_first_layers(clip, tmp_path, capsys) -> None:
    make_model("qwen3-vl").save_pretrained(tmp_path)
    writer("qwen3-vl").save_pretrained(tmp_path)
    words = ("run", clip, "--model", tmp_path, "--ask", "what?", "--prune", "tome")
    assert run_app([str(word) for word in (*words, "--out", tmp_path)]) == 2
    assert "questions need a method that keeps tokens as they are" in capsys.readouterr().err


def test_the_processor_of_the_folder_is_used(tmp_path) -> None:
    make_model("qwen2-vl").save_pretrained(tmp_path)
    processor_class("Qwen2VLImageProcessor")(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    assert list(load_model(tmp_path).preprocessor.processor.image_mean) == [0.1, 0.2, 0.3]


def test_features_of_other_tokens_are_refused(tmp_path) -> None:
    make_model("qwen2-vl").save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    with torch.inference_mode():
        tokens = loaded.encode(loaded.pixels([paint(0)]))
        with pytest.raises(ValueError, match="tokens must be those of the last `encode`"):
            loaded.features(tokens.clone())
