# SPDX-License-Identifier: Apache-2.0
"""`accelerate` on the whole models of every other family: the stock model, and loops by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_qwen_vl import IMAGE, VIDEO, grid_of, rope_index
from tiny_video_llms import (
    CONFIGS,
    QWEN,
    features_by_hand,
    frame_tokens,
    image_ids,
    image_inputs,
    joined,
    make_model,
    model_names,
    padded,
    prompt,
    video_ids,
    video_inputs,
    with_ids,
)
from torch import Tensor
from transformers.models.gemma3 import modeling_gemma3

import stc_video
from stc_video import CacheConfig, UnsupportedModelError, accelerate
from stc_video.memory.held_cache import empty_cache
from stc_video.models.families import MODEL_FAMILIES

KEPT, NEW = 2, 5
CLOSE = {"atol": 1e-5, "rtol": 0}
GEMMA_TAKES_TURNS = hasattr(modeling_gemma3, "get_block_sequence_ids_for_mask")


#: those with experts go the ways of those without
FAMILIES = [
    pytest.param(name, marks=pytest.mark.long if "moe" in name else ()) for name in model_names()
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[str, Any]:
    return request.param, make_model(request.param)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def greedy(model, **inputs):
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False)


def both(name: str) -> dict[str, Tensor]:
    """An image and a video in one prompt; as pictures they are in the order of the text."""
    ids = prompt(image_ids(name), 11, video_ids(name, 3), 12)
    given = image_inputs(name), video_inputs(name, [(3, 0)])
    if name in (*QWEN, "llava-next-video"):
        return with_ids(name, ids, **given[0], **given[1])
    dim = 1 if name == "smolvlm" else 0
    return with_ids(name, ids, pixel_values=torch.cat([g["pixel_values"] for g in given], dim))


def batch(name: str) -> dict[str, Tensor]:
    """Two rows of different lengths with a video each."""
    other = 3 if name == "llava-next-video" else 2
    rows = prompt(video_ids(name, 3), 11, 12, 13), prompt(video_ids(name, other), 14)
    pixels = video_inputs(name, [(3, 0)]), video_inputs(name, [(other, 1)])
    return with_ids(name, padded(*rows), **joined(name, *pixels))


CASES = {
    "text": lambda name: with_ids(name, prompt(11, 12, 13, 14)),
    "image": lambda name: with_ids(name, prompt(image_ids(name), 11), **image_inputs(name)),
    "video": lambda name: with_ids(
        name, prompt(video_ids(name, 3), 11, 12), **video_inputs(name, [(3, 0)])
    ),
    "two videos": lambda name: with_ids(
        name,
        prompt(video_ids(name, 3), 11, video_ids(name, 3), 12),
        **video_inputs(name, [(3, 0), (3, 1)]),
    ),
    "image and video": both,
    "padded batch": batch,
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_pruned_and_nothing_cached_is_the_stock_model(family, case):
    name, model = family
    given = CASES[case](name)
    logits, answer = model(**given).logits, greedy(model, **given)
    real = given["attention_mask"].bool()
    with accelerate(model, cache=None, prune="none").stc:
        torch.testing.assert_close(model(**given).logits[real], logits[real], **CLOSE)
        assert torch.equal(greedy(model, **given), answer)
    assert "forward" not in vars(model.model) | vars(model)


def test_the_page_has_a_row_for_each_of_these_prompts():
    page = Path(__file__).parents[2].joinpath("docs/generate.md").read_text(encoding="utf-8")
    table = page.split("## Prompts of the other models")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == [*CASES, "turns"]
    assert all(cell.startswith("works") for row in rows for cell in row[1:])
    types = {name.replace("-", "_").replace(".", "_") for name in CONFIGS}
    named = [family.name for family in MODEL_FAMILIES if types & set(family.classes)]
    assert sorted(", ".join(heading[1:]).split(", ")) == sorted(named)


def test_an_image_alone_loses_nothing(family):
    name, model = family
    given = CASES["image"](name)
    answer = greedy(model, **given)
    with accelerate(model, cache=None, tokens_per_frame=KEPT).stc:
        assert torch.equal(greedy(model, **given), answer)


def test_turns_equal_the_whole_conversation_at_once(family):
    """Nothing pruned: a cache that grows turn by turn, and the stock model without one."""
    name, model = family
    first, second = prompt(video_ids(name, 3), 11), prompt(video_ids(name, 3), 12)
    cache = empty_cache(model.config.get_text_config())
    one, two = video_inputs(name, [(3, 0)]), video_inputs(name, [(3, 1)])
    refused = name == "gemma3" and not GEMMA_TAKES_TURNS
    with accelerate(model, cache=None, prune="none").stc:
        ids = greedy(model, past_key_values=cache, **with_ids(name, first, **one))
        ids = torch.cat([ids, second], 1)
        given = {"input_ids": ids, "past_key_values": cache, **two}
        if refused:
            with pytest.raises(UnsupportedModelError, match="only in the first turn"):
                greedy(model, **given)
            return
        made = greedy(model, **given)
    whole = with_ids(name, ids, **video_inputs(name, [(3, 0), (3, 1)]))
    assert torch.equal(made, greedy(model, **whole))


class HandWritten:
    """The language model, token by token: kept embeddings, positions of the full conversation."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self.cache = empty_cache(model.config.get_text_config())
        self.ids = torch.empty((1, 0), dtype=torch.long)
        self.frames: list[int] = []
        self.fed = self.tokens = 0
        self.read: list[tuple[Tensor, Tensor]] = []

    def positions(self, ids: Tensor) -> Tensor | None:
        """Positions (3, 1, L) of a whole conversation, None if they are in a row."""
        if self.name not in QWEN:
            return None
        grids = torch.cat([grid_of(count) for count in self.frames])
        return rope_index(self.model, ids, grids)

    def feed(self, embeds: Tensor, positions: Tensor, deep: list[Tensor], kinds: Tensor) -> Tensor:
        """Logits (V,) behind tokens (n, D), to which deepstack adds (n, D) in each first layer."""
        inner = self.model.model
        more: dict[str, Any] = {}
        if deep:
            pictured = torch.ones((1, len(embeds)), dtype=torch.bool)
            more = {"visual_pos_masks": pictured, "deepstack_visual_embeds": deep}
        called = getattr(inner, "language_model", getattr(inner, "text_model", None))
        if self.name == "gemma3":  # everything anew: pictures are read in both directions
            self.read.append((embeds, kinds))
            embeds, kinds = (torch.cat(parts) for parts in zip(*self.read, strict=True))
            called, positions = inner, torch.arange(len(embeds))[None]
            more = {"token_type_ids": kinds[None]}
            self.cache, self.tokens = empty_cache(self.model.config.get_text_config()), 0
        hidden = called(
            inputs_embeds=embeds[None], position_ids=positions, past_key_values=self.cache,
            use_cache=True, **more,
        ).last_hidden_state  # fmt: skip
        self.tokens += len(embeds)
        return self.model.lm_head(hidden[0, -1])

    def turn(self, ids: Tensor, frames: int, seed: int) -> list[int]:
        """Answer to one more turn with a video; ``ids`` are those of the whole conversation."""
        self.frames.append(frames)
        new = ids[:, self.fed :]
        embed = self.model.get_input_embeddings()
        rows = [embed(new)[0].clone()]
        features = features_by_hand(self.name, self.model, frames, seed)
        rows += [torch.zeros_like(rows[0]) for _ in features[1:]]
        pruner = stc_video.make_pruner("stc", tokens_per_frame=KEPT)
        side = (2, 3) if self.name in QWEN else (2, 2)
        chosen = pruner(features[0], grid=side).indices.tolist()
        keep = torch.ones(new.shape[1], dtype=torch.bool)
        is_frame = (new[0] == VIDEO) | (new[0] == IMAGE)
        for at, place in enumerate(is_frame.nonzero()[:, 0].tolist()):
            frame, token = divmod(at, frame_tokens(self.name))
            keep[place] = token in chosen[frame]
            for row, part in zip(rows, features, strict=True):
                row[place] = part[frame, token]
        full = self.positions(ids)
        if full is None:
            count = int(keep.sum())
            positions = torch.arange(self.tokens, self.tokens + count)[None]
        else:
            positions = full[:, :, self.fed :][:, :, keep]
        kinds = is_frame[keep].long()
        logits = self.feed(rows[0][keep], positions, [row[keep] for row in rows[1:]], kinds)
        place, made = int(positions.flatten()[-1]) + 1, [int(logits.argmax())]
        while len(made) < NEW:
            at = torch.full((3, 1, 1) if full is not None else (1, 1), place)
            logits = self.feed(embed(torch.tensor(made[-1:])), at, [], torch.zeros(1).long())
            made.append(int(logits.argmax()))
            place += 1
        self.fed = ids.shape[1] + NEW - 1
        return made


