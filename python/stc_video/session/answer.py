# SPDX-License-Identifier: Apache-2.0
"""Generation of an answer from a context, by the model's own ``generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.cache_argument import CACHE_NAMES, cache_argument
from stc_video.memory import Context, Retrieved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        off after ``max_new_tokens``.
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
    "max_length": "it would count what is in the memory; use max_new_tokens",
    "min_length": "it would count what is in the memory; use min_new_tokens",
    "num_beams": "there is one context, for one sequence",
    "num_return_sequences": "there is one answer",
    "prefill_chunk_size": "the prompt is in the context already",
    "token_healing": "the prompt is in the context already",
    "custom_generate": "what it does with the length of the context cannot be known",
    **dict.fromkeys(
        ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", *CACHE_NAMES,
         "cache_implementation", "pixel_values", "pixel_values_videos"),
        "it follows from what is in the memory",
    ),
}  # fmt: skip


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse settings of ``generate`` that cannot be right for an answer from a memory.

    Raises
    ------
    ValueError
        Naming the setting, and why.
    """
    for name, why in _REFUSED.items():
        value = settings.get(name)
        if value is not None and not (value in (1, False) and name.startswith(("num_", "token_"))):
            raise ValueError(f"ask: {name} is not supported: {why}")


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
