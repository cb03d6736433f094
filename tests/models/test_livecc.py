# SPDX-License-Identifier: Apache-2.0
"""LiveCC's turn loop against the authors' one, written down from their demo's behaviour."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from tiny_qwen_vl import (
    CHAT,
    GRID,
    PIXELS,
    TOKENS,
    VIDEO,
    features_by_hand,
    grid_of,
    make_model,
    make_tokenizer,
    pictures,
    rope_index,
    stock_inputs,
    turn,
    video,
)  # fmt: skip
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

import stc_video
from stc_video import AttachError, CacheConfig, UnsupportedModelError
from stc_video.integrations import livecc

TURNS, KEPT, NEW = 10, 3, 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "repetition_penalty": 1.05}


@pytest.fixture(scope="module")
def model():
    return make_model("qwen2-vl")


@pytest.fixture
def tokenizer():
    return make_tokenizer(CHAT)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def clip(number: int) -> tuple[Tensor, Tensor]:
    """Rows and grid of a turn's video: three temporal patches, then one at a time."""
    whole = video(3 + TURNS)
    rows = GRID[0] * GRID[1]
    first, frames = (0, 3) if number == 0 else (2 + number, 1)
    return whole[first * rows : (first + frames) * rows], grid_of(frames)


def new_ids(number: int) -> Tensor:
    return turn([20 + number, 21], 3 if number == 0 else 1)


def run(model, turns: int = TURNS, **settings):
    """The demo's loop: (past ids, cache, answer) of each turn."""
    past_ids, cache, made = None, None, []
    for number in range(turns):
        pixels, grid = clip(number)
        ids = new_ids(number)
        if past_ids is not None:
            ids = torch.cat([past_ids, ids], dim=1)
        extra = {} if settings.get("by_us") else types_for(ids)
        out = model.generate(
            input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grid, past_key_values=cache,
            return_dict_in_generate=True, **GREEDY, **extra,
        )  # fmt: skip
        cache, past_ids = out.past_key_values, out.sequences[:, :-1]
        made.append((past_ids, cache.get_seq_length(), out.sequences[0, ids.shape[1] :].tolist()))
    return made


def types_for(ids: Tensor) -> dict[str, Tensor]:
    made = stock_inputs(ids, torch.empty(0), torch.empty(0))
    return {k: v for k, v in made.items() if k == "mm_token_type_ids"}


def authors_prepare(model, input_ids, *, cache_position=None, **kwargs):
    """Their patch's effect with transformers 4.5x: positions left to the model's forward, pixels
    kept while there are placeholders among the new tokens."""
    made = GenerationMixin.prepare_inputs_for_generation(
        model, input_ids, cache_position=cache_position, **kwargs
    )
    made["position_ids"] = None
    if not bool((made["input_ids"] == VIDEO).any()):
        made["pixel_values_videos"] = None
    return made


class HandWritten:
    """The same token by token: M-RoPE in the first turn, one number per token behind it."""

    def __init__(self, model, kept: int) -> None:
        self.model, self.kept, self.cache, self.next = model, kept, DynamicCache(), 0
        self.penalised: set[int] = set()
        self.history: list[tuple[Tensor, Tensor]] = []  # ids and positions in the cache

    def feed(self, ids: Tensor, embeds: Tensor, positions: Tensor) -> int:
        self.history.append((ids[0], positions[:, 0]))
        out = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        logits = self.model.lm_head(out.last_hidden_state[0, -1])
        self.penalised |= set(ids[0].tolist())
        for token in self.penalised:
            logits[token] *= 1.05 if logits[token] < 0 else 1 / 1.05
        return int(logits.argmax())

    def turn(self, number: int, chosen: Tensor, features: Tensor | None = None) -> list[int]:
        """One turn with the kept places (T, K) of its video, and its features (T, N, D)."""
        ids, (pixels, grid) = new_ids(number), clip(number)
        embeds = self.model.get_input_embeddings()(ids)
        if features is None:
            features = features_by_hand(self.model, pixels, grid)[0]
        embeds[ids == VIDEO] = features.flatten(0, 1)
        keep = torch.ones(ids.shape[1], dtype=torch.bool)
        stay = torch.zeros(len(chosen), TOKENS, dtype=torch.bool).scatter(1, chosen.long(), True)
        keep[ids[0] == VIDEO] = stay.flatten()
        if number == 0:
            positions = rope_index(self.model, ids, grid)[:, :, keep]
        else:
            places = torch.arange(self.next, self.next + int(keep.sum()))
            positions = places.expand(3, 1, -1)
        self.next = int(positions[0, 0, -1]) + 1
        made = [self.feed(ids[:, keep], embeds[:, keep], positions)]
        while len(made) < NEW:
            token = torch.tensor([made[-1:]])
            here = torch.full((3, 1, 1), self.next)
            self.next += 1
            made.append(self.feed(token, self.model.get_input_embeddings()(token), here))
        return made


