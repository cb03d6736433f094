# SPDX-License-Identifier: Apache-2.0
"""`accelerate`: the processor's full prompt in, the pruned one through the language model."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_llava import GRID, TOKENS, make_model, prompt_ids, video
from torch import Tensor

import stc_video
from stc_video import AttachError, PrunedTokens, Pruner, UnsupportedModelError, accelerate

FRAMES, KEPT, NEW = 5, 6, 5
QUESTION = "what did he put there?"


def arguments(seed: int = 0) -> dict[str, Tensor]:
    ids = prompt_ids(FRAMES, QUESTION)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": video(FRAMES, seed)[None],
    }


def greedy(model, **inputs) -> Tensor:
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None)


def features_by_hand(model, pixels: Tensor) -> Tensor:
    """(F, N, D), by the stock model's own function."""
    inner = model.model
    out = inner.get_video_features(pixels, vision_feature_layer=-1,
                                   vision_feature_select_strategy="full")  # fmt: skip
    rows = getattr(out, "pooler_output", out)[0]
    return rows[: FRAMES * TOKENS].reshape(FRAMES, TOKENS, -1)


def pruned_by_hand(model, inputs, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (1, L, D) of the pruned prompt and the original position of each (1, L)."""
    ids = inputs["input_ids"][0]
    features = features_by_hand(model, inputs["pixel_values_videos"])
    token, parts, places = model.config.video_token_id, [], []
    first = int((ids == token).nonzero()[0])
    embed = model.get_input_embeddings()
    parts.append(embed(ids[:first]))
    places += range(first)
    for frame in range(FRAMES):
        parts.append(features[frame, indices[frame].long()])
        places += [first + frame * TOKENS + int(i) for i in indices[frame]]
    parts.append(model.model.image_newline[None])
    places.append(first + FRAMES * TOKENS)
    parts.append(embed(ids[first + FRAMES * TOKENS + 1 :]))
    places += range(first + FRAMES * TOKENS + 1, len(ids))
    return torch.cat(parts)[None], torch.tensor([places])


def greedy_by_hand(model, embeds: Tensor, positions: Tensor) -> list[int]:
    made: list[int] = []
    for _ in range(NEW):
        lm = model.model.language_model
        hidden = lm(inputs_embeds=embeds, position_ids=positions).last_hidden_state[:, -1]
        made.append(int(model.lm_head(hidden).argmax()))
        new = model.get_input_embeddings()(torch.tensor([[made[-1]]]))
        embeds = torch.cat([embeds, new], 1)
        positions = torch.cat([positions, positions[:, -1:] + 1], 1)
    return made


def test_nothing_pruned_and_nothing_cached_is_the_stock_model(model):
    inputs = arguments()
    logits, answer = model(**inputs).logits, greedy(model, **inputs)
    with accelerate(model, cache=None, prune="none").stc:
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=0)
        assert torch.equal(greedy(model, **inputs), answer)


@pytest.mark.parametrize("positions", ["repacked", "original"])
def test_a_pruned_prompt_equals_one_made_by_hand(model, positions):
    inputs = arguments()
    features = features_by_hand(model, inputs["pixel_values_videos"])
    indices = stc_video.make_pruner("stc", tokens_per_frame=KEPT)(features).indices
    embeds, places = pruned_by_hand(model, inputs, indices)
    if positions == "repacked":
        places = torch.arange(embeds.shape[1])[None]
    lm = model.model.language_model
    hidden = lm(inputs_embeds=embeds, position_ids=places).last_hidden_state
    answer = greedy_by_hand(model, embeds, places)

    with accelerate(model, cache=None, tokens_per_frame=KEPT, positions=positions).stc:
        out = model(**inputs).logits
        torch.testing.assert_close(out, model.lm_head(hidden), atol=1e-5, rtol=0)
        made = greedy(model, **inputs)
    assert torch.equal(made[:, :-NEW], inputs["input_ids"])  # the prompt as it was given
    assert made[0, -NEW:].tolist() == answer


def test_the_two_policies_of_positions_differ(model):
    inputs, found = arguments(), []
    for positions in ("repacked", "original"):
        with accelerate(model, cache=None, tokens_per_frame=KEPT, positions=positions).stc:
            found.append(model(**inputs).logits[:, -1])
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize("positions", ["repacked", "original"])
def test_a_padded_batch_and_beams_equal_the_rows_alone(model, positions):
    both = [arguments(0), arguments(1)]
    longer = prompt_ids(FRAMES, QUESTION + " and why?")
    both[1]["input_ids"], both[1]["attention_mask"] = longer, torch.ones_like(longer)
    missing = longer.shape[1] - both[0]["input_ids"].shape[1]
    batch = {
        "input_ids": torch.cat(
            [torch.nn.functional.pad(both[0]["input_ids"], (missing, 0), value=256), longer]
        ),
        "attention_mask": torch.cat(
            [torch.nn.functional.pad(both[0]["attention_mask"], (missing, 0)),
             both[1]["attention_mask"]]
        ),
        "pixel_values_videos": torch.cat([one["pixel_values_videos"] for one in both]),
    }  # fmt: skip
    with accelerate(model, tokens_per_frame=KEPT, positions=positions).stc:
        alone = [greedy(model, **one)[0, -NEW:].tolist() for one in both]
        together = greedy(model, **batch)
        assert together[:, -NEW:].tolist() == alone
        assert torch.equal(together[:, :-NEW], batch["input_ids"])
        beams = model.generate(
            **both[0], max_new_tokens=NEW, num_beams=2, num_return_sequences=2, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        assert beams.shape == (2, both[0]["input_ids"].shape[1] + NEW)


class Odd(Pruner):
    """Keeps a different number of each frame."""

    exact = False

    def _choose(self, given):
        frames, tokens = given.features.shape[:2]
        indices = torch.arange(tokens, dtype=torch.int32).repeat(frames, 1)
        counts = torch.arange(frames) % 4 + 2
        return indices.masked_fill(indices >= counts[:, None], -1), None, {}


def test_a_variable_count_and_two_videos_in_one_prompt(model):
    pixels = torch.cat([video(FRAMES, 0)[None], video(FRAMES, 1)[None]])
    ids = prompt_ids(FRAMES, QUESTION, videos=2)
    with accelerate(model, cache=None, prune=Odd()).stc as handle:
        kept = sum(
            int((handle.prune(handle.encode(p, "x"), "x").indices >= 0).sum()) for p in pixels
        )
        out = model(input_ids=ids, pixel_values_videos=pixels).logits
    assert out.shape[1] == ids.shape[1] - 2 * FRAMES * TOKENS + kept


def test_each_call_is_a_stream_of_its_own(model):
    with accelerate(model, tokens_per_frame=KEPT).stc as handle:
        first = greedy(model, **arguments(0))
        greedy(model, **arguments(1))
        assert torch.equal(greedy(model, **arguments(0)), first)
        assert handle.cacher.stats().cached > 0
        assert handle.cacher.stats().state_bytes == handle.pruner.state_bytes == 0


def test_threads_may_generate_at_the_same_time(model):
    with accelerate(model, tokens_per_frame=KEPT, positions="original").stc:
        alone = [greedy(model, **arguments(seed)).tolist() for seed in range(3)]
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(greedy, model, **arguments(s)) for s in (0, 1, 2) * 3]
            assert [future.result().tolist() for future in futures] == alone * 3


def test_text_and_images_pass_as_if_nothing_were_attached(model):
    ids = prompt_ids(0, QUESTION)[:, :10]
    image = video(2)[None]  # the whole picture and one tile of it
    side = 2 * GRID
    image_ids = torch.full((1, side * side + side * (side + 1)), model.config.image_token_id)
    with_image = {"input_ids": torch.cat([image_ids, ids], 1), "pixel_values": image,
                  "image_sizes": torch.tensor([[112, 112]])}  # fmt: skip
    text, picture = model(input_ids=ids).logits, model(**with_image).logits
    with accelerate(model).stc as handle:
        assert torch.equal(model(input_ids=ids).logits, text)
        assert torch.equal(model(**with_image).logits, picture)
        assert handle.cacher.stats().frames == 0


def test_restore_leaves_the_model_as_it_was(model):
    before = dict(model.__dict__), list(model.state_dict())
    inputs = arguments()
    logits = model(**inputs).logits
    handle = accelerate(model, tokens_per_frame=KEPT).stc
    assert list(model.state_dict()) == before[1]
    with pytest.raises(AttachError, match="accelerated already"):
        accelerate(model)
    handle.restore()
    handle.restore()
    assert model.__dict__.keys() == before[0].keys()
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": "gappy"}, "positions must be one of repacked, original, got 'gappy'"),
        ({"prune": "no"}, "name must be one of"),
        ({"tokens_per_frame": 0}, "tokens_per_frame must be at least 1"),
        ({"cache": "fast"}, "policy must be one of"),
        ({"prune": Odd(), "alpha": 0.5}, "settings of a pruner go with its name"),
    ],
)
def test_a_wrong_setting_leaves_the_model_untouched(model, settings, message):
    before = set(model.__dict__)
    with pytest.raises(ValueError, match=message):
        accelerate(model, **settings)
    assert set(model.__dict__) == before
    accelerate(model).stc.restore()


@pytest.mark.parametrize("failing", ["forward", "generate", "stc"])
def test_failing_at_any_step_leaves_the_model_untouched(model, monkeypatch, failing):
    def contents() -> list[tuple[str, list[str]]]:
        return [(name, sorted(vars(module))) for name, module in model.named_modules()]

    def refuse(self, name, value):
        if name == failing:
            raise RuntimeError("no")
        torch.nn.Module.__setattr__(self, name, value)

    # transformers leaves marks of its own on modules when they are first called.
    accelerate(model).stc.restore()
    inputs = arguments()
    logits = model(**inputs).logits
    before = contents()
    with monkeypatch.context() as patched:
        patched.setattr(type(model), "__setattr__", refuse)
        with pytest.raises(RuntimeError, match="no"):
            accelerate(model)
    assert contents() == before
    assert torch.equal(model(**inputs).logits, logits)
    accelerate(model).stc.restore()


def test_other_models_and_wrong_prompts_are_refused(model):
    with pytest.raises(UnsupportedModelError, match="got Linear"):
        accelerate(torch.nn.Linear(2, 2))

    class Wrapper(torch.nn.Module):
        """As PEFT's: it has whatever the model inside it has."""

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    wrapper = Wrapper()
    wrapper.model = model
    with pytest.raises(UnsupportedModelError, match=r"got Wrapper \(model type llava_onevision\)"):
        accelerate(wrapper)
    inputs = arguments()
    with accelerate(model).stc:
        inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:, 1:]
        with pytest.raises(ValueError, match=r"1 videos of 4 frames need 65 placeholders .*got 81"):
            model(**inputs)


