# SPDX-License-Identifier: Apache-2.0
"""Whole models by name: folders as transformers writes them, and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_qwen_session import CHAT, GREEDY, patches
from test_video_llm_sessions import prepared, writer_of
from tiny_llava import SIZE, make_model, make_tokenizer
from tiny_qwen_vl import NAMES
from tiny_qwen_vl import make_model as make_qwen
from tiny_qwen_vl import make_tokenizer as make_qwen_tokenizer
from tiny_video_llms import QWEN, features_by_hand, model_names, pictures
from tiny_video_llms import make_model as make_video_llm
from transformers import AutoModelForImageTextToText

from stc_video import StreamingSession, UnsupportedModelError
from stc_video.loading.placement import ModelError
from stc_video.loading.video_llm import load_chat_model
from stc_video.loading.vision import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llava")
    make_model().save_pretrained(made)
    make_tokenizer().save_pretrained(made)
    return made


def answer(chat) -> list[int]:
    with StreamingSession(chat.model, chat.processor, tokens_per_frame=6) as session:
        session.push(torch.zeros((3, SIZE, SIZE)))
        return session.ask("what?", max_new_tokens=4, do_sample=False).ids.tolist()


def test_a_folder_is_the_model_that_was_saved(folder: Path) -> None:
    chat = load_chat_model(folder)
    assert not chat.random
    assert chat.notice is None
    with StreamingSession(make_model(), make_tokenizer(), tokens_per_frame=6) as session:
        session.push(torch.zeros((3, SIZE, SIZE)))
        expected = session.ask("what?", max_new_tokens=4, do_sample=False).ids.tolist()
    assert answer(chat) == expected
    vision = chat.vision()
    assert vision.tower is chat.model.model.vision_tower
    assert chat.model.lm_head is not None


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_the_processor_s_template_goes_before_the_tokenizer_s(
    folder: Path, tmp_path: Path, file: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": "only {{ messages[0]['content'] }}"})
    )
    template = make_tokenizer().chat_template
    text = template if file.endswith("jinja") else json.dumps({"chat_template": template})
    (tmp_path / file).write_text(text)
    assert load_chat_model(tmp_path).processor.tokenizer.chat_template == template


def test_random_weights_answer_in_letters() -> None:
    chat = load_chat_model("llava-onevision-tiny")
    assert chat.random
    assert "random weights" in chat.notice
    with StreamingSession(chat.model, chat.processor) as session:
        session.push(torch.zeros((3, 384, 384)))
        text = session.ask("what?", max_new_tokens=8).text
    assert text
    assert set(text) <= set(" .abcdefghijklmnopqrstuvwxyz")


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"questions need .* got siglip"):
        load_chat_model("siglip-base")
    with pytest.raises(ModelError, match="there is no such folder"):
        load_chat_model("/nowhere")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_chat_model(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(ModelError, match="there is no chat template"):
        load_chat_model(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_qwen_vl_answers(name: str, tmp_path: Path) -> None:
    writer = make_qwen_tokenizer(CHAT)
    model = make_qwen(name)
    model.save_pretrained(tmp_path)
    writer.save_pretrained(tmp_path)
    answers = []
    for given in (model, load_chat_model(tmp_path).model):
        with torch.no_grad(), StreamingSession(given, writer, tokens_per_frame=3) as session:
            session.push(patches())
            answers.append(session.ask("what?", **GREEDY).ids.tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", [name for name in model_names() if "moe" not in name])
def test_every_family_by_its_folder(name: str, tmp_path: Path) -> None:
    model, writer = make_video_llm(name), writer_of(name)
    model.save_pretrained(tmp_path)
    writer.save_pretrained(tmp_path)
    chat = load_chat_model(tmp_path)
    settings = {"memory": "plain", "cache": None, "tokens_per_frame": 2}
    with StreamingSession(chat.model, chat.processor, **settings) as session:
        session.push(prepared(name, 2))
        assert session.ask("what?", **GREEDY).ids.numel() == 5
    if name in QWEN:  # its tower: test_qwen_towers.py
        return
    loaded = load_model(tmp_path)
    with torch.no_grad():
        found = loaded.features(loaded.encode({"pixel_values": pictures(2)}))
        expected = features_by_hand(name, model, 2, 0)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert loaded.vision is not None
    shown = loaded.pixels([np.zeros((60, 80, 3), np.uint8)])["pixel_values"]
    assert shown.shape == (1, 3, 56, 56)
    assert loaded.feature_grid == (2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_rotary_frequencies_are_not_rounded(name: str, tmp_path: Path) -> None:
    """With weights in bfloat16 as with others: transformers keeps what is no weight."""
    make_qwen(name).save_pretrained(tmp_path)
    make_qwen_tokenizer(CHAT).save_pretrained(tmp_path)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    chat = load_chat_model(tmp_path, dtype="bfloat16").model
    tower = load_model(tmp_path, dtype="bfloat16").tower
    for ours, theirs in ((chat, stock), (tower, stock.model.visual)):
        assert {weight.dtype for weight in ours.parameters()} == {torch.bfloat16}
        expected = dict(theirs.named_buffers())
        assert any("inv_freq" in buffer for buffer in expected)
        assert all(torch.equal(buffer, expected[at]) for at, buffer in ours.named_buffers())


def test_nor_are_those_of_random_weights() -> None:
    model = load_chat_model("llava-onevision-tiny", dtype="bfloat16").model
    types = {at: buffer.dtype for at, buffer in model.named_buffers() if "inv_freq" in at}
    assert set(types.values()) == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