def everything(kept: int = TOKENS) -> Tensor:
    return torch.arange(kept)[None]


def test_with_everything_off_the_loop_is_the_authors(model):
    oracle = HandWritten(model, TOKENS)
    expected = [oracle.turn(n, everything().repeat(3 if n == 0 else 1, 1)) for n in range(TURNS)]
    with livecc.apply(model, cache=None, prune="none"):
        got = run(model, by_us=True)
    assert [answer for *_, answer in got] == expected
    assert all(past_ids.shape[1] == length for past_ids, length, _ in got)
    if transformers.__version__ < "5":  # where their patch runs
        model.prepare_inputs_for_generation = functools.partial(authors_prepare, model)
        try:
            stock = run(model)
        finally:
            del model.prepare_inputs_for_generation
        assert [answer for *_, answer in stock] == expected
        assert all(torch.equal(a[0], b[0]) for a, b in zip(got, stock, strict=True))


@pytest.mark.skipif(transformers.__version__ >= "5", reason="their patch needs transformers 4")
def test_their_patch_may_stay_where_it_is(model):
    with livecc.apply(model, tokens_per_frame=KEPT):
        expected = run(model, by_us=True)
        model.prepare_inputs_for_generation = functools.partial(authors_prepare, model)
        try:
            got = run(model, by_us=True)
        finally:
            del model.prepare_inputs_for_generation
    assert [answer for *_, answer in got] == [answer for *_, answer in expected]


def authors_file() -> str:
    """Their patch, from a folder or git checkout of their repository."""
    place = os.environ.get("STC_UPSTREAM_LIVECC")
    if not place:
        pytest.skip("STC_UPSTREAM_LIVECC names no folder or git checkout of LiveCC")
    path = "livecc-utils/src/livecc_utils/generation_patch.py"
    if (Path(place) / path).is_file():
        return (Path(place) / path).read_text()
    command = ["git", "-C", place, "show", f"HEAD:{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(transformers.__version__ >= "5", reason="their patch needs transformers 4")
def test_the_authors_own_file_makes_the_same_tokens(model):
    names: dict[str, object] = {}
    exec(compile(authors_file(), "generation_patch.py", "exec"), names)
    patch = names["prepare_multiturn_multimodal_inputs_for_generation"]
    model.prepare_inputs_for_generation = functools.partial(patch, model)
    try:
        stock = run(model)
        with livecc.apply(model, cache=None, prune="none"):
            got = run(model, by_us=True)
    finally:
        del model.prepare_inputs_for_generation
    assert [answer for *_, answer in got] == [answer for *_, answer in stock]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(got, stock, strict=True))


