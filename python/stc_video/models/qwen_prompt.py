# SPDX-License-Identifier: Apache-2.0
"""Prompts of Qwen-VL without the placeholders of pruned tokens, over several turns.

Positions are (time, height, width). Those of the whole conversation, nothing pruned, are computed
by the installed model's own rule, which differs between releases; kept tokens have theirs, and the
text behind a video goes on where it would if nothing had been pruned.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stc_video.models.placeholders import kept_places, padding_token, shortened
from stc_video.pruners import PrunedTokens

__all__ = ["Conversation", "ConversationStream", "QwenPrompt", "make_prompt"]

#: encodes and prunes temporal patches (T, h, w, P) of a video, given its number in the call
Encoder = Callable[[Tensor, int], PrunedTokens]


@dataclass(frozen=True, eq=False)
class ConversationStream:
    """The stream that all videos of a conversation are of; it lives as long as that does."""

    name: str


@dataclass(frozen=True)
class Conversation:
    """What is known of the tokens in a cache.

    Attributes
    ----------
    kept
        (B, L) bool, which tokens of the full conversation so far stayed.
    grids
        (time, height, width) of all pictures so far, by modality: ``"image"`` and ``"video"``.
    intervals
        Seconds per temporal patch of each video; empty if never given.
    offset
        (B,) what to add to the number of tokens in the cache for the position of the next one.
    stream
        The stream that the videos are of, if they all are of one.
    """

    kept: Tensor
    grids: dict[str, Tensor]
    intervals: tuple[float, ...]
    offset: Tensor
    stream: ConversationStream | None = None

    @classmethod
    def empty(cls, batch: int) -> Conversation:
        """Nothing has been said."""
        none = torch.empty((0, 3), dtype=torch.int64)
        kept = torch.empty((batch, 0), dtype=torch.bool)
        return cls(kept, {"image": none, "video": none}, (), torch.zeros(batch, dtype=torch.int64))

    @property
    def removed(self) -> int:
        """By how many tokens the longest row is shorter than the full one."""
        return self.kept.shape[1] - int(self.kept.sum(1).max()) if len(self.kept) else 0


@dataclass(frozen=True)
class QwenPrompt:
    """A prompt without the pruned tokens.

    Attributes
    ----------
    input_ids, attention_mask
        (B, L) what is in the cache and what is new, padded on the left.
    embeds
        (B, n, D) of what is new.
    positions
        (3, B, n) of what is new.
    past
        How many tokens are in the cache.
    conversation
        What is known when the prompt is in the cache too.
    removed
        By how many tokens the prompt is shorter than the full one.
    extra
        Further arguments with one value per token, of what is new.
    """

    input_ids: Tensor
    attention_mask: Tensor
    embeds: Tensor
    positions: Tensor
    past: int
    conversation: Conversation
    removed: int
    extra: dict[str, Tensor]


def make_prompt(
    model: Any,
    arguments: dict[str, Any],
    encode: Encoder,
    past: int,
    said: Conversation,
    *,
    flat_turns: bool = False,
) -> QwenPrompt:
    """Encode the videos of a prompt and take out the placeholders of what was pruned.

    Parameters
    ----------
    model
        A Qwen2-VL or Qwen2.5-VL.
    arguments
        What the model is called with: `input_ids` (B, L) of the whole conversation with all its
        placeholders; pixels and grids of what is new.
    encode
        Encodes and prunes a video.
    past
        How many tokens are in the cache.
    said
        What is known of them.
    flat_turns
        Number the tokens of all turns but the first one after the other, as if they were text.

    Returns
    -------
    QwenPrompt
        The prompt as embeddings and positions.

    Raises
    ------
    ValueError
        If pixels, grids and placeholders do not fit.
    """
    ids: Tensor = arguments["input_ids"]
    given_mask = arguments.get("attention_mask")
    mask = torch.ones_like(ids) if given_mask is None else given_mask
    if past:  # some callers give that of the new turn only
        mask = pad(mask, (ids.shape[1] - mask.shape[1], 0), value=1)
    first = past + said.removed
    if past and (len(ids) != 1 or first >= ids.shape[1]):
        raise ValueError(
            "accelerated model: input_ids must be one row, the whole conversation with all its "
            f"placeholders ({first} tokens so far), got shape {tuple(ids.shape)}"
        )
    if first < said.kept.shape[1]:
        raise ValueError(
            f"accelerated model: the cache must hold the {said.kept.shape[1] - said.removed} "
            f"tokens of the last prompt, got {past}"
        )
    new = ids[:, first:]
    videos = _new_grids(arguments, "video", model)
    images = _new_grids(arguments, "image", model)
    embeds: Tensor = model.get_input_embeddings()(new)
    embeds = embeds.clone()  # the embedding may hand out what requires a gradient
    keep = torch.ones_like(new, dtype=torch.bool)
    _put_images(model, arguments, images, new, embeds)
    _put_videos(model, arguments, videos, new, embeds, keep, encode)

    grids = {
        "image": torch.cat([said.grids["image"], images]),
        "video": torch.cat([said.grids["video"], videos]),
    }
    intervals = _intervals(arguments, said, len(videos))
    if past and flat_turns:
        count = int(keep.sum())
        start = past + int(said.offset)
        rows = [torch.arange(start, start + count, device=ids.device)[None]] * 3
    else:
        positions = _positions(model, ids, mask, grids, intervals)[:, :, first:]
        rows = [shortened(part, keep, 0) for part in positions]
    # Tokens that were made since the last prompt have all stayed.
    since = torch.ones((len(ids), first - said.kept.shape[1]), dtype=torch.bool)
    kept = torch.cat([said.kept, since, keep.cpu()], dim=1)
    short = shortened(ids, kept.to(ids.device), padding_token(model))
    short_mask = shortened(mask, kept.to(mask.device), 0)
    places = torch.stack(rows)
    # The next token follows the last one of the prompt, as in `generate` of all releases.
    offset = places[:, :, -1].max(0).values.cpu() + 1 - short.shape[1]
    labels = arguments.get("labels")
    return QwenPrompt(
        input_ids=short,
        attention_mask=short_mask,
        embeds=_shortened_rows(embeds, keep),
        positions=places,
        past=past,
        conversation=Conversation(kept, grids, intervals, offset, said.stream),
        removed=ids.shape[1] - short.shape[1],
        extra={} if labels is None else {"labels": shortened(labels[:, first:], keep, -100)},
    )


def _new_grids(arguments: dict[str, Any], kind: str, model: Any) -> Tensor:
    """Grids (V, 3) of the new pictures of a kind: the last ones, if those of all were given."""
    name = "pixel_values_videos" if kind == "video" else "pixel_values"
    pixels, grids = arguments.get(name), arguments.get(f"{kind}_grid_thw")
    if pixels is None:
        return torch.empty((0, 3), dtype=torch.int64)
    if grids is None:
        raise ValueError(f"accelerated model: {name} need {kind}_grid_thw, got none")
    grids = torch.as_tensor(grids).cpu()
    for first in range(len(grids) - 1, -1, -1):
        if int(grids[first:].prod(1).sum()) == len(pixels):
            return grids[first:]
    raise ValueError(
        f"accelerated model: {kind}_grid_thw must have as many places as {name} have rows "
        f"({len(pixels)}), got {grids.tolist()}"
    )


def _put_images(
    model: Any, arguments: dict[str, Any], grids: Tensor, ids: Tensor, embeds: Tensor
) -> None:
    """Write the tokens of images, of which none is pruned, into the embeddings."""
    if not len(grids):
        return
    is_image = ids == model.config.image_token_id
    _check_count(model, "image", grids, int(is_image.sum()))
    grid = grids.to(ids.device)
    made = model.model.get_image_features(arguments["pixel_values"], grid)
    made = getattr(made, "pooler_output", made)
    embeds[is_image] = torch.cat(list(made)).to(embeds)


def _put_videos(
    model: Any,
    arguments: dict[str, Any],
    grids: Tensor,
    ids: Tensor,
    embeds: Tensor,
    keep: Tensor,
    encode: Encoder,
) -> None:
    """Write the kept tokens of videos into the embeddings, and which ones they are."""
    if not len(grids):
        return
    is_video = ids == model.config.video_token_id
    _check_count(model, "video", grids, int(is_video.sum()))
    sizes = grids.prod(1).tolist()
    stay, features = [], []
    for number, rows in enumerate(arguments["pixel_values_videos"].split(sizes)):
        kept = encode(rows.view(*grids[number].tolist(), -1), number)
        tokens = int(grids[number, 1] * grids[number, 2]) // _merge(model) ** 2
        stay.append(kept_places(kept, tokens))
        features.append(kept.packed())
    keep[is_video] = torch.cat(stay).to(keep.device)
    embeds[is_video & keep] = torch.cat(features).to(embeds)


def _check_count(model: Any, kind: str, grids: Tensor, found: int) -> None:
    expected = int(grids.prod(1).sum()) // _merge(model) ** 2
    if found != expected:
        raise ValueError(
            f"accelerated model: {kind}s of {grids.tolist()} (time, height, width) need {expected} "
            f"placeholders, got {found}"
        )


def _merge(model: Any) -> int:
    return int(model.model.visual.spatial_merge_size)


def _intervals(arguments: dict[str, Any], said: Conversation, videos: int) -> tuple[float, ...]:
    """Seconds per temporal patch of all videos; empty if never given."""
    given = arguments.get("second_per_grid_ts")
    if given is None and not said.intervals:
        return ()
    before = said.intervals or (1.0,) * len(said.grids["video"])
    new = [1.0] * videos if given is None else [float(value) for value in given][-videos or None :]
    return (*before, *(new if videos else ()))


def _positions(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    grids: dict[str, Tensor],
    intervals: tuple[float, ...],
) -> Tensor:
    """Positions (3, B, L) of the full conversation, by the installed release's rule."""
    config, rule = model.config, model.model.get_rope_index
    kinds = torch.zeros_like(ids, dtype=torch.int32)
    kinds[ids == config.image_token_id], kinds[ids == config.video_token_id] = 1, 2
    some = {f"{kind}_grid_thw": g.to(ids.device) if len(g) else None for kind, g in grids.items()}
    offered = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": kinds,
        "second_per_grid_ts": list(intervals) or None,
        **some,
    }
    taken = inspect.signature(rule).parameters
    positions: Tensor = rule(**{k: v for k, v in offered.items() if k in taken})[0]
    return positions


def _shortened_rows(embeds: Tensor, keep: Tensor) -> Tensor:
    """Embeddings (B, n, D) without what is not kept, padded on the left with zeros."""
    rows = [row[k] for row, k in zip(embeds, keep, strict=True)]
    padded: Tensor = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    return padded
