# SPDX-License-Identifier: Apache-2.0
"""From a prompt with a placeholder for every token of a video to one without the pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.pruners import PrunedTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "PrunedPrompt",
    "kept_places",
    "padding_token",
    "prune_prompt",
    "shortened",
    "video_token",
    "with_prompt",
]

#: arguments of a model that have one value per token of the prompt
_PER_TOKEN = {"attention_mask": 0, "labels": -100, "mm_token_type_ids": 0}


@dataclass(frozen=True)
class PrunedPrompt:
    """A prompt without the pruned tokens.

    Attributes
    ----------
    input_ids
        (B, L) ids with a placeholder for each kept token, padded on the left.
    arguments
        What the model is called with instead: embeddings, mask, and all the rest.
    removed
        By how many tokens the prompt is shorter.
    """

    input_ids: Tensor
    arguments: dict[str, Any]
    removed: int


def prune_prompt(
    model: PreTrainedModel,
    arguments: dict[str, Any],
    encode: Callable[[Tensor], list[PrunedTokens]],
    tokens_per_frame: int,
    positions: str,
) -> PrunedPrompt:
    """Encode the videos of a prompt and take out the placeholders of what was pruned.

    Parameters
    ----------
    model
        A LLaVA-OneVision.
    arguments
        What the model is called with; `input_ids` (B, L) and `pixel_values_videos`
        (V, F, 3, h, w) among it.
    encode
        From the videos to the kept tokens of each.
    tokens_per_frame
        Tokens of a frame before pruning.
    positions
        ``"repacked"`` or ``"original"``.

    Returns
    -------
    PrunedPrompt
        The prompt as embeddings.

    Raises
    ------
    ValueError
        If the placeholders do not fit the videos.
    """
    arguments = dict(arguments)
    ids: Tensor = arguments.pop("input_ids")
    pixels: Tensor = arguments.pop("pixel_values_videos")
    arguments.pop("image_sizes_videos", None)
    inner: Any = model.model
    newline: Tensor = inner.image_newline
    is_video = ids == video_token(model)
    videos, frames = pixels.shape[:2]
    expected = videos * (frames * tokens_per_frame + 1)
    if int(is_video.sum()) != expected:
        raise ValueError(
            f"accelerated model: {videos} videos of {frames} frames need {expected} placeholders "
            f"({tokens_per_frame} per frame and one per video), got {int(is_video.sum())}"
        )
    kept = encode(pixels)
    keep = torch.ones_like(ids, dtype=torch.bool)
    newline_stays = keep.new_ones(1)
    parts = [(kept_places(k, tokens_per_frame).to(ids.device), newline_stays) for k in kept]
    keep[is_video] = torch.cat([part for pair in parts for part in pair])
    features = torch.cat([row for k in kept for row in (k.packed(), newline[None].to(k.tokens))])

    mask = arguments.get("attention_mask")
    if mask is None:
        mask = arguments["attention_mask"] = torch.ones_like(ids)
    given_positions = arguments.pop("position_ids", None)
    if given_positions is None and positions == "original":
        given_positions = (mask.cumsum(-1) - 1).clamp_min(0)
    if given_positions is not None:
        arguments["position_ids"] = shortened(given_positions.expand_as(ids), keep, 0)
    for name, padding in _PER_TOKEN.items():
        if arguments.get(name) is not None:
            arguments[name] = shortened(arguments[name], keep, padding)
    short = shortened(ids, keep, padding_token(model))
    embeds = model.get_input_embeddings()(short)
    # In place: the embeddings are a fresh tensor, and each placeholder has one row of features.
    embeds[short == video_token(model)] = features.to(embeds)
    arguments["inputs_embeds"] = embeds
    return PrunedPrompt(short, arguments, ids.shape[1] - short.shape[1])


def kept_places(kept: PrunedTokens, tokens_per_frame: int) -> Tensor:
    """Which placeholders of a video stay, (F * tokens_per_frame,) bool."""
    frames = kept.indices.shape[0]
    # Padding (-1) is sent to an extra column that is cut off.
    places = torch.where(kept.indices >= 0, kept.indices, tokens_per_frame).long()
    stay = torch.zeros((frames, tokens_per_frame + 1), dtype=torch.bool, device=places.device)
    return stay.scatter_(1, places, True)[:, :tokens_per_frame].flatten()


def shortened(values: Tensor, keep: Tensor, padding: int) -> Tensor:
    """Take out of each row what is not kept, and pad on the left to the longest row."""
    rows: Sequence[Tensor] = [row[k] for row, k in zip(values, keep, strict=True)]
    padded: Tensor = torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=padding, padding_side="left"
    )
    return padded


def video_token(model: PreTrainedModel) -> int:
    """Id of the placeholder of a video's token."""
    config: Any = model.config
    return int(config.video_token_id)


def padding_token(model: PreTrainedModel) -> int:
    """Id to pad prompts with."""
    config: Any = model.config.get_text_config()
    padding = getattr(config, "pad_token_id", None)
    return 0 if padding is None else int(padding)


def with_prompt(made: Any, given: Tensor, length: int) -> Any:
    """Put the prompt as it was given in front of what `generate` made of one of this length."""
    sequences = made if isinstance(made, Tensor) else made.sequences
    given = given.to(sequences.device).repeat_interleave(sequences.shape[0] // given.shape[0], 0)
    whole = torch.cat([given, sequences[:, length:]], dim=1)
    if isinstance(made, Tensor):
        return whole
    made.sequences = whole
    return made
