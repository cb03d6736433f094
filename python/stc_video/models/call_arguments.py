# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``generate`` and ``forward`` that cannot be right with a pruned prompt.

They are refused before anything runs. docs/generate.md lists every argument, these among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from stc_video.cache_argument import CACHE
from stc_video.models.conversation import Conversation, tokens_in

#: what a pruned prompt stands for
PROMPT = (
    "input_ids", "attention_mask", "position_ids", "labels", "mm_token_type_ids",
    "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw",
    "second_per_grid_ts", "image_sizes", "image_sizes_videos", "batch_num_images",
    "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio",
    "cache_position", "rope_deltas", "pixel_attention_mask", "token_type_ids",
)  # fmt: skip

_PACKED = "several prompts packed into one row cannot be pruned; give one row for each"
_DECODER = "the model has no encoder"
_HUB = "transformers takes it from the hub, and what that does with the prompt cannot be known"
#: refused in both calls -> why
_REFUSED = {
    "inputs_embeds": "which embeddings are a video's cannot be told; give input_ids",
    "mm_encoder_outputs": "the videos are encoded here; give pixel_values_videos",
    "position_ids": "positions follow from the prompt and from what is kept of it",
    "rope_deltas": "positions follow from the prompt and from what is kept of it",
    "cu_seq_lens_q": _PACKED,
    "cu_seq_lens_k": _PACKED,
    "max_length_q": _PACKED,
    "max_length_k": _PACKED,
    "seq_idx": _PACKED,
    "is_causal": "the model's own tower fails with it",
}
#: refused in ``generate`` -> why
_REFUSED_IN_GENERATE = _REFUSED | {
    "cache_position": "places in the cache follow from what is kept of the prompt",
    "labels": "they belong to forward",
    "custom_generate": "what it does with the length of the prompt cannot be known",
    "token_healing": "it rewrites the end of the prompt",
    "assistant_early_exit": "the model would be its own assistant, without the pictures",
    **dict.fromkeys(
        (
            "constraints",
            "diversity_penalty",
            "dola_layers",
            "force_words_ids",
            "num_beam_groups",
            "penalty_alpha",
        ),
        _HUB,
    ),
    "encoder_outputs": _DECODER,
    "decoder_input_ids": _DECODER,
    "decoder_inputs_embeds": _DECODER,
    "decoder_attention_mask": _DECODER,
}
#: those of them that a configuration can have -> the value that means nothing
_SETTINGS = {
    "assistant_early_exit": None, "constraints": None, "diversity_penalty": 0.0,
    "dola_layers": None, "force_words_ids": None, "guidance_scale": 1, "num_beam_groups": 1,
    "penalty_alpha": None, "token_healing": False,
}  # fmt: skip
#: arguments with tensors that have nothing to do with the tokens of the prompt
_KNOWN = frozenset((
    *PROMPT, CACHE, "logits_to_keep", "num_items_in_batch", "negative_prompt_ids",
    "negative_prompt_attention_mask", "eos_token_id", "pad_token_id", "bos_token_id",
))  # fmt: skip


def check_pictures(arguments: Mapping[str, Any]) -> None:
    """Refuse videos that come without the ids of their prompt, or encoded already."""
    encoded = arguments.get("mm_encoder_outputs") or {}
    if encoded.get("video") is not None:
        raise _refusal("mm_encoder_outputs", _REFUSED["mm_encoder_outputs"])
    if arguments.get("pixel_values_videos") is not None and arguments.get("input_ids") is None:
        raise _refusal("inputs_embeds", _REFUSED["inputs_embeds"])


def check_forward(model: Any, arguments: Mapping[str, Any], history: Conversation | None) -> None:
    """Refuse what cannot be right in ``forward`` with a pruned prompt.

    Raises
    ------
    ValueError
        Naming the argument, and why.
    """
    _check(model, arguments, _REFUSED)
    if isinstance(arguments.get("logits_to_keep"), Tensor):
        raise _refusal("logits_to_keep", "its places are those of the full prompt; give a number")
    cache_position = arguments.get("cache_position")
    if cache_position is not None:
        ids = arguments["input_ids"]
        first = 0 if history is None else tokens_in(arguments.get(CACHE)) + history.removed
        if cache_position.tolist() != list(range(first, ids.shape[1])):
            raise _refusal("cache_position", "it must count the tokens of the full prompt")


def check_generate(
    model: Any,
    arguments: Mapping[str, Any],
    config: Any,
    history: Conversation | None,
    family: Mapping[str, str],
) -> None:
    """Refuse what cannot be right in ``generate`` with a pruned prompt.

    Parameters
    ----------
    model
        The model.
    arguments
        What the caller gave.
    config
        The generation configuration that comes of it.
    history
        What is known of the cache that was given.
    family
        What is refused for this family of models -> why.

    Raises
    ------
    ValueError
        Naming the argument, and why.
    """
    if arguments.get("inputs") is not None:
        raise _refusal("inputs", "input_ids are given, too")
    settings = {name: getattr(config, name, None) for name in _SETTINGS}
    given = settings | {name: v for name, v in arguments.items() if v is not None}
    _check(model, given, {**_REFUSED_IN_GENERATE, **family})
    if config.cache_implementation == "paged":
        raise _refusal("cache_implementation", "'paged' takes prompts without pictures alone")
    for name in ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model"):
        value = arguments.get(name, getattr(config, name, None))
        if history is not None and value is not None:
            raise _refusal(name, "the cache has tokens already")


def _check(model: Any, arguments: Mapping[str, Any], refused: Mapping[str, str]) -> None:
    ids = arguments.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"accelerated model: input_ids must be a tensor (B, L), got {shape}")
    for name, why in refused.items():
        value = arguments.get(name)
        means_nothing = name in _SETTINGS and value == _SETTINGS[name]
        if value is not None and not means_nothing:
            raise _refusal(name, why)
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        value, own = arguments.get(name), getattr(model.config, name, None)
        if value is not None and value != own:
            raise _refusal(name, f"the tower is attached for that of the configuration, {own!r}")
    for name, value in arguments.items():
        if name not in _KNOWN and any(ids.shape[1] in part.shape for part in _tensors(value)):
            raise _refusal(
                name, "it has a value for each token of the prompt and is not known; without the "
                "pruned tokens it would not fit",
            )  # fmt: skip


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in a value, and in what it holds."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, str)):
        for part in value:
            yield from _tensors(part)


def _refusal(name: str, why: str) -> ValueError:
    return ValueError(
        f"accelerated model: {name} cannot be used with a video or a conversation about one: {why}"
    )
