# SPDX-License-Identifier: Apache-2.0
"""Settings of ``generate`` that count from the caller's prompt, for one that is shorter."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stc_video.cache_argument import stock_named
from stc_video.errors import UnsupportedModelError
from stc_video.models.placeholders import repeated

#: arguments of ``generate`` itself that are no settings
_NAMED = frozenset((
    "inputs", "generation_config", "logits_processor", "stopping_criteria",
    "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model", "streamer",
    "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate",
    "trust_remote_code", "tokenizer", "assistant_tokenizer",
))  # fmt: skip
#: transformers' own classes that count tokens -> the attribute that holds the count
_COUNTS = {
    "ExponentialDecayLengthPenalty": "regulation_start",
    "ForcedEOSTokenLogitsProcessor": "max_length",
    "MaxLengthCriteria": "max_length",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "prompt_length_to_skip",
    "SuppressTokensAtBeginLogitsProcessor": "begin_index",
}
_NEEDED = ("_prepare_generation_config", "_validate_model_kwargs")


def check_generation(model: Any) -> None:
    """Refuse a release of transformers whose ``generate`` lacks the parts that are used here."""
    for name in _NEEDED:
        if not hasattr(model, name):
            from transformers import __version__

            raise UnsupportedModelError(
                f"accelerate: {type(model).__name__} of transformers {__version__} has no {name}"
            )


def effective_config(model: Any, arguments: dict[str, Any]) -> Any:
    """Return the generation configuration that the arguments and the model's own make.

    Raises
    ------
    ValueError
        If the model takes an argument as little as ``generate`` does.
    """
    config, rest = settings_in_force(model, arguments)
    model._validate_model_kwargs(rest)
    return config


def settings_in_force(model: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the generation configuration in force, and the arguments that the model gets."""
    given = arguments.get("generation_config")
    settings = stock_named(model, {k: v for k, v in arguments.items() if k not in _NAMED})
    config, rest = model._prepare_generation_config(given, **settings)
    return config, dict(rest)


def lengths(
    model: Any, arguments: dict[str, Any], config: Any, full: int, removed: int
) -> dict[str, int]:
    """Return `max_length` and `min_length` for a prompt that is shorter, where they are set.

    Raises
    ------
    ValueError
        If the prompt is longer than `max_length`.
    """
    limits = {}
    longest = _set_length(model, arguments, config, "max_length")
    if longest is not None and config.max_new_tokens is None:
        if longest <= full:
            raise ValueError(
                f"accelerated model: max_length must be more than the {full} tokens of the prompt, "
                f"got {longest}"
            )
        limits["max_length"] = longest - removed
    shortest = _set_length(model, arguments, config, "min_length")
    if shortest is not None and config.min_new_tokens is None:
        limits["min_length"] = max(shortest - removed, 0)
    return limits


def _set_length(model: Any, arguments: dict[str, Any], config: Any, name: str) -> int | None:
    """Return a length that was set somewhere, None if it is that of transformers' defaults."""
    if (given := arguments.get(name)) is not None:
        return int(given)
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    blank = (None, getattr(make(), name, None))
    sources = (arguments.get("generation_config"), model.generation_config)
    if all(getattr(source, name, None) in blank for source in sources):
        return None
    value = getattr(config, name)
    return None if value in blank else int(value)


def attention_mask(ids: Tensor, given: Tensor | None, config: Any) -> Tensor | None:
    """Return the mask as given, or as ``generate`` makes it if there is none."""
    pad, eos = config.pad_token_id, config.eos_token_id
    if given is not None or pad is None:
        return given
    ends = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
    is_padding = ids == int(pad)
    return None if int(pad) in ends or not is_padding.any() else (~is_padding).long()


class CallersView:
    """Shows whole sequences to the callables that a caller passes to ``generate``.

    Parameters
    ----------
    given
        (B, L) the prompt as it was given.
    length
        Of the prompt that ``generate`` is called with.
    """

    def __init__(self, given: Tensor, length: int) -> None:
        self._given = given
        self._length = length

    def whole(self, ids: Tensor) -> Tensor:
        """Sequences (B * n, m) of ``generate``, behind the prompt as it was given."""
        return torch.cat([repeated(self._given, ids), ids[:, self._length :]], dim=1)

    def adapted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments of ``generate`` whose callables get to see whole sequences."""
        result = dict(arguments)
        for name in ("logits_processor", "stopping_criteria"):
            if result.get(name) is not None:
                listed = result[name]
                kept = listed if isinstance(listed, (list, tuple)) else [listed]
                kind: Any = type(listed) if isinstance(listed, list) else list
                result[name] = kind([self._shown(item) for item in kept])
        if (allowed := result.get("prefix_allowed_tokens_fn")) is not None:
            result["prefix_allowed_tokens_fn"] = self._allowed(allowed)
        if result.get("streamer") is not None:
            result["streamer"] = _Streamer(result["streamer"], self._given)
        return result

    def _shown(self, item: Any) -> Any:
        """Return a processor or criterion that sees whole sequences."""
        kind = type(item)
        if not kind.__module__.startswith("transformers."):
            return _shown(item, self.whole)
        # Of one that transformers has, `generate` may have made another, which it replaces if it
        # is of the same class. Without a count it looks at the tokens, as one made there would.
        copied = copy.copy(item)
        if (name := _COUNTS.get(kind.__name__)) is not None:
            count = getattr(item, name) - (self._given.shape[1] - self._length)
            setattr(copied, name, max(count, 0))
        return copied

    def _allowed(self, function: Callable[[int, Tensor], list[int]]) -> Callable[..., list[int]]:
        @functools.wraps(function)
        def allowed(batch: int, ids: Tensor) -> list[int]:
            given = self._given[batch].to(ids.device)
            return function(batch, torch.cat([given, ids[self._length :]]))

        return allowed


def _shown(item: Any, whole: Callable[[Tensor], Tensor]) -> Any:
    """Return what calls a processor or criterion with whole sequences."""

    # `generate` looks up which arguments it takes.
    @functools.wraps(type(item).__call__)
    def call(_: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return item(whole(input_ids), *args, **kwargs)

    return type(type(item).__name__, (_Shown,), {"__call__": call})(item)


class _Shown:
    """Stands for a processor or criterion of the caller's."""

    def __init__(self, item: Any) -> None:
        self._item = item

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_item":  # while it is copied
            raise AttributeError(name)
        return getattr(self._item, name)


class _Streamer:
    """A streamer that is given the prompt as the caller gave it."""

    def __init__(self, streamer: Any, given: Tensor) -> None:
        self._streamer = streamer
        self._prompt: Tensor | None = given.cpu()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_streamer":
            raise AttributeError(name)
        return getattr(self._streamer, name)

    def put(self, value: Tensor) -> None:
        """Pass on what `generate` reports: first the prompt, then token by token."""
        if self._prompt is not None:
            value, self._prompt = repeated(self._prompt, value), None
        self._streamer.put(value)

    def end(self) -> None:
        """Pass on the end."""
        self._streamer.end()