def test_pruned_tokens_are_those_of_the_pruner(model):
    with accelerate(model, cache=None, tokens_per_frame=KEPT).stc as handle:
        kept = handle.prune(handle.encode(video(FRAMES), "a"), "a")
        assert isinstance(kept, PrunedTokens)
        expected = features_by_hand(model, video(FRAMES)[None])
    places = kept.indices.long()[..., None].expand(-1, -1, expected.shape[-1])
    torch.testing.assert_close(kept.tokens, expected.gather(1, places), atol=1e-6, rtol=0)


class TestCopies:
    """A copy of an accelerated model is a stock model; the original stays accelerated."""

    @staticmethod
    def _saved(model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    def test_a_deep_copy_is_stock(self, model):
        expected = greedy(model, **arguments())
        with accelerate(model, tokens_per_frame=KEPT).stc as handle:
            pruned = greedy(model, **arguments())
            twin = copy.deepcopy(model)
            assert twin.stc is None
            frames = handle.cacher.stats().frames
            assert torch.equal(greedy(twin, **arguments()), expected)
            assert handle.cacher.stats().frames == frames
            assert torch.equal(greedy(model, **arguments()), pruned)
            assert handle.cacher.stats().frames == frames + FRAMES
        with accelerate(twin, tokens_per_frame=KEPT).stc:
            assert torch.equal(greedy(twin, **arguments()), pruned)
        assert torch.equal(greedy(twin, **arguments()), expected)

    @pytest.mark.parametrize("way", ["pickle", "torch.save"])
    def test_a_pickled_model_is_stock(self, model, way):
        expected = greedy(model, **arguments())
        fresh = make_model()  # once it has run, transformers' own hooks do not pickle
        with accelerate(fresh, tokens_per_frame=KEPT).stc as handle:
            twin = pickle.loads(pickle.dumps(fresh)) if way == "pickle" else self._saved(fresh)
            assert torch.equal(greedy(twin, **arguments()), expected)
            assert handle.cacher.stats().frames == 0
            greedy(fresh, **arguments())
            assert handle.cacher.stats().frames == FRAMES

    def test_the_signatures_are_those_of_the_stock_model(self, model):
        before = [inspect.signature(method) for method in (model.forward, model.generate)]
        with accelerate(model, tokens_per_frame=KEPT).stc:
            after = [inspect.signature(method) for method in (model.forward, model.generate)]
            assert (model.generate.__name__, after) == ("generate", before)
