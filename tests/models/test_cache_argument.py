# SPDX-License-Identifier: Apache-2.0
"""The cache of keys and values by both of its names, and by the stock model's own alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny_llava
import torch
import transformers
from tiny_qwen_vl import (
    CHAT,
    NAMES,
    grid_of,
    make_model,
    make_tokenizer,
    pictures,
    stock_inputs,
    turn,
    video,
)  # fmt: skip
from transformers import DynamicCache

from stc_video import StreamingSession, accelerate
from stc_video.cache_argument import CACHE_NAMES, cache_of
from stc_video.integrations import livecc

FRAMES = 2


@pytest.fixture(scope="module", params=[*NAMES, "llava-onevision"])
def case(request):
    """A model and what its processor makes of a question about a video."""
    if request.param == "llava-onevision":
        model = tiny_llava.make_model()
        model.generation_config.eos_token_id = None
        ids = tiny_llava.prompt_ids(FRAMES, "why?")
        return model, {"input_ids": ids, "pixel_values_videos": tiny_llava.video(FRAMES)[None]}
    return make_model(request.param), stock_inputs(
        turn([9], FRAMES), video(FRAMES), grid_of(FRAMES)
    )


@contextmanager
def no_deprecated_name(caplog) -> Iterator[None]:
    """Inside the block nobody calls the stock model by a name that it warns of."""
    root = logging.getLogger("transformers")
    before = root.propagate, root.level
    root.propagate = True
    root.setLevel(logging.WARNING)
    transformers.utils.logging.warning_once.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            yield
    finally:
        root.propagate, root.level = before
    assert not [r for r in caplog.records if "past_key_values" in r.getMessage()]


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_both_names_are_the_cache_everywhere(case, name, caplog):
    model, inputs = case
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **settings)
    with accelerate(model, cache=None, prune="none").stc, no_deprecated_name(caplog):
        cache = DynamicCache()
        made = model.generate(**inputs, **settings, **{name: cache}, return_dict_in_generate=True)
        assert torch.equal(made.sequences, expected)
        assert cache_of(made) is cache
        assert cache.get_seq_length() == expected.shape[1] - 1
        cache = DynamicCache()
        with torch.no_grad():
            out = model(**inputs, **{name: cache}, use_cache=True)
            assert cache_of(out) is cache
            parts = model(**inputs, use_cache=True, return_dict=False)
        assert cache_of(parts).get_seq_length() == cache.get_seq_length()


def test_two_caches_are_refused(case):
    model, inputs = case
    with accelerate(model, cache=None, prune="none").stc:
        cache = DynamicCache()
        model.generate(**inputs, max_new_tokens=1, past_key_values=cache, cache=cache)
        with pytest.raises(ValueError, match="two names of one argument"):
            model.generate(**inputs, past_key_values=cache, cache=DynamicCache())


@pytest.mark.parametrize("memory", ["plain", "rekv"])
def test_sessions_use_the_stock_name(memory, caplog):
    model, processor = tiny_llava.make_model(), tiny_llava.make_tokenizer()
    with (
        no_deprecated_name(caplog),
        StreamingSession(model, processor, memory=memory, tokens_per_frame=6) as session,
    ):
        session.push(tiny_llava.video(FRAMES))
        assert session.ask("why?", max_new_tokens=3, do_sample=False).ids.shape == (3,)


def test_a_livecc_turn_uses_the_stock_name(caplog):
    model = make_model("qwen2-vl")
    with (
        no_deprecated_name(caplog),
        livecc.LiveCC(model, make_tokenizer(CHAT), tokens_per_frame=4) as commentary,
    ):
        assert len(list(commentary.push(pictures(8)))) == 2
