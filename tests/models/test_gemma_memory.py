# SPDX-License-Identifier: Apache-2.0
"""Memories of Gemma 3: pictures that are read in both directions, layers that see the last tokens.

The definition is written out; what the model itself makes of it: test_video_llm_sessions.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from rekv_oracle import RekvOracle
from test_rekv import PREFIX, PROMPT, QUESTION, SIZES, config, embeds, frames, logits
from test_video_llm_sessions import GREEDY, open_session, prepared, writer_of
from test_video_llm_sessions import QUESTION as WORDS
from tiny_video_llms import TEXT, make_model
from torch import Tensor
from transformers import MistralConfig, MistralModel

from stc_video import StreamingSession, UnsupportedModelError, WindowConfig
from stc_video.memory import Frame, PlainConfig, PlainMemory, RekvMemory
from stc_video.memory.masks import causal_mask

SLIDES = 8  # sliding_window of the small model


@pytest.fixture(scope="module")
def gemma():
    return make_model("gemma3")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


class GemmaOracle(RekvOracle):
    """ReKV where a frame is read in both directions, and only layers that see all retrieve."""

    def _project(self, layer, x):
        query, key, value = super()._project(layer, x)
        return layer.self_attn.q_norm(query), layer.self_attn.k_norm(key), value

    def _finish(self, layer, x, out):
        x = x + layer.post_attention_layernorm(layer.self_attn.o_proj(out))
        made = layer.mlp(layer.pre_feedforward_layernorm(x))
        return x + layer.post_feedforward_layernorm(made)

    def _inverse(self, layer) -> Tensor:
        width, base = layer.self_attn.head_dim, 1e4 if slides(layer) else 1e6
        return base ** -(torch.arange(0, width, 2) / width)

    def _seen(self, layer, queries, keys, picture):
        seen = keys <= queries
        if picture:
            seen = seen | (keys >= queries[0])
        return seen & (keys > queries - SLIDES) if slides(layer) else seen

    def _order(self, layer, scores):
        order = super()._order(layer, scores)
        return sorted(order, reverse=True) if slides(layer) else order


def slides(layer: Any) -> bool:
    return layer.self_attn.sliding_window is not None


def shown(sizes: list[int]) -> list[Frame]:
    """Frames whose tokens see each other."""
    return [dataclasses.replace(f, bidirectional=(0, len(f.embeds))) for f in frames(sizes)]


@pytest.mark.parametrize(
    ("window", "budget"), [(12, 20), (20, 1000), (1000, 20), (1000, 1000), (9, 7)]
)
@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_equals_the_definition(gemma, window, budget, chunk):
    oracle = GemmaOracle(gemma, window, budget)
    settings = config(window_tokens=window, retrieve_tokens=budget)
    memory = RekvMemory(gemma.model.language_model, settings)
    oracle.begin(embeds(PREFIX, 100))
    memory.begin(embeds(PREFIX, 100))
    stream = shown(SIZES)
    for first in range(0, len(stream), chunk):
        memory.append(stream[first : first + chunk])
    for frame in stream:
        oracle.push(frame.embeds)
    prompt = embeds(PROMPT, 200)
    torch.testing.assert_close(
        logits(gemma, memory, prompt), oracle.logits(prompt, QUESTION), atol=5e-5, rtol=0
    )
    retrieving = [
        chosen
        for layer, chosen in zip(gemma.model.language_model.layers, oracle.retrieved, strict=True)
        if not slides(layer)
    ]
    used = memory.context(prompt, QUESTION, "?").retrieved
    assert {f.number: f.layers for f in used} == {
        number: sum(number in chosen for chosen in retrieving)
        for number in sorted({n for chosen in retrieving for n in chosen})
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_attention_that_takes_a_mask(gemma, attention):
    """The answer of a session, from each memory, is that of the model with this attention."""
    model = make_model("gemma3")
    model.set_attn_implementation(attention)
    found = []
    for memory in ("plain", "rekv", WindowConfig(5)):
        with open_session("gemma3", model, memory) as session:
            session.push(prepared("gemma3"))
            found.append(session.ask(WORDS, **GREEDY).ids.tolist())
    with open_session("gemma3", gemma) as session:
        session.push(prepared("gemma3"))
        expected = session.ask(WORDS, **GREEDY).ids.tolist()
    assert found == [expected] * 3


def test_an_attention_that_takes_none_is_refused():
    model = make_model("gemma3").model.language_model
    memory = PlainMemory(model, PlainConfig())
    memory.begin(embeds(PREFIX, 100))
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="must be eager or sdpa, got 'flex_attention'"):
        memory.append(shown([4]))
    assert memory.tokens == PREFIX


def test_pictures_larger_than_what_a_layer_sees_are_refused():
    model = make_model("gemma3")
    model.config.text_config.sliding_window = 3
    with pytest.raises(UnsupportedModelError, match="must fit into the 3 tokens"):
        open_session("gemma3", model)


def test_layers_that_all_see_the_last_tokens_alone_retrieve_nothing():
    """Those of Mistral, which does not say so layer by layer."""
    small = {**TEXT, "sliding_window": SLIDES}
    model = MistralModel(MistralConfig(**small)).eval()
    with pytest.raises(UnsupportedModelError, match="last 8 tokens retrieves nothing; use memory="):
        RekvMemory(model, config())
    RekvMemory(MistralModel(MistralConfig(**small | {"sliding_window": None})), config())


def test_a_template_may_trim_a_question(gemma):
    with open_session("gemma3", gemma) as session:
        session.push(prepared("gemma3"))
        assert torch.equal(session.logits(f" {WORDS}\n"), session.logits(WORDS))


@pytest.mark.parametrize("rows", [(1, 5), (-1, 2), (2, 1), (0, 1, 2), ("0", 1), [0, 1], (0, True)])
def test_rows_that_a_frame_has_not(rows):
    with pytest.raises(ValueError, match="bidirectional of a frame must be"):
        Frame(embeds(4, 0), torch.arange(4), 4, 0, bidirectional=rows)


def test_what_a_token_sees():
    mask = causal_mask(4, 6, torch.device("cpu"), 3, [(1, 3)])
    assert mask.int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert causal_mask(1, 6, torch.device("cpu")) is None
    assert causal_mask(1, 6, torch.device("cpu"), 5).int().tolist() == [[0, 1, 1, 1, 1, 1]]


def test_a_session_whose_frames_wait_is_saved(gemma, tmp_path):
    """With what their tokens see."""
    settings = {"prune": "stc", "tokens_per_frame": 2, "memory": "plain"}
    with open_session("gemma3", gemma, **settings) as session:
        session.push(prepared("gemma3"))
        assert len(session._intake.waiting) == 5
        session.save(tmp_path / "saved")
        expected = session.logits(WORDS)
    writer = writer_of("gemma3")
    with StreamingSession.load(tmp_path / "saved", gemma, writer, cache=None, **settings) as loaded:
        assert [frame.bidirectional for frame in loaded._intake.waiting][:2] == [(1, 3), (2, 4)]
        assert torch.equal(loaded.logits(WORDS), expected)
