# SPDX-License-Identifier: Apache-2.0
"""Every setting of ``generate`` in an answer of a session: the stock model's tokens, or refused."""

from __future__ import annotations

import functools

import pytest
import tiny_llava
import torch
import transformers
from case_models import FAMILIES, FRAMES, GREEDY, NEW, Case, assistant, make_case, taken
from generate_cases import GENERATE, ONLY
from packaging.version import Version
from transformers import GenerationConfig

from stc_video import StreamingSession

RELEASE = Version(transformers.__version__)

QUESTION = "why?"
#: refused whatever the value; others are refused or give the stock model's tokens
REFUSED = {
    "assistant_model", "attention_mask", "cache", "cache_implementation", "custom_generate",
    "inputs", "max_length", "min_length", "num_beams", "pixel_values_videos",
    "prompt_lookup_num_tokens", "token_healing", "use_cache",
}  # fmt: skip
#: looks at the prompt's tokens, of which those before the question are placeholders in an answer
LOOKS_AT_PROMPT = "logits_processor-0"


@functools.cache
def case() -> Case:
    return make_case(FAMILIES[0])


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def session():
    model, tokenizer = case().model, case().tokenizer
    with StreamingSession(model, tokenizer, memory="plain", cache=None, prune="none") as made:
        made.push(tiny_llava.video(FRAMES))
        yield made


def cases():
    for argument in sorted(taken("generate") & set(GENERATE)):
        for number, make in enumerate(GENERATE[argument]):
            name = f"{argument}-{number}"
            if FAMILIES[0] in ONLY.get(argument, FAMILIES) and name != LOOKS_AT_PROMPT:
                yield pytest.param(argument, make, id=name)


@pytest.mark.parametrize(("argument", "make"), list(cases()))
def test_every_setting_is_the_stock_models_or_refused(session, argument, make):
    settings = make(case())
    settings.pop("streamer", None)
    ran, made, refusal = [], None, ""
    hook = case().model.lm_head.register_forward_pre_hook(lambda *_: ran.append("model"))
    torch.manual_seed(3)
    try:
        made = session.ask(QUESTION, **settings).ids
    except ValueError as error:
        refusal = str(error)
    hook.remove()
    if made is None:
        assert refusal.startswith("ask: ") or "trust_remote_code" in refusal
        assert not ran
        return
    assert argument not in REFUSED
    if "repetition_penalty" in argument and Version("5.24") > RELEASE:
        return  # it sees other tokens in front of the question: the stock prompt's marks
    torch.manual_seed(3)
    stock = case().model.generate(**case().inputs, **settings)
    stock = stock if isinstance(stock, torch.Tensor) else stock.sequences
    assert made.tolist() == stock[0, case().length :].tolist()


def test_a_configuration_and_the_models_own_are_in_force(session, monkeypatch):
    own, expected = case().model.generation_config, session.ask(QUESTION, **GREEDY).ids.tolist()
    config = GenerationConfig(max_new_tokens=5, do_sample=False)
    made = session.ask(QUESTION, generation_config=config)
    assert (made.ids.tolist(), made.finish_reason) == (expected[:5], "length")
    for settings, message in (
        ({"num_beams": 3}, "num_beams is not supported: there is one context"),
        ({"max_length": 10}, "max_length is not supported: .* use max_new_tokens"),
        ({"min_length": 400}, "min_length is not supported: .* use min_new_tokens"),
        ({"use_cache": False}, "use_cache is not supported: the answer is generated from"),
        ({"prompt_lookup_num_tokens": 3}, "token by token, .* got settings for assisted"),
    ):
        with pytest.raises(ValueError, match=f"ask: .*{message}"):
            session.ask(QUESTION, generation_config=GenerationConfig(**settings))
    monkeypatch.setattr(own, "use_cache", False)  # as after training with recomputation
    monkeypatch.setattr(own, "max_length", 10)
    assert session.ask(QUESTION, **GREEDY).ids.tolist() == expected
    monkeypatch.setattr(own, "max_new_tokens", 3)
    assert session.ask(QUESTION, do_sample=False).ids.tolist() == expected[:3]
    monkeypatch.setattr(own, "prompt_lookup_num_tokens", 3)
    with pytest.raises(ValueError, match="token by token"):
        session.ask(QUESTION, **GREEDY)


def test_an_answer_that_was_cut_off_says_so(session):
    settings = GREEDY | {"max_time": 1e-9}
    assert session.ask(QUESTION, **settings).finish_reason == "length"
    first = int(session.ask(QUESTION, **GREEDY).ids[0])
    for ending in ({"eos_token_id": first}, {"generation_config": GenerationConfig(
        eos_token_id=first, do_sample=False, max_time=9.0)}):  # fmt: skip
        assert session.ask(QUESTION, **ending).finish_reason == "stop"
    made = session.ask(QUESTION, do_sample=False, max_new_tokens=None)
    assert (len(made.ids), made.finish_reason) == (256, "length")


def test_an_assistant_is_refused_before_anything_runs(session):
    with pytest.raises(ValueError, match="got settings for assisted generation"):
        session.ask(QUESTION, **GREEDY, assistant_model=assistant(case()))
    assert len(session.ask(QUESTION, **GREEDY).ids) == NEW
