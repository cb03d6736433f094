# SPDX-License-Identifier: Apache-2.0
"""Pruning of prompts: placeholders of pruned video tokens are taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from stc_video.models.conversation import Conversation, check_whole
from stc_video.models.placeholders import padding_token, shortened
from stc_video.pruners import PrunedTokens

#: encodes and prunes the frames of a video, given its number in the call
Encoder = Callable[[Tensor, int], PrunedTokens]


@dataclass(frozen=True)
class Prompt:
    """A prompt without the pruned tokens.

    Attributes
    ----------
    input_ids, attention_mask
        (B, L) what is in the cache and what is new, padded on the left.
    embeds
        (B, n, W) of what is new; W is D, or more with deepstack.
    positions
        (A, B, n) of what is new; A is 3 for time, height and width, or 1.
    past
        How many tokens are in the cache.
    conversation
        What is known when the prompt is in the cache too.
    labels
        (B, n) of what is new, if there are any.
    """

    input_ids: Tensor
    attention_mask: Tensor
    embeds: Tensor
    positions: Tensor
    past: int
    conversation: Conversation
    labels: Tensor | None

    @property
    def removed(self) -> int:
        """Number of tokens by which the prompt is shorter than the full one."""
        return self.conversation.removed


@dataclass(frozen=True)
class Written:
    """The new part of a prompt, into which the family writes its pictures.

    Attributes
    ----------
    ids
        (B, n) its ids.
    embeds
        (B, n, W) their embeddings.
    keep
        (B, n) bool, which of them stay.
    past
        How many tokens are in the cache.
    """

    ids: Tensor
    embeds: Tensor
    keep: Tensor
    past: int


@dataclass(frozen=True)
class Numbered:
    """The whole conversation, for the family to number its new part.

    Attributes
    ----------
    ids, mask
        (B, L) with all placeholders.
    first
        Where the new part begins.
    keep
        (B, L - first) bool, which of it stays.
    short_mask
        (B, n) without what was pruned.
    past
        How many tokens are in the cache.
    """

    ids: Tensor
    mask: Tensor
    first: int
    keep: Tensor
    short_mask: Tensor
    past: int


class PicturePlacer(Protocol):
    """Everything particular to a family of models when it writes a prompt."""

    model: Any

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (B, n, W) of text, as they are handed to the model."""

    def write_pictures(
        self, arguments: dict[str, Any], written: Written, history: Conversation, encode: Encoder
    ) -> Any:
        """Write features over placeholders and choose what stays; return what to remember."""

    def number(self, numbered: Numbered, history: Conversation, pictures: Any) -> Tensor:
        """Positions (A, B, n) of what stays of the new part."""


def make_prompt(
    family: PicturePlacer,
    arguments: dict[str, Any],
    encode: Encoder,
    past: int,
    history: Conversation,
) -> Prompt:
    """Encode the videos of a prompt and take out the placeholders of what was pruned.

    Parameters
    ----------
    family
        What is particular to the model.
    arguments
        What the model is called with: `input_ids` (B, L) of the whole conversation with all its
        placeholders; pixels of what is new.
    encode
        Encodes and prunes a video.
    past
        How many tokens are in the cache.
    history
        What is known of them.

    Returns
    -------
    Prompt
        The prompt as embeddings and positions.

    Raises
    ------
    ValueError
        If pixels and placeholders do not fit.
    """
    ids: Tensor = arguments["input_ids"]
    mask = _whole_mask(ids, arguments.get("attention_mask"), past)
    first = _first_new(ids, past, history)
    new = ids[:, first:]
    embeds = family.embed(new)
    keep = torch.ones_like(new, dtype=torch.bool)
    pictures = family.write_pictures(arguments, Written(new, embeds, keep, past), history, encode)
    # Tokens that were made since the last prompt have all stayed.
    since = torch.ones((len(ids), first - history.kept.shape[1]), dtype=torch.bool)
    kept = torch.cat([history.kept, since, keep.cpu()], dim=1)
    short = shortened(ids, kept.to(ids.device), padding_token(family.model))
    short_mask = shortened(mask, kept.to(mask.device), 0)
    numbered = Numbered(ids, mask, first, keep, short_mask, past)
    positions = family.number(numbered, history, pictures)
    # The next token follows the last one of the prompt, as in `generate` of all releases.
    offset = positions[:, :, -1].max(0).values.cpu() + 1 - short.shape[1]
    labels = arguments.get("labels")
    return Prompt(
        input_ids=short,
        attention_mask=short_mask,
        embeds=_shortened_rows(embeds, keep),
        positions=positions,
        past=past,
        conversation=Conversation(kept, short_mask.bool().cpu(), offset, pictures, history.stream),
        labels=None if labels is None else shortened(labels[:, first:], keep, -100),
    )


def _whole_mask(ids: Tensor, given: Tensor | None, past: int) -> Tensor:
    """Mask (B, L) of the whole conversation."""
    mask = torch.ones_like(ids) if given is None else given
    if past and mask.dim() == 2:  # some callers give that of the new turn only
        mask = pad(mask, (max(ids.shape[1] - mask.shape[1], 0), 0), value=1)
    if mask.shape != ids.shape:
        raise ValueError(
            f"accelerated model: attention_mask must have the shape of input_ids "
            f"{tuple(ids.shape)}, got {tuple(mask.shape)}"
        )
    return mask


def _first_new(ids: Tensor, past: int, history: Conversation) -> int:
    """Find where the part of the full conversation begins that is not in the cache."""
    first = past + history.removed
    if past and (len(ids) != 1 or first >= ids.shape[1]):
        raise ValueError(
            "accelerated model: input_ids must be one row, the whole conversation with all its "
            f"placeholders ({first} tokens so far), got shape {tuple(ids.shape)}"
        )
    check_whole(history, past)
    return first


def _shortened_rows(embeds: Tensor, keep: Tensor) -> Tensor:
    """Embeddings (B, n, D) without what is not kept, padded on the left with zeros."""
    rows: Sequence[Tensor] = [row[k] for row, k in zip(embeds, keep, strict=True)]
    padded: Tensor = torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_side="left"
    )
    return padded
