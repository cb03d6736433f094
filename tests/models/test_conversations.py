# SPDX-License-Identifier: Apache-2.0
"""Turns, copies, lists of videos and arguments that nobody knows."""

from __future__ import annotations

import copy

import pytest
import tiny_llava
import torch
import transformers
from case_models import FAMILIES, NEW, is_llava, make_case
from tiny_qwen_vl import END, START, VIDEO, grid_of
from tiny_qwen_vl import video as rows
from transformers import DynamicCache

from stc_video import StreamingSession, accelerate

GREEDY = {"max_new_tokens": NEW, "do_sample": False}
SETTINGS = [
    {"cache": None, "prune": "none"},
    {"cache": None, "tokens_per_frame": 3},
]


@pytest.fixture(scope="module", params=[FAMILIES[0], FAMILIES[2]])
def case(request):
    return make_case(request.param)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def second_video(case):
    """Ids and pixels of a turn about another video."""
    if is_llava(case):
        token = case.model.config.video_token_id
        ids = [70, *[token] * (3 * tiny_llava.TOKENS + 1), 71]
        return torch.tensor([ids]), {"pixel_values_videos": tiny_llava.video(3, 5)[None]}
    ids = [70, START, *[VIDEO] * 18, END, 71]
    new = {"pixel_values_videos": rows(3, 5), "video_grid_thw": grid_of(3)}
    return torch.tensor([ids]), new


def both(case, new):
    """Pixels of the whole conversation."""
    if is_llava(case):
        videos = (case.inputs["pixel_values_videos"], new["pixel_values_videos"])
        return {"pixel_values_videos": [v[0] for v in videos]}
    return {k: torch.cat([case.inputs[k], new[k]]) for k in new}


def old(case):
    return {k: v for k, v in case.inputs.items() if "video" in k}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("again", [False, True])
def test_turns_from_a_cache_equal_the_whole_conversation(case, settings, again):
    words = torch.tensor([[21, 22, 23, 24]])
    ids, new = second_video(case)
    with accelerate(case.model, **settings).stc:
        cache = DynamicCache()
        said = case.model.generate(**case.inputs, **GREEDY, past_key_values=cache)
        said = torch.cat([said, words], 1)
        pixels = old(case) if again else {}
        whole = case.model.generate(input_ids=said, **old(case), **GREEDY)
        said = case.model.generate(input_ids=said, **pixels, **GREEDY, past_key_values=cache)
        assert torch.equal(said, whole)
        said = torch.cat([said, ids], 1)
        whole = case.model.generate(input_ids=said, **both(case, new), **GREEDY)
        pixels = both(case, new) if again else new
        said = case.model.generate(input_ids=said, **pixels, **GREEDY, past_key_values=cache)
        assert torch.equal(said, whole)


def test_a_copied_cache_goes_on_and_so_does_another_acceleration(case):
    first, second = torch.tensor([[21, 22]]), torch.tensor([[33, 34, 35]])
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc:
        cache = DynamicCache()
        said = case.model.generate(**case.inputs, **GREEDY, past_key_values=cache)
        expected = [
            case.model.generate(input_ids=torch.cat([said, more], 1), **old(case), **GREEDY)
            for more in (first, second)
        ]
        for more, answer in zip((first, second), expected, strict=True):
            made = case.model.generate(
                input_ids=torch.cat([said, more], 1),
                past_key_values=copy.deepcopy(cache),
                **GREEDY,
            )
            assert torch.equal(made, answer)
    with accelerate(case.model, cache=None, tokens_per_frame=2).stc:
        given = torch.cat([said, first], 1)
        made = case.model.generate(input_ids=given, past_key_values=cache, **GREEDY)
        assert torch.equal(made, expected[0])


def test_a_loop_over_forward_after_a_padded_prompt_goes_on_with_and_without_a_mask(case):
    given = dict(case.inputs)
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc as handle:
        expected = case.model.generate(**given, **GREEDY)[0, case.length :].tolist()
        for with_mask in (False, True):
            out = case.model(**given, use_cache=True)
            cache, made = getattr(out, "cache", None) or out.past_key_values, []
            mask = given["attention_mask"]
            while True:
                made.append(int(out.logits[0, -1].argmax()))
                if len(made) == NEW:
                    break
                mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
                more = {"attention_mask": mask} if with_mask else {}
                step = torch.tensor([made[-1:]])
                out = case.model(input_ids=step, past_key_values=cache, use_cache=True, **more)
            assert made == expected
        with pytest.raises(ValueError, match="position_ids cannot be given for a cache"):
            case.model(
                input_ids=step, past_key_values=cache, position_ids=torch.tensor([[case.length]])
            )
        assert handle.adapter is not None


def test_a_list_of_videos_of_different_lengths(case):
    ids, new = second_video(case)
    given = torch.cat([case.ids, ids], 1)
    pixels = both(case, new)
    listed = pixels | {
        "pixel_values_videos": [case.inputs["pixel_values_videos"], new["pixel_values_videos"]]
    }
    with accelerate(case.model, cache=None, prune="none").stc:
        made = case.model.generate(input_ids=given, **listed, **GREEDY)
        assert torch.equal(made, case.model.generate(input_ids=given, **pixels, **GREEDY))