def test_pruned_turns_through_generate_equal_a_hand_written_loop(family):
    name, model = family
    turns = [(3, 0), (2, 1), (3, 2)]
    if name == "gemma3" and not GEMMA_TAKES_TURNS:
        turns = turns[:1]  # which the test of turns above has refused
    by_hand, expected = HandWritten(name, model), []
    ids = torch.empty((1, 0), dtype=torch.long)
    for frames, seed in turns:
        ids = torch.cat([ids, prompt(video_ids(name, frames), 11 + seed)], 1)
        expected.append(by_hand.turn(ids, frames, seed))
        ids = torch.cat([ids, torch.tensor([expected[-1]])], 1)
    cache = empty_cache(model.config.get_text_config())
    ids = torch.empty((1, 0), dtype=torch.long)
    with accelerate(model, cache=None, tokens_per_frame=KEPT).stc:
        for (frames, seed), answer in zip(turns, expected, strict=True):
            given = torch.cat([ids, prompt(video_ids(name, frames), 11 + seed)], 1)
            new = video_inputs(name, [(frames, seed)])
            ids = greedy(model, input_ids=given, past_key_values=cache, **new)
            assert torch.equal(ids[:, : given.shape[1]], given)
            assert ids[0, given.shape[1] :].tolist() == answer
    assert cache.get_seq_length() == by_hand.tokens


