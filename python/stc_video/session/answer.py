# SPDX-License-Identifier: Apache-2.0
"""Generation of an answer from a context, by the model's own ``generate``."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from stc_video.cache_argument import cache_argument
from stc_video.memory import Context, Retrieved
from stc_video.models.generate_settings import settings_in_force

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_NEW_TOKENS = 256
_FROM_MEMORY = "it follows from what is in the memory"


@dataclass(frozen=True)
class Answer:
    """An answer; ``str()`` of it is the text.

    Attributes
    ----------
    text
        The answer, up to a stop string if there were any.
    ids
        (n,) its tokens, on the CPU; those of the stop string included.
    frame
        How many frames had been pushed when it was asked for.
    retrieved
        The frames that it was given from, in temporal order; None if from all.
    context_tokens
        How many tokens it was given from, those of the question included.
    seconds
        Times of the stages ``retrieve`` and ``generate``.
    finish_reason
        ``"stop"`` if the answer ended by itself or at a stop string, ``"length"`` if it was cut
        off after ``max_new_tokens`` or ``max_time``.
    """

    text: str
    ids: Tensor
    frame: int
    retrieved: tuple[Retrieved, ...] | None
    context_tokens: int
    seconds: dict[str, float]
    finish_reason: str

    def __str__(self) -> str:
        return self.text


#: settings of ``generate`` that mean nothing, or something else, for an answer -> why
_REFUSED = {
    "min_length": "it would count what is in the memory; use min_new_tokens",
    "num_beams": "there is one context, for one sequence",
    "num_return_sequences": "there is one answer",
    "prefill_chunk_size": "the prompt is in the context already",
    "token_healing": "the prompt is in the context already",
    "cache_implementation": _FROM_MEMORY,
}
#: the same, where only what the caller says counts: of the model's own they change no answer
_CALLERS = {
    "max_length": "it would count what is in the memory; use max_new_tokens",
    "use_cache": "the answer is generated from the cache of what is in the memory",
}
#: arguments of ``generate`` that are no settings -> why
_ARGUMENTS = {
    "inputs": _FROM_MEMORY,
    "custom_generate": "what it does with the length of the context cannot be known",
}
#: settings that `generate` hands on to the model
_HANDED_ON = {"output_attentions", "output_hidden_states"}


class AnswerSettings(NamedTuple):
    """Settings of an answer.

    Attributes
    ----------
    arguments
        For ``generate``.
    config
        The configuration that is in force with them.
    """

    arguments: dict[str, Any]
    config: GenerationConfig


def answer_settings(model: PreTrainedModel, settings: dict[str, Any]) -> AnswerSettings:
    """Return what is in force for an answer, by keyword, configuration or the model's own.

    Raises
    ------
    ValueError
        If a setting cannot be right for an answer from a memory; it is named, with the reason.
    """
    blank: Any = GenerationConfig  # has no types
    given = settings.get("generation_config")
    config, rest = settings_in_force(model, settings)
    for name in rest.keys() - _HANDED_ON:
        raise _refused(
            name, "it is no setting of generate; the prompt follows from what is in the memory"
        )
    for name, why in _ARGUMENTS.items():
        if settings.get(name) is not None:
            raise _refused(name, why)
    for name, why in _CALLERS.items():
        unset = (None, getattr(blank(), name))
        if settings.get(name, getattr(given, name, None)) not in (*unset, True):
            raise _refused(name, why)
    for name, why in _REFUSED.items():
        if getattr(config, name, None) not in (None, int(name.startswith("num_"))):
            raise _refused(name, why)
    mode = config.get_generation_mode(settings.get("assistant_model"))
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            "ask: an answer is generated token by token, greedily or by sampling, got settings for "
            f"{mode.value.replace('_', ' ')}"
        )
    if config.max_new_tokens is None:
        config.max_new_tokens = _MAX_NEW_TOKENS
    ours = {"max_new_tokens": config.max_new_tokens, "use_cache": True}
    if given is None:
        return AnswerSettings({**settings, **ours}, config)
    given = copy.deepcopy(given)  # of settings in both places transformers warns
    given.update(**ours)
    arguments = {name: value for name, value in settings.items() if name not in ours}
    return AnswerSettings({**arguments, "generation_config": given}, config)


def _refused(name: str, why: str) -> ValueError:
    return ValueError(f"ask: {name} is not supported: {why}")


def generate_answer(
    model: PreTrainedModel,
    context: Context,
    prompt: list[int],
    placeholder: int,
    streamer: Any,
    settings: dict[str, Any],
) -> Tensor:
    """Generate from a context, which has all but the last token of the prompt.

    Parameters
    ----------
    placeholder
        Token that stands for those of the video.
    streamer
        Of transformers, or None.
    settings
        For ``generate``.

    Returns
    -------
    Tensor
        (n,) new tokens, on the CPU.
    """
    output = generate_behind(model, context, prompt, placeholder, streamer, settings)
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    return sequences[0, context.tokens + 1 :].cpu()


def generate_behind(
    model: PreTrainedModel,
    context: Context,
    prompt: list[int],
    placeholder: int,
    streamer: Any,
    settings: dict[str, Any],
) -> Any:
    """Return what ``generate`` makes behind a context; see :func:`generate_answer`."""
    ids = _padded(prompt, context.tokens + 1, placeholder, model.device)
    untyped: Any = model
    return untyped.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        streamer=None if streamer is None else _WithoutVideo(streamer, len(prompt)),
        **cache_argument(model, context.cache),
        **settings,
    )


def next_logits(model: PreTrainedModel, context: Context, prompt: list[int]) -> Tensor:
    """Logits (V,) of the first token of the answer."""
    untyped: Any = model
    with torch.no_grad():
        out = untyped(
            input_ids=torch.tensor([prompt[-1:]], device=model.device),
            position_ids=torch.tensor([[context.tokens]], device=model.device),
            use_cache=True,
            **cache_argument(model, context.cache),
        )
    logits: Tensor = out.logits[0, -1]
    return logits


def _padded(prompt: list[int], length: int, placeholder: int, device: torch.device) -> Tensor:
    """Put one placeholder for each token in the cache in front, as `generate` counts them."""
    video = [placeholder] * (length - len(prompt))
    return torch.tensor([video + prompt], device=device)


class _WithoutVideo:
    """A streamer that gets to see the question, but not the placeholders of the video."""

    def __init__(self, streamer: Any, prompt: int) -> None:
        self._streamer = streamer
        self._prompt = prompt
        self._first = True

    def put(self, value: Tensor) -> None:
        """Pass on what `generate` reports: first the prompt, then token by token."""
        if self._first:
            value = value[..., -self._prompt :]
            self._first = False
        self._streamer.put(value)

    def end(self) -> None:
        """Pass on the end."""
        self._streamer.end()