def test_steps_that_generate_compiles_are_the_same(case):
    """A static cache is compiled on a GPU, and on a CPU if it must be."""
    compiled = transformers.CompileConfig(backend="eager", mode=None)
    compiled._compile_all_devices = True
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc:
        made = case.model.generate(
            **case.inputs, **GREEDY, cache_implementation="static", compile_config=compiled
        )
        assert torch.equal(made, case.model.generate(**case.inputs, **GREEDY))


def test_an_unknown_argument_with_a_value_per_token_is_refused(case):
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc:
        for value in (torch.zeros(1, case.length), {"a": [torch.zeros(2, case.length, 3)]}):
            with pytest.raises(ValueError, match=r"novel_ids cannot be used .* is not known"):
                case.model(**case.inputs, novel_ids=value)
        case.model(**case.inputs, novel=torch.zeros(3))


@pytest.mark.parametrize("name", ["inputs", "max_length"])
def test_what_cannot_be_is_refused_before_a_frame_is_encoded(case, name):
    value = {"inputs": case.ids, "max_length": case.length}[name]
    with accelerate(case.model).stc as handle:
        with pytest.raises(ValueError, match=name):
            case.model.generate(**case.inputs, **{name: value})
        assert handle.cacher.stats().frames == 0


def test_a_placeholder_too_many_is_refused(case):
    token = case.model.config.video_token_id
    ids = torch.cat([case.ids, torch.tensor([[token, 9]])], 1)
    given = {"input_ids": ids, **old(case)}
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc:
        with pytest.raises(ValueError, match="placeholders"):
            case.model.generate(**given, **GREEDY)
        cache = DynamicCache()
        said = case.model.generate(**case.inputs, **GREEDY, past_key_values=cache)
        said = torch.cat([said, torch.tensor([[token, 9]])], 1)
        with pytest.raises(ValueError, match="placeholders"):
            case.model.generate(input_ids=said, past_key_values=cache, **GREEDY)


def test_a_question_with_the_placeholder_and_settings_that_mean_nothing_are_refused():
    model, tokenizer = tiny_llava.make_model(), tiny_llava.make_tokenizer()
    with StreamingSession(model, tokenizer, tokens_per_frame=6) as session:
        session.push(tiny_llava.video(2))
        with pytest.raises(ValueError, match="must not contain <video>"):
            session.ask("what does <video> mean?")
        with pytest.raises(ValueError, match="must not contain <video>"):
            session.ask("why?", history=[("a <video>?", "yes")])
        for name, value in (("max_length", 90), ("num_beams", 2), ("input_ids", 1)):
            with pytest.raises(ValueError, match=f"ask: {name} is not supported"):
                session.ask("why?", **{name: value})
        assert len(session.ask("why?", num_beams=1, max_new_tokens=2).ids) <= 2


def said_of_text(model, cache):
    """Logits of a prompt of text and of steps behind it, from an empty cache."""
    logits, ids = [], torch.tensor([[21, 22, 23, 24]])
    for _ in range(3):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits.append(out.logits[0, -1])
        ids = logits[-1].argmax().view(1, 1)
    return torch.stack(logits)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_cache_that_was_emptied_begins_another_conversation(case, kind):
    def make():
        if kind == "dynamic":
            return DynamicCache()
        return transformers.StaticCache(case.model.config.get_text_config(), max_cache_len=200)

    with accelerate(case.model, cache=None, tokens_per_frame=3, positions="original").stc:
        cache = make()
        case.model(**case.inputs, past_key_values=cache, use_cache=True)
        cache.reset() if kind == "static" else cache.crop(-cache.get_seq_length())
        said = said_of_text(case.model, cache)
        # The stock Qwen-VL, too, goes by the last video here, whatever the cache.
        expected = said_of_text(case.model, make())
        torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)


def test_a_cache_without_a_part_of_the_last_prompt_is_refused(case):
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc:
        cache = DynamicCache()
        case.model(**case.inputs, past_key_values=cache, use_cache=True)
        held = cache.get_seq_length()
        cache.crop(-2)
        with pytest.raises(ValueError, match=f"hold the {held} tokens of the last prompt, got"):
            case.model(input_ids=torch.tensor([[21]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", ["prompt_lookup_num_tokens", "assistant_model"])
def test_a_second_turn_with_guessed_tokens_is_refused_by_its_reason(name):
    case = make_case(FAMILIES[0])
    guess = {name: 3 if name == "prompt_lookup_num_tokens" else tiny_llava.make_model(2)}
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc:
        cache = DynamicCache()
        said = case.model.generate(**case.inputs, **GREEDY, past_key_values=cache)
        given = {"input_ids": torch.cat([said, torch.tensor([[21, 22]])], 1)}
        with pytest.raises(ValueError, match=f"{name} cannot .*: the cache has tokens already"):
            case.model.generate(**given, **GREEDY, past_key_values=cache, **guess)
