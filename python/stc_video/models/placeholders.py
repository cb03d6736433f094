# SPDX-License-Identifier: Apache-2.0
"""Placeholders of a video's tokens in a prompt, and the removal of those of pruned tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.pruners import PrunedTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def kept_places(kept: PrunedTokens, tokens_per_frame: int) -> Tensor:
    """Mark the placeholders of a video that stay, (F * tokens_per_frame,) bool."""
    frames = kept.indices.shape[0]
    # Padding (-1) is sent to an extra column that is cut off.
    indices = torch.where(kept.indices >= 0, kept.indices, tokens_per_frame).long()
    stay = torch.zeros((frames, tokens_per_frame + 1), dtype=torch.bool, device=indices.device)
    return stay.scatter_(1, indices, True)[:, :tokens_per_frame].flatten()


def first_of_the_last(counts: Sequence[int], needed: int) -> int | None:
    """Find the first of the last pictures that together need so many placeholders.

    Who goes on with a conversation may give all of its pictures again.
    """
    for first in range(len(counts) + 1):
        if sum(counts[first:]) == needed:
            return first
    return None


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


def with_prompt(output: Any, given: Tensor, length: int) -> Any:
    """Put the prompt as it was given in front of what `generate` made of one of this length."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    whole = torch.cat([repeated(given, sequences), sequences[:, length:]], dim=1)
    if isinstance(output, Tensor):
        return whole
    output.sequences = whole
    return output


def repeated(given: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, L) as often as `generate` has made rows (B * n, m) of them."""
    given = given.to(rows.device)
    return given.repeat_interleave(rows.shape[0] // given.shape[0], 0)
