# SPDX-License-Identifier: Apache-2.0
"""`accelerate` on Qwen2-VL and Qwen2.5-VL: placeholders, M-RoPE positions, several turns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from tiny_qwen_vl import (
    GRID,
    IMAGE,
    NAMES,
    PAD,
    PIXELS,
    TOKENS,
    VIDEO,
    features_by_hand,
    grid_of,
    make_model,
    rope_index,
    stock_inputs,
    token_types,
    turn,
    video,
)  # fmt: skip
from torch import Tensor
from transformers import DynamicCache

import stc_video
from stc_video import AttachError, UnsupportedModelError, accelerate

KEPT, NEW = 3, 5
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return make_model(request.param)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def greedy(model, **inputs):
    settings = {"max_new_tokens": NEW, "do_sample": False}
    return model.generate(**inputs, **settings)


def inputs(frames: int = 3, seed: int = 0, text: tuple[int, ...] = (11, 12, 13)):
    return stock_inputs(turn(list(text), frames), video(frames, seed), grid_of(frames))


class HandWritten:
    """The language model, token by token: kept embeddings, positions of the full conversation."""

    def __init__(self, model, kept: int) -> None:
        self.model, self.cache, self.kept = model, DynamicCache(), kept
        self.ids = torch.empty((1, 0), dtype=torch.long)
        self.grids = torch.empty((0, 3), dtype=torch.long)
        self.fed = 0  # of the full conversation
        self.tokens = 0  # in the cache
        self.next = 0  # position

    def feed(self, embeds: Tensor, positions: Tensor) -> Tensor:
        out = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        self.tokens += embeds.shape[1]
        return self.model.lm_head(out.last_hidden_state[:, -1])

    def turn(self, ids: Tensor, pixels: Tensor, grids: Tensor) -> list[int]:
        """Answer to one more turn; ``ids`` are those of the whole conversation."""
        self.grids = torch.cat([self.grids, grids])
        positions = rope_index(self.model, ids, self.grids)[:, :, self.fed :]
        new = ids[:, self.fed :]
        embeds = self.model.get_input_embeddings()(new)
        keep = torch.ones_like(new, dtype=torch.bool)
        places = (new[0] == VIDEO).nonzero()[:, 0]
        features = features_by_hand(self.model, pixels, grids)
        for video_features in features:
            pruner = stc_video.make_pruner("stc", tokens_per_frame=self.kept)
            side = GRID[0] // 2, GRID[1] // 2
            chosen = pruner(video_features, grid=side).indices
            for frame, row in enumerate(video_features):
                for place in range(TOKENS):
                    at = int(places[0])
                    places = places[1:]
                    embeds[0, at] = row[place]
                    keep[0, at] = place in chosen[frame].tolist()
        logits = self.feed(embeds[:, keep[0]], positions[:, :, keep[0]])
        self.fed, made, place = ids.shape[1], [int(logits.argmax())], int(positions[0, 0, -1]) + 1
        while len(made) < NEW:
            token = self.model.get_input_embeddings()(torch.tensor([made[-1:]]))
            logits = self.feed(token, torch.full((3, 1, 1), place))
            self.fed, place = self.fed + 1, place + 1
            made.append(int(logits.argmax()))
        self.next = place
        return made


# -- one turn ----------------------------------------------------------------------------------


def test_nothing_pruned_and_nothing_cached_is_the_stock_model(model):
    given = inputs()
    logits, answer = model(**given).logits, greedy(model, **given)
    with accelerate(model, cache=None, prune="none").stc:
        torch.testing.assert_close(model(**given).logits, logits, **CLOSE)
        assert torch.equal(greedy(model, **given), answer)


def test_kept_tokens_keep_their_positions(model):
    given = inputs(frames=4)
    seen = []
    with accelerate(model, cache=None, tokens_per_frame=KEPT).stc as handle:
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _m, _a, kw: seen.append(kw["position_ids"]), with_kwargs=True
        )
        logits = model(**given).logits
        pruned = handle.prune(
            features_by_hand(model, given["pixel_values_videos"], grid_of(4))[0], "x", (2, 3)
        )
    hook.remove()
    full = rope_index(model, given["input_ids"], grid_of(4))[:, 0]
    is_video = given["input_ids"][0] == VIDEO
    start = int(full[0, is_video.nonzero()[0, 0]])
    t, h, w = pruned.positions((2, 3)).flatten(0, 1).T
    step = full[0, is_video].unique().diff()[0]
    expected = torch.stack([t * step, h, w]) + start
    places = seen[0][-3:, 0]
    assert logits.shape[1] == places.shape[1] == full.shape[1] - 4 * (TOKENS - KEPT)
    first = int(is_video.nonzero()[0, 0])
    assert torch.equal(places[:, first : first + 4 * KEPT], expected.to(places))
    text = ~is_video
    assert torch.equal(places[:, -4:], full[:, text][:, -4:])


# -- several turns -----------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [KEPT, TOKENS])
def test_turns_through_generate_equal_a_hand_written_loop(model, kept):
    turns = [((11, 12), 3, 0), ((13,), 0, 0), ((14, 15, 16), 2, 1), ((17,), 1, 2)]
    by_hand, cache = HandWritten(model, kept), DynamicCache()
    ids = torch.empty((1, 0), dtype=torch.long)
    none = torch.empty((0, PIXELS)), torch.empty((0, 3), dtype=torch.long)
    expected, whole = [], ids
    for text, frames, seed in turns:
        whole = torch.cat([whole, turn(list(text), frames)], 1)
        new = (video(frames, seed), grid_of(frames)) if frames else none
        expected.append(by_hand.turn(whole, *new))
        whole = torch.cat([whole, torch.tensor([expected[-1]])], 1)
    with accelerate(model, cache=None, tokens_per_frame=kept).stc:
        for number, (text, frames, seed) in enumerate(turns):
            ids = torch.cat([ids, turn(list(text), frames)], 1)
            new = {}
            if frames:
                new = {
                    "pixel_values_videos": video(frames, seed),
                    "video_grid_thw": grid_of(frames),
                }
            given = ids
            ids = greedy(model, input_ids=given, past_key_values=cache, **new)
            assert torch.equal(ids[:, : given.shape[1]], given)
            assert ids[0, given.shape[1] :].tolist() == expected[number], f"turn {number}"
            frames_so_far = sum(frames for _, frames, _ in turns[: number + 1])
            assert cache.get_seq_length() == ids.shape[1] - 1 - frames_so_far * (TOKENS - kept)
            # Where the model itself would go on: at the position of its last token.
            at = int(model.model.rope_deltas) + cache.get_seq_length()
            full = rope_index(model, ids, all_grids(turns[: number + 1]))
            assert at == int(full[0, 0, -1])
    assert by_hand.tokens == cache.get_seq_length()


def all_grids(turns) -> Tensor:
    return torch.cat([grid_of(frames) for _, frames, _ in turns if frames])


def test_turns_equal_the_whole_conversation_at_once(model):
    """Nothing pruned: a cache that grows turn by turn, and the stock model without one."""
    first, second = turn([11, 12], 3), turn([13, 14], 2)
    cache = DynamicCache()
    with accelerate(model, cache=None, prune="none").stc:
        ids = greedy(model, past_key_values=cache, **inputs(3, 0, (11, 12)))
        ids = torch.cat([ids, second], 1)
        new = {"pixel_values_videos": video(2, 1), "video_grid_thw": grid_of(2)}
        got = greedy(model, input_ids=ids, past_key_values=cache, **new)
    assert torch.equal(ids[:, : first.shape[1]], first)
    grids = torch.cat([grid_of(3), grid_of(2)])
    whole = stock_inputs(ids, torch.cat([video(3, 0), video(2, 1)]), grids)
    assert torch.equal(got, greedy(model, **whole))


def test_a_hand_made_loop_over_forward_goes_on_at_the_right_positions(model):
    given = inputs()
    with accelerate(model, cache=None, tokens_per_frame=KEPT).stc:
        expected = greedy(model, **given)[0, -NEW:].tolist()
        cache = DynamicCache()
        out = model(**given, past_key_values=cache, use_cache=True)
        made = [int(out.logits[0, -1].argmax())]
        while len(made) < NEW:
            out = model(input_ids=torch.tensor([made[-1:]]), past_key_values=cache, use_cache=True)
            made.append(int(out.logits[0, -1].argmax()))
    assert made == expected


def test_images_and_two_videos_and_a_padded_batch(model):
    """Two rows: one with an image and a video, one with two videos, of different lengths."""
    image = [192, *[IMAGE] * TOKENS, 193]
    rows = [
        torch.cat([torch.tensor([[3, *image]]), turn([11], 2)], 1),
        torch.cat([turn([12], 1), turn([13, 14, 15], 3)], 1),
    ]
    longest = max(row.shape[1] for row in rows)
    ids = torch.cat(
        [torch.nn.functional.pad(r, (longest - r.shape[1], 0), value=PAD) for r in rows]
    )
    pixels = [video(2, 0), video(1, 1), video(3, 2)]
    both = {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values": video(1, 5),
        "image_grid_thw": grid_of(1),
        "pixel_values_videos": torch.cat(pixels),
        "video_grid_thw": torch.cat([grid_of(2), grid_of(1), grid_of(3)]),
    }
    alone = [
        {"input_ids": rows[0], "pixel_values": video(1, 5), "image_grid_thw": grid_of(1),
         "pixel_values_videos": pixels[0], "video_grid_thw": grid_of(2)},
        {"input_ids": rows[1], "pixel_values_videos": torch.cat(pixels[1:]),
         "video_grid_thw": torch.cat([grid_of(1), grid_of(3)])},
    ]  # fmt: skip
    with accelerate(model, tokens_per_frame=KEPT).stc as handle:
        one_by_one = [greedy(model, **one)[0, -NEW:].tolist() for one in alone]
        together = greedy(model, **both)
        assert together[:, -NEW:].tolist() == one_by_one
        assert torch.equal(together[:, :-NEW], ids)
        beams = model.generate(**alone[0], max_new_tokens=NEW, num_beams=2, num_return_sequences=2,
                               do_sample=False)  # fmt: skip
        assert beams.shape == (2, rows[0].shape[1] + NEW)
        uncached = greedy(model, **alone[0], use_cache=False)[0, -NEW:].tolist()
        assert uncached == one_by_one[0]
        assert handle.cacher.stats().cached > 0
        assert handle.cacher.stats().state_bytes == handle.pruner.state_bytes == 0


def test_unpruned_the_batch_is_the_stock_model(model):
    rows = [turn([11], 2), turn([13, 14, 15], 3)]
    longest = rows[1].shape[1]
    ids = torch.cat(
        [torch.nn.functional.pad(r, (longest - r.shape[1], 0), value=PAD) for r in rows]
    )
    both = stock_inputs(
        ids, torch.cat([video(2, 0), video(3, 1)]), torch.cat([grid_of(2), grid_of(3)])
    )
    both["attention_mask"] = (ids != PAD).long()
    expected = greedy(model, **both)
    with accelerate(model, cache=None, prune="none").stc:
        assert torch.equal(greedy(model, **both), expected)


def test_second_per_grid_ts_reaches_the_positions(model):
    if "2_5" not in type(model).__name__:
        pytest.skip("only Qwen2.5-VL has absolute time")
    given = inputs() | {"second_per_grid_ts": torch.tensor([3.0])}
    logits = model(**given).logits
    with accelerate(model, cache=None, prune="none").stc:
        torch.testing.assert_close(model(**given).logits, logits, **CLOSE)
        other = given | {"second_per_grid_ts": torch.tensor([1.0])}
        assert (model(**other).logits - logits).abs().max() > 1e-3


# -- everything around it ----------------------------------------------------------------------


def test_text_passes_as_if_nothing_were_attached(model):
    text = {"input_ids": turn([11, 12, 13])}
    logits, answer = model(**text).logits, greedy(model, **text)
    with accelerate(model).stc:
        assert torch.equal(model(**text).logits, logits)
        assert torch.equal(greedy(model, **text), answer)


def test_threads_may_generate_at_the_same_time(model):
    with accelerate(model, tokens_per_frame=KEPT).stc:
        alone = [greedy(model, **inputs(seed=seed)).tolist() for seed in range(3)]
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(greedy, model, **inputs(seed=s)) for s in (0, 1, 2) * 2]
            assert [future.result().tolist() for future in futures] == alone * 2


def test_restore_leaves_the_model_as_it_was(model):
    before, deltas = dict(model.__dict__), model.model.rope_deltas
    answer = greedy(model, **inputs())
    handle = accelerate(model, tokens_per_frame=KEPT).stc
    with pytest.raises(AttachError, match="accelerated already"):
        accelerate(model)
    greedy(model, **inputs())
    handle.restore()
    handle.restore()
    assert model.__dict__.keys() == before.keys()
    assert "forward" not in model.model.visual.merger.__dict__
    assert torch.equal(greedy(model, **inputs()), answer)
    model.model.rope_deltas = deltas


def test_wrong_prompts_are_refused_in_one_sentence(model):
    with accelerate(model, tokens_per_frame=KEPT).stc:
        given = inputs()
        with pytest.raises(
            ValueError, match=r"videos of \[\[3, 4, 6\]\].* need 18 placeholders, got 12"
        ):
            model(**given | {"input_ids": turn([1], 2), "attention_mask": None})
        with pytest.raises(ValueError, match=r"the shape of input_ids \(1, 18\), got \(1, 26\)"):
            model(**given | {"input_ids": turn([1], 2)})
        with pytest.raises(ValueError, match=r"as many places as .* rows \(72\)"):
            model(**given | {"video_grid_thw": grid_of(2)})
        with pytest.raises(ValueError, match="need video_grid_thw, got none"):
            model(**given | {"video_grid_thw": None})
        cache = DynamicCache()
        cache.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), 0)
        with pytest.raises(ValueError, match="only if all of them were made by an accel"):
            greedy(model, **given, past_key_values=cache)
        cache = DynamicCache()
        greedy(model, **given, past_key_values=cache)
        with pytest.raises(ValueError, match="must be one row, the whole conversation"):
            greedy(model, input_ids=turn([1]), past_key_values=cache)


def test_other_models_are_named_and_left_untouched(model, monkeypatch):
    with pytest.raises(ValueError, match="positions must be one of original, got 'repacked'"):
        accelerate(model, positions="repacked")
    monkeypatch.setattr(model.config, "model_type", "qwen9_vl")
    with pytest.raises(UnsupportedModelError, match=r"\(model type qwen9_vl\)"):
        accelerate(model)
    monkeypatch.undo()
    visual = model.model.visual
    del model.model._modules["visual"]
    with pytest.raises(
        UnsupportedModelError, match=rf"{transformers.__version__} has no model.visual"
    ):
        accelerate(model)
    model.model.visual = visual
    assert not {"stc", "forward", "generate"} & model.__dict__.keys()
    assert token_types(inputs()["input_ids"]).sum() > 0
