# SPDX-License-Identifier: Apache-2.0
"""What an acceleration and a session check once, by models that are changed in one respect."""

from __future__ import annotations

import functools
import inspect

import pytest
import tiny_llava
import torch
import transformers
from case_models import FAMILIES, GREEDY, make_case

from stc_video import StreamingSession, UnsupportedModelError, accelerate
from stc_video.cache_argument import CACHE_NAMES


@pytest.fixture(params=FAMILIES)
def case(request):
    return make_case(request.param)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def became(model, **methods):
    """The same model, of a class that differs from its own in some methods."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind,), methods)
    return model


def contents(model):
    made = {n: sorted(vars(m)) for n, m in model.named_modules()}
    return made, model.generation_config, getattr(model.model, "rope_deltas", None)


def renamed(model):
    """A release in which the cache has one more name."""
    kind = type(model)

    def prepare(self, *args, **kwargs):
        made = kind.prepare_inputs_for_generation(self, *args, **kwargs)
        for name in CACHE_NAMES:
            if name in made:
                made["memory"] = made.pop(name)
        return made

    def forward(self, input_ids=None, memory=None, **kwargs):
        name = next(n for n in CACHE_NAMES if n in taken)
        given = {name: memory} if memory is not None else {}
        return kind.forward(self, input_ids=input_ids, **kwargs, **given)

    taken = inspect.signature(kind.forward).parameters
    return became(model, prepare_inputs_for_generation=prepare, forward=forward)


def scaled(model):
    """A release that treats embeddings otherwise than ids."""
    kind = type(model)

    @functools.wraps(kind.forward)
    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is not None:
            inputs_embeds = inputs_embeds * 1.1
        return kind.forward(self, input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)

    return became(model, forward=forward)


def without_embeddings(model):
    """A release that does not take embeddings."""
    kind = type(model)

    @functools.wraps(kind.forward)
    def forward(self, input_ids=None, **kwargs):
        if kwargs.get("inputs_embeds") is not None:
            raise TypeError("forward() got an unexpected keyword argument 'inputs_embeds'")
        return kind.forward(self, input_ids=input_ids, **kwargs)

    return became(model, forward=forward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "step from the cache differ|short prompt fails"),
        (scaled, "logits of a prompt differ from its own"),
        (without_embeddings, "short prompt fails with TypeError.*inputs_embeds"),
    ],
)
def test_a_call_that_means_something_else_is_noticed_when_attached(case, change, message):
    model = change(case.model)
    before = contents(model)
    with pytest.raises(UnsupportedModelError, match=message):
        accelerate(model)
    assert contents(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_passes_in_every_dtype_and_with_settings_of_the_model(case, dtype):
    model = case.model.to(dtype)
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.max_length = 7
    before = contents(model)
    state = torch.get_rng_state()
    accelerate(model, cache=None).stc.restore()
    assert contents(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_it_costs_less_than_a_short_forward_and_later_calls_nothing(case):
    ran: list[tuple[int, int]] = []

    def notice(number):
        def hook(_, args, kwargs):
            ran.append((number, (args[0] if args else kwargs["hidden_states"]).shape[1]))

        return hook

    layers = case.model.model.language_model.layers
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(notice(number), with_kwargs=True)
    handle = accelerate(case.model, cache=None, prune="none").stc
    assert {number for number, _ in ran} == {0, 1}, "of three in LLaVA-OneVision"
    assert sum(tokens for number, tokens in ran if number == 0) <= 20
    ran.clear()
    case.model.generate(**case.inputs, **GREEDY)
    ours = list(ran)
    handle.restore()
    ran.clear()
    case.model.generate(**case.inputs, **GREEDY)
    assert ours == ran


# -- sessions --------------------------------------------------------------------------------------


def with_gates(model):
    """A language model whose attention has a gate that ReKV does not know of."""

    for layer in model.model.language_model.layers:
        kind = type(layer.self_attn)

        def forward(self, *args, kind=kind, **kwargs):
            out = kind.forward(self, *args, **kwargs)
            return (out[0] * 0.5, *out[1:])

        layer.self_attn.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return model


def test_a_memory_that_takes_a_model_apart_wrongly_is_noticed():
    model, tokenizer = with_gates(tiny_llava.make_model()), tiny_llava.make_tokenizer()
    StreamingSession(model, tokenizer, memory="plain", tokens_per_frame=6).close()
    with pytest.raises(UnsupportedModelError, match=r"RekvConfig .* logits of a prompt differ"):
        StreamingSession(model, tokenizer, memory="rekv", tokens_per_frame=6)
    assert not hasattr(model, "stc")


@pytest.mark.parametrize(
    ("place", "memory"),
    [("", "plain"), ("model", "plain"), ("model.language_model", "rekv"),
     ("model.language_model.layers.1", "rekv"),
     ("model.language_model.layers.0.self_attn", "rekv")],
)  # fmt: skip
def test_hooks_on_what_is_not_called_are_refused(place, memory):
    model, tokenizer = tiny_llava.make_model(), tiny_llava.make_tokenizer()
    hook = model.get_submodule(place).register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="hooks, which would not be called"):
        StreamingSession(model, tokenizer, memory=memory, tokens_per_frame=6)
    hook.remove()
    assert not hasattr(model, "stc")
    StreamingSession(model, tokenizer, memory=memory, tokens_per_frame=6).close()


def test_hooks_on_what_is_called_are_called(case):
    seen: list[str] = []
    places = {
        "embeddings": case.model.get_input_embeddings(),
        "inner": case.model.model,
        "language": case.model.model.language_model,
        "layer": case.model.model.language_model.layers[1],
    }
    with accelerate(case.model, cache=None, tokens_per_frame=3).stc as handle:
        places["tower"] = handle.adapter.tower
        for name, module in places.items():
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
        case.model.generate(**case.inputs, **GREEDY)
    assert set(seen) == set(places)


def test_a_replaced_method_for_features_is_refused(case):
    case.model.model.get_video_features = lambda *_: None
    with pytest.raises(UnsupportedModelError, match=r"get_video_features was replaced"):
        accelerate(case.model)


def test_an_attention_of_another_kind_is_refused():
    model, tokenizer = tiny_llava.make_model(), tiny_llava.make_tokenizer()
    function = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
    transformers.AttentionInterface.register("mine", function)
    model.model.language_model.config._attn_implementation = "mine"
    with pytest.raises(UnsupportedModelError, match="attention of the language model must be"):
        StreamingSession(model, tokenizer, memory="rekv", tokens_per_frame=6)