def test_a_padded_batch_is_pruned_row_by_row(family):
    name, model = family
    given = batch(name)
    other = 3 if name == "llava-next-video" else 2
    alone = [
        with_ids(name, prompt(video_ids(name, 3), 11, 12, 13), **video_inputs(name, [(3, 0)])),
        with_ids(name, prompt(video_ids(name, other), 14), **video_inputs(name, [(other, 1)])),
    ]
    with accelerate(model, cache=None, tokens_per_frame=KEPT).stc:
        made = greedy(model, **given)[:, -NEW:]
        for row, inputs in enumerate(alone):
            assert torch.equal(made[row], greedy(model, **inputs)[0, -NEW:])


def test_pictures_and_placeholders_must_fit(family):
    name, model = family
    given = with_ids(name, prompt(video_ids(name, 3), 11), **video_inputs(name, [(2, 0)]))
    with (
        accelerate(model, cache=None, tokens_per_frame=KEPT).stc,
        pytest.raises(ValueError, match="placeholders"),
    ):
        model(**given)


def test_a_pruner_that_merges_is_refused_where_first_layers_have_features_of_their_own(family):
    name, model = family
    if name not in ("qwen3-vl", "qwen3-vl-moe"):
        accelerate(model, cache=None, prune="tome", tokens_per_frame=KEPT).stc.restore()
        return
    with pytest.raises(ValueError, match="choose a pruner that keeps tokens as they are"):
        accelerate(model, cache=None, prune="tome", tokens_per_frame=KEPT)
    assert not hasattr(model, "stc")
    assert "forward" not in vars(model.model.language_model)


def test_a_cacher_that_encodes_every_row_is_the_stock_model(family):
    name, model = family
    given = CASES["two videos"](name)
    answer = greedy(model, **given)
    every_row = CacheConfig(policy="stc", ratio=1.0, interval=100)
    try:
        handle = accelerate(model, cache=every_row, prune="none").stc
    except UnsupportedModelError:
        assert name == "internvl"  # refused where the table of blocks has no row for its tower
        assert not hasattr(model, "stc")
        return
    with handle:
        assert torch.equal(greedy(model, **given), answer)
        assert handle.cacher.stats().frames == 6
    assert torch.equal(greedy(model, **given), answer)


def test_a_forward_that_was_there_before_is_called_and_stays(family):
    name, model = family
    given, seen = CASES["video"](name), []
    language = getattr(model.model, "language_model", None) or model.model.text_model
    logits, stock = model(**given).logits, language.forward

    def forward(*args, **kwargs):
        seen.append(kwargs)
        return stock(*args, **kwargs)

    language.forward = forward
    try:
        with accelerate(model, cache=None, prune="none").stc:
            seen.clear()
            torch.testing.assert_close(model(**given).logits, logits, **CLOSE)
            assert len(seen) == 1
        assert vars(language)["forward"] is forward
    finally:
        del language.forward
