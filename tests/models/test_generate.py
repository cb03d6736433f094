# SPDX-License-Identifier: Apache-2.0
"""Every row of docs/generate.md: the stock model's tokens, or a refusal before anything runs."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from case_models import FAMILIES, GREEDY, Case, Collects, make_case, rows, taken
from generate_cases import FORWARD, GENERATE, ONLY
from torch import Tensor

from stc_video import accelerate

TABLES = {"generate": (rows("generate"), GENERATE), "forward": (rows("forward"), FORWARD)}
KEPT = {"llava-onevision": 6, "qwen2-vl": 3, "qwen2.5-vl": 3}
#: arguments by which the tokens of greedy decoding do not change
SAME = {
    "inputs", "streamer", "use_cache", "cache_implementation", "max_cache_len", "assistant_model",
    "prefill_chunk_size", "prompt_lookup_num_tokens", "max_matching_ngram_size", "cache",
    "past_key_values", "output_scores", "output_logits", "output_attentions",
    "output_hidden_states", "num_assistant_tokens", "attention_mask",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold",
}  # fmt: skip
#: parts of what comes back that are not compared
LEFT_OUT = ("cache", "past_key_values", "image_outputs", "video_outputs", "image_hidden_states",
            "video_hidden_states", "rope_deltas")  # fmt: skip
#: what is named when it is refused, where it is another argument that comes along
COMES_WITH = ("assistant_model", "guidance_scale", "num_beam_groups", "diversity_penalty")
#: arguments that say how many tokens are made
COUNTS = {
    "generation_config", "max_new_tokens", "max_length", "stopping_criteria", "max_time",
    "logits_processor",
}  # fmt: skip


@functools.cache
def case_of(family: str) -> Case:
    return make_case(family)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def call(case: Case, name: str, more: dict[str, Any]) -> tuple[Any, Any]:
    """Returns what came back, or the error, and what the streamer saw."""
    given = {**case.inputs, **more}
    if given.get("input_ids", 0) is None:
        del given["input_ids"]
    torch.manual_seed(3)
    function = case.model.generate if name == "generate" else case.model
    try:
        made = function(**given)
    except Exception as error:
        made = error
    streamer = given.get("streamer")
    return made, streamer.seen if isinstance(streamer, Collects) else None


def tensors(value: Any) -> list[Tensor]:
    """All tensors in what came back, but for those of a cache and of the tower."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        own = {k: v for k, v in value.items() if not k.endswith(LEFT_OUT)}
        return [] if "pooler_output" in own else [t for v in own.values() for t in tensors(v)]
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in tensors(part)]
    return []


def sequences(made: Any) -> Tensor:
    return made if isinstance(made, Tensor) else made.sequences


def cases():
    for name, (table, exercises) in TABLES.items():
        for (family, argument), outcome in table.items():
            if argument in taken(name) and family in ONLY.get(argument, FAMILIES):
                for number, make in enumerate(exercises[argument]):
                    yield pytest.param(
                        family, name, argument, outcome, make,
                        # Qwen2.5-VL takes the same way.
                        marks=[pytest.mark.slow] if family == "qwen2-vl" else [],
                        id=f"{family}-{name}-{argument}-{number}",
                    )  # fmt: skip


@pytest.mark.parametrize(("family", "name", "argument", "outcome", "make"), list(cases()))
def test_every_argument_is_the_stock_models_or_refused(family, name, argument, outcome, make):
    case = case_of(family)
    if outcome == "refused":
        ran = []
        hook = case.model.register_forward_pre_hook(lambda *_: ran.append("model"))
        with accelerate(case.model, cache=None, prune="none").stc as handle:
            ran.clear()
            tower = handle.adapter.tower.register_forward_pre_hook(lambda *_: ran.append("tower"))
            made, _ = call(case, name, make(case))
            tower.remove()
        hook.remove()
        assert isinstance(made, ValueError)
        assert ran in ([], ["model"]), "a plain forward alone has been entered"
        assert any(part in str(made) for part in (argument, *COMES_WITH))
        return
    stock, seen = call(case, name, make(case))
    with accelerate(case.model, cache=None, prune="none").stc:
        ours, ours_seen = call(case, name, make(case))
    if isinstance(stock, Exception):  # in this release of transformers
        if not isinstance(ours, Exception):
            assert argument in SAME
            assert torch.equal(sequences(ours), sequences(call(case, name, dict(GREEDY))[0]))
        return
    if isinstance(ours, Exception):
        raise ours
    assert seen == ours_seen
    expected, got = tensors(stock), tensors(ours)
    if argument == "return_dict":  # the tower's outputs come last in a tuple
        expected, got = expected[:1], got[:1]
    assert len(expected) == len(got)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    if name == "generate":
        check_pruned(case, argument, make, sequences(stock))


def check_pruned(case: Case, argument: str, make: Any, stock: Tensor) -> None:
    """With pruning the prompt comes back as given, and the argument means what it means."""
    with accelerate(case.model, cache=None, tokens_per_frame=KEPT[case.family]).stc:
        made, _ = call(case, "generate", make(case))
        if isinstance(made, Exception):
            raise made
        greedy, _ = call(case, "generate", dict(GREEDY))
    made = sequences(made)
    ids = make(case).get("input_ids")
    ids = case.ids if ids is None else ids
    length = ids.shape[1]
    assert torch.equal(made[:, :length], ids.repeat_interleave(len(made) // len(ids), 0))
    if argument in SAME and len(made) == 1 and "num_beams" not in make(case):
        assert torch.equal(made, greedy[:, : made.shape[1]])
    if argument in COUNTS:
        assert made.shape == stock.shape


@pytest.mark.parametrize("name", TABLES)
def test_no_argument_of_the_installed_release_is_missing(name):
    table, exercises = TABLES[name]
    listed = {argument for _, argument in table}
    assert taken(name) <= listed, "not in docs/generate.md"
    assert listed == set(exercises), "in docs/generate.md and tried are not the same"
    assert set(table.values()) == {"works", "refused"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", ["all of it", "projector", "head"])
@torch.enable_grad()
def test_backward_gives_the_stock_gradients_or_raises(family, trained):
    """Pixels and ids come to the language model without gradients."""
    case = make_case(family)
    model = case.model.requires_grad_(trained == "all of it")
    projector = "visual.merger" if "qwen" in family else "multi_modal_projector"
    part = model.lm_head if trained == "head" else model.model.get_submodule(projector)
    part.requires_grad_(True)
    given = {**case.inputs, "labels": case.ids}
    model(**given).loss.backward()
    expected = model.lm_head.weight.grad
    model.zero_grad()
    accelerate(model, None, prune="none")
    loss = model(**given).loss
    if trained == "head":
        loss.backward()
        torch.testing.assert_close(model.lm_head.weight.grad, expected)
    else:
        with pytest.raises(RuntimeError, match="embeddings of a pruned prompt"):
            loss.backward()
