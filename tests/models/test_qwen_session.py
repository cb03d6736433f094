# SPDX-License-Identifier: Apache-2.0
"""`StreamingSession` on Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_qwen_vl import (
    GRID,
    NAMES,
    TOKENS,
    VIDEO,
    grid_of,
    make_model,
    make_tokenizer,
    pictures,
    rope_index,
    stock_inputs,
    video,
)  # fmt: skip

from stc_video import PlainConfig, StreamingSession, accelerate

QUESTION = "what is it?"
GREEDY = {"do_sample": False, "max_new_tokens": 5}
FRAMES = 3  # no more than the larger side of the grid: there all releases agree on positions
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return make_model(request.param)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def writer():
    return make_tokenizer(CHAT)


def patches(frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    return video(frames, seed).view(frames, *GRID, -1)


def prompt(writer, frames: int = FRAMES) -> torch.Tensor:
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = writer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace("<|video_pad|>", "<|video_pad|>" * (frames * TOKENS))
    return writer(text, return_tensors="pt").input_ids


def open_session(model, writer, **settings):
    settings = {"cache": None, "prune": "none", "memory": "plain", **settings}
    return StreamingSession(model, writer, **settings)


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_unpruned_it_is_the_stock_model(model, writer, chunk):
    ids = prompt(writer)
    inputs = stock_inputs(ids, video(FRAMES), grid_of(FRAMES))
    if "2_5" in type(model).__name__:
        # A second per frame is two positions; more than the releases agree on.
        inputs = None
    with open_session(model, writer, prefill_chunk=chunk) as session:
        for frame in patches():
            session.push(frame[None])
        logits = session.logits(QUESTION)
        made = session.ask(QUESTION, **GREEDY)
        again = session.ask(QUESTION, **GREEDY)
    assert made.ids.tolist() == again.ids.tolist()
    assert made.context_tokens == ids.shape[1]
    positions = rope_index(model, ids, grid_of(FRAMES))
    if inputs is not None:
        torch.testing.assert_close(model(**inputs).logits[0, -1], logits, atol=1e-5, rtol=0)
        answer = model.generate(**inputs, **GREEDY)[0, ids.shape[1] :]
        assert made.ids.tolist() == answer.tolist()
    positions = text_behind_everything(ids, positions)
    by_hand = model(
        **{k: v for k, v in stock_inputs(ids, video(FRAMES), grid_of(FRAMES)).items()},
        position_ids=positions,
    )
    torch.testing.assert_close(by_hand.logits[0, -1], logits, atol=1e-5, rtol=0)


def text_behind_everything(ids, positions):
    """Positions in which the text behind the video goes on behind its largest number."""
    last = int((ids[0] == VIDEO).nonzero()[-1])
    start = int(positions[:, 0, : last + 1].max()) + 1
    positions[:, 0, last + 1 :] = torch.arange(start, start + ids.shape[1] - last - 1)
    return positions


@pytest.mark.parametrize("frames", [2, 9])
def test_pruned_it_is_the_model_with_the_same_tokens(model, writer, frames):
    settings = {"cache": "motion", "prune": "stc", "tokens_per_frame": 3}
    ids = prompt(writer, frames)
    with open_session(model, writer, prefill_chunk=1, **settings) as session:
        chosen = []
        choose = session._handle.pruner._choose

        def remember(given):
            chosen.append((choose(given), given.features))
            return chosen[-1][0]

        session._handle.pruner._choose = remember
        for frame in patches(frames):
            session.push(frame[None])
        logits = session.logits(QUESTION)
        assert session.stats().cache.frames == frames
        assert session.stats().tokens_seen == frames * TOKENS
        assert session.stats().memory_tokens == session.stats().tokens_kept + int(
            (ids[0] == VIDEO).nonzero()[0]
        )
    positions = text_behind_everything(ids, rope_index(model, ids, grid_of(frames)))
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == VIDEO] = torch.cat([features.flatten(0, 1) for _, features in chosen])
    keep = torch.ones(ids.shape[1], dtype=torch.bool)
    stay = torch.zeros(frames, TOKENS, dtype=torch.bool)
    stay.scatter_(1, torch.cat([c[0] for c, _ in chosen]).long(), True)
    keep[ids[0] == VIDEO] = stay.flatten()
    hidden = model.model.language_model(
        inputs_embeds=embeds[:, keep], position_ids=positions[:, :, keep]
    ).last_hidden_state[0, -1]
    torch.testing.assert_close(model.lm_head(hidden), logits, atol=1e-5, rtol=0)


def test_pictures_come_in_pairs(model, writer):
    shown = pictures(5)
    with open_session(model, writer) as session:
        buffer = np.empty_like(shown[0])  # as cameras use one again and again
        for number, picture in enumerate(shown):
            buffer[:] = picture
            session.push(buffer, timestamps=number / 2)
        assert session.stats().frames == 2
        logits = session.logits(QUESTION)  # the last one is a frame of its own now
        assert session.stats().frames == 3
    with open_session(model, writer) as session:
        session.push(np.stack(shown), timestamps=[0.0, 0.5, 1.0, 1.5, 2.0])
        session.flush()
        torch.testing.assert_close(session.logits(QUESTION), logits, atol=1e-5, rtol=0)
        session.push(shown[0])
        with pytest.raises(ValueError, match=r"waits for a second one .* call flush\(\)"):
            session.push(shown[0][:60])
        with pytest.raises(ValueError, match="must have one size"):
            session.push([shown[0], shown[0][:60]])
        with pytest.raises(ValueError, match="must be one for each of 2 frames, got 1"):
            session.push(shown[:2], timestamps=1.0)
        session.flush()
        session.push([shown[0][:60]] * 2)  # another size begins another video
        assert session.ask(QUESTION, **GREEDY).frame == 5


def test_a_saved_session_goes_on(model, writer, tmp_path):
    settings = {"cache": "motion", "prune": "stc", "tokens_per_frame": 3}
    frames = patches(6)
    with open_session(model, writer, **settings) as session:
        session.push(frames[:4])
        session.save(tmp_path / "saved")
        session.push(frames[4:])
        expected = session.logits(QUESTION)
    loaded = StreamingSession.load(tmp_path / "saved", model, writer, memory="plain", **settings)
    loaded.push(frames[4:])
    assert torch.equal(loaded.logits(QUESTION), expected)
    loaded.close()
    assert not hasattr(model, "stc")


def test_sessions_and_other_calls_do_not_disturb_each_other(model, writer):
    with accelerate(model, cache=None, tokens_per_frame=3).stc:
        inputs = stock_inputs(prompt(writer), video(FRAMES), grid_of(FRAMES))
        with StreamingSession(model, writer, memory=PlainConfig()) as session:
            session.push(patches())
            expected = session.ask(QUESTION, **GREEDY).ids.tolist()
            two = {k: torch.cat([v, v]) for k, v in inputs.items()}
            model.generate(**two, **GREEDY)  # leaves the offsets of two rows on the model
            assert session.ask(QUESTION, **GREEDY).ids.tolist() == expected