def test_with_cacher_and_pruner_cache_ids_and_positions_agree_at_every_turn(model, monkeypatch):
    handle = livecc.apply(model, CacheConfig(threshold=0.9), tokens_per_frame=KEPT)
    choose, seen, chosen = handle.pruner._choose, [], []

    def remember(frames):
        chosen.append((choose(frames), frames.features))
        return chosen[-1][0]

    monkeypatch.setattr(handle.pruner, "_choose", remember)
    past_ids, cache, frames = None, None, 0
    oracle = HandWritten(model, KEPT)
    for number in range(TURNS):
        (pixels, grid), ids = clip(number), new_ids(number)
        ids = ids if past_ids is None else torch.cat([past_ids, ids], dim=1)
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _m, _a, kw: seen.append(kw["position_ids"][-3:, 0]), with_kwargs=True
        )
        out = model.generate(
            input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grid, past_key_values=cache,
            return_dict_in_generate=True, **GREEDY,
        )  # fmt: skip
        hook.remove()
        cache, past_ids = out.past_key_values, out.sequences[:, :-1]
        assert torch.equal(past_ids[:, : ids.shape[1]], ids), "the prompt as it was given"
        frames += int(grid[0, 0])
        length = cache.get_seq_length()
        assert length == past_ids.shape[1] - frames * (TOKENS - KEPT)
        (indices, *_), features = chosen[-1]
        answer = oracle.turn(number, indices, features)
        assert out.sequences[0, ids.shape[1] :].tolist() == answer
        kept_ids = handle.adapter.kept_ids(past_ids, cache)
        by_hand = [torch.cat(parts, -1) for parts in zip(*oracle.history, strict=True)]
        assert torch.equal(kept_ids[0], by_hand[0])
        assert torch.equal(torch.cat(seen, dim=1), by_hand[1])
        assert kept_ids.shape[1] == by_hand[1].shape[1] == length
        assert int(model.model.rope_deltas) + length == oracle.next
    stats = handle.cacher.stats()
    assert stats.frames == 3 + TURNS - 1
    assert stats.dense == 1, "the stream goes on over the turns"
    assert stats.cached > 0
    handle.restore()


def test_a_conversation_that_is_over_frees_its_stream(model):
    handle = livecc.apply(model, tokens_per_frame=KEPT)
    made = run(model, 2, by_us=True)
    assert made
    gc.collect()
    assert handle.cacher.stats().state_bytes == handle.pruner.state_bytes == 0
    first = run(model, 3, by_us=True)
    second = run(model, 3, by_us=True)
    assert [answer for *_, answer in first] == [answer for *_, answer in second]
    assert not handle.cacher.stats().streams
    handle.restore()


def test_restore_and_other_models(model):
    before = set(model.__dict__)
    handle = livecc.apply(model)
    with pytest.raises(AttachError, match="accelerated already"):
        livecc.apply(model)
    handle.restore()
    assert set(model.__dict__) == before
    with pytest.raises(UnsupportedModelError, match=r"must be a Qwen2VL.*, got Linear"):
        livecc.apply(torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match="got Qwen2_5_VLForConditionalGeneration"):
        livecc.apply(make_model("qwen2.5-vl"))


# -- with pictures and a chat template ---------------------------------------------------------


def test_pictures_become_turns_of_six_and_then_two(model, tokenizer):
    with livecc.LiveCC(model, tokenizer, "what?", tokens_per_frame=KEPT, max_pixels=28 * 28 * 8,
                       do_sample=False, max_new_tokens=4) as commentary:  # fmt: skip
        comments = []
        for picture in pictures(11):
            comments += list(commentary.push(picture))
            if commentary.past_ids is not None:
                assert commentary.kept_ids.shape[1] == commentary.past_key_values.get_seq_length()
        assert [(c.start, c.stop) for c in comments] == [(0.0, 3.0), (3.0, 4.0), (4.0, 5.0)]
        assert all(len(c.ids) == 4 for c in comments)
        text = tokenizer.decode(commentary.past_ids[0])
        assert text.count("system") == 1
        assert text.count("what?") == 1
        assert text.index("Time=0.0-3.0s") < text.index("Time=3.0-4.0s") < text.index("Time=4.0")
        assert text.count("<|im_end|>\n<|im_start|>user") == 3
        first = commentary.past_ids
        commentary.reset()
        again = list(commentary.push(pictures(10)))
        assert [c.ids.tolist() for c in again] == [c.ids.tolist() for c in comments]
        assert torch.equal(commentary.past_ids, first)
    assert not hasattr(model, "stc")


def test_a_model_accelerated_otherwise_and_a_missing_template_are_refused(model, tokenizer):
    with stc_video.accelerate(model).stc, pytest.raises(AttachError, match=r"not by livecc\.apply"):
        livecc.LiveCC(model, tokenizer)
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="must have a chat template, got none"):
        livecc.LiveCC(model, bare)
    assert not hasattr(model, "stc")
    assert PIXELS == 1176
