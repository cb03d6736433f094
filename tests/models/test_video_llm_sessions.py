# SPDX-License-Identifier: Apache-2.0
"""`StreamingSession` on the whole models of every other family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_qwen_vl import CHAT, QWEN_MARKS, make_tokenizer, video
from tiny_qwen_vl import GRID as ROWS
from tiny_qwen_vl import pictures as camera
from tiny_video_llms import (
    QWEN,
    frame_tokens,
    make_model,
    model_names,
    pictures,
    video_inputs,
    with_ids,
)
from torch import Tensor

from stc_video import RekvConfig, StreamingSession, UnsupportedModelError, WindowConfig, accelerate

QUESTION = "what is it?"
GREEDY = {"do_sample": False, "max_new_tokens": 5}
CLOSE = {"atol": 2e-5, "rtol": 0}
FRAMES = 5
MARKS = {
    "internvl": ("<IMG_CONTEXT>", "<video>", "<img>", "</img>"),
    "smolvlm": ("<image>", "<video>", "<fake_token_around_image>", "<global-img>"),
    "llava-next-video": ("<image>", "<video>"),
    "gemma3": ("<image_soft_token>", "<unused0>", "<start_of_image>", "<end_of_image>"),
}
#: those with experts go the ways of those without
NAMES = [
    pytest.param(name, marks=pytest.mark.long if "moe" in name else ()) for name in model_names()
]
WITHOUT_REKV = ("qwen3.5", "qwen3.5-moe")


@pytest.fixture(scope="module", params=NAMES)
def family(request) -> tuple[str, Any]:
    return request.param, make_model(request.param)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def writer_of(name: str) -> Any:
    """The tokenizer of a family, whose template writes a video as the released ones do."""
    mark = "<|vision_start|><|video_pad|><|vision_end|>"
    chat = CHAT if name in QWEN else CHAT.replace(mark, mark_of(name))
    if name == "gemma3":  # whose template knows no videos
        chat = chat.replace("== 'video'", "== 'image'").replace("['text']", "['text'] | trim")
    return make_tokenizer(chat, MARKS.get(name, QWEN_MARKS), like_gemma=name == "gemma3")


def mark_of(name: str) -> str:
    """What the chat template of a family writes for a video."""
    if name in QWEN:
        return "<|vision_start|><|video_pad|><|vision_end|>"
    return "<start_of_image>" if name == "gemma3" else "<video>"


def video_text(name: str, frames: int) -> str:
    """What the processor of a family writes for a video at one frame per second."""
    count = frame_tokens(name)
    if name in QWEN:
        marked = "<|vision_start|>" + "<|video_pad|>" * count + "<|vision_end|>"
        return "".join(f"<{k:.1f} seconds>{marked}" for k in range(frames))
    if name == "internvl":
        shown = "<img>" + "<IMG_CONTEXT>" * count + "</img>"
        return "\n".join(f"Frame{k + 1}: {shown}" for k in range(frames))
    if name == "smolvlm":
        fake = "<fake_token_around_image>"
        shown = f"{fake}<global-img>{'<image>' * count}{fake}"
        return "".join(f"\nFrame from 00:{k:02d}:{shown}" for k in range(frames)) + "\n\n"
    if name == "gemma3":
        return f"\n\n<start_of_image>{'<image_soft_token>' * count}<end_of_image>\n\n" * frames
    return "<video>" * (count * frames)


def stock_inputs(name: str, frames: int = FRAMES) -> dict[str, Tensor]:
    writer = writer_of(name)
    kind = "image" if name == "gemma3" else "video"
    content = [{"type": kind}, {"type": "text", "text": QUESTION}]
    text = writer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace(mark_of(name), video_text(name, frames))
    # The template has begun the text, if anything does.
    ids = writer(text, return_tensors="pt", add_special_tokens=False).input_ids
    return with_ids(name, ids, **video_inputs(name, [(frames, 0)]))


def prepared(name: str, frames: int = FRAMES) -> Tensor:
    return video(frames).view(frames, *ROWS, -1) if name in QWEN else pictures(frames)


def open_session(name: str, model: Any, memory: Any = "plain", **settings: Any) -> StreamingSession:
    settings = {"cache": None, "prune": "none", **settings}
    return StreamingSession(model, writer_of(name), memory=memory, **settings)


@pytest.mark.parametrize("memory", ["plain", "rekv", WindowConfig(FRAMES)])
@pytest.mark.parametrize("chunk", [1, 8])
def test_unpruned_it_is_the_stock_model(family, memory, chunk):
    name, model = family
    if memory == "rekv" and name in WITHOUT_REKV:
        with pytest.raises(UnsupportedModelError, match="of which none can be retrieved"):
            open_session(name, model, memory)
        assert not hasattr(model, "stc")
        return
    given = stock_inputs(name)
    logits = model(**given).logits[0, -1]
    answer = model.generate(**given, **GREEDY)[0, given["input_ids"].shape[1] :]
    with open_session(name, model, memory, prefill_chunk=chunk) as session:
        for number, frame in enumerate(prepared(name)):
            session.push(frame[None], timestamps=number)
        torch.testing.assert_close(session.logits(QUESTION), logits, **CLOSE)
        made = session.ask(QUESTION, **GREEDY)
    assert made.ids.tolist() == answer.tolist()
    assert made.context_tokens == given["input_ids"].shape[1]


@pytest.mark.parametrize("memory", ["plain", "rekv"])
def test_pruned_it_is_the_accelerated_model(family, memory):
    name, model = family
    if memory == "rekv" and name in WITHOUT_REKV:
        pytest.skip("refused, as the test above has it")
    settings = {"prune": "stc", "tokens_per_frame": 2}
    with open_session(name, model, memory, prefill_chunk=1, **settings) as session:
        for frame in prepared(name):
            session.push(frame[None])
        logits = session.logits(QUESTION)
    with accelerate(model, cache=None, **settings).stc as handle:
        kept = []
        grid = handle.grid or (2, 3)
        for frame in prepared(name):
            kept.append(handle.prune(handle.encode(frame[None], "s"), "s", grid))
        indices = torch.cat([part.indices for part in kept])
        handle.pruner._choose = lambda frames: (indices, None, {})
        expected = model(**stock_inputs(name)).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_window_is_a_video_of_its_own(family):
    name, model = family
    frames = prepared(name, 4)
    with (
        open_session(name, model, WindowConfig(2)) as session,
        open_session(name, model) as alone,
    ):
        session.push(frames, timestamps=[3.0, 3.0, 5.0, 6.0])
        if name in ("internvl", "gemma3"):  # whose frames are counted
            alone._adapter._number = 2
        alone.push(frames[2:], timestamps=[5.0, 6.0])
        torch.testing.assert_close(session.logits(QUESTION), alone.logits(QUESTION), **CLOSE)


@pytest.mark.parametrize("memory", ["plain", "rekv", "window"])
def test_a_saved_session_goes_on(family, memory, tmp_path):
    name, model = family
    if memory == "rekv" and name in WITHOUT_REKV:
        pytest.skip("refused, as the first test has it")
    if memory == "rekv":
        memory = RekvConfig(window_tokens=40, retrieve_tokens=60)
    settings = {"prune": "stc", "tokens_per_frame": 2, "memory": memory}
    frames = prepared(name, 8)
    with open_session(name, model, **settings) as session:
        session.push(frames[:6])
        session.save(tmp_path / "saved")
        session.push(frames[6:])
        expected = session.logits(QUESTION)
    loaded = StreamingSession.load(
        tmp_path / "saved", model, writer_of(name), cache=None, **settings
    )
    with loaded:
        loaded.push(frames[6:])
        assert torch.equal(loaded.logits(QUESTION), expected)
    assert not hasattr(model, "stc")


def test_pictures_of_a_camera(family):
    """Pictures of any size: pairs of them for Qwen, whose time is halfway between the two."""
    name, model = family
    with open_session(name, model) as session:
        session.push(camera(4), timestamps=[0.0, 1.0, 2.0, 3.0])
        assert session.ask(QUESTION, **GREEDY).frame == (2 if name in QWEN else 4)
        if name in QWEN:
            text = session.tokenizer.decode(session._adapter.frame_text(0.5)[0])
            assert "<0.5 seconds>" in text
            assert session._intake.frames == 2
