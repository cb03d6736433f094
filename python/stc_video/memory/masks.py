# SPDX-License-Identifier: Apache-2.0
"""Which tokens a token attends to: those before it, in one picture all, in some layers the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from stc_video.errors import UnsupportedModelError
from stc_video.memory.base import Frame


def causal_mask(
    queries: int,
    keys: int,
    device: torch.device,
    window: int | None = None,
    pictures: Sequence[tuple[int, int]] = (),
) -> Any:
    """Mask in which the last query sees all keys, the one before all but the last, and so on.

    Parameters
    ----------
    queries, keys
        How many there are; the queries are those of the last keys.
    device
        Where the mask is to be.
    window
        How many keys a query sees at most, its own the last; None for all.
    pictures
        First and last + 1 of queries that see each other, whatever their order.
    """
    if window is not None and window >= keys:
        window = None
    if queries == 1 and window is None:
        return None
    if device.type == "cuda" and window is None and not pictures:
        return causal_lower_right(queries, keys)  # a flash kernel, no mask in memory
    before = keys - queries
    mask = torch.ones((queries, keys), dtype=torch.bool, device=device).tril(before)
    for start, stop in pictures:
        mask[start:stop, before + start : before + stop] = True
    return mask if window is None else mask.triu(before + 1 - window)


def pictures_of(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    """Rows of the tokens that see each other, among those of frames in a row."""
    found, first = [], 0
    for frame in frames:
        if frame.bidirectional is not None:
            start, stop = frame.bidirectional
            found.append((first + start, first + stop))
        first += len(frame.embeds)
    return found


def rows_mask(
    rows: slice,
    keys: int,
    device: torch.device,
    window: int | None,
    pictures: Sequence[tuple[int, int]],
) -> Any:
    """`causal_mask` of some of the queries of which ``pictures`` are rows; none is cut."""
    first = rows.start
    inside = [(a - first, b - first) for a, b in pictures if first <= a and b <= rows.stop]
    return causal_mask(rows.stop - first, keys, device, window, inside)


def layer_masks(
    config: Any, like: Tensor, queries: int, keys: int, pictures: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """Masks (1, 1, queries, keys) as a language model of transformers takes them.

    Parameters
    ----------
    config
        Of the language model.
    like
        A tensor of the device and dtype of its states.
    queries, keys, pictures
        As for :func:`causal_mask`.

    Returns
    -------
    dict
        The mask of each type of layers.
    """
    kind = config._attn_implementation
    if kind not in ("eager", "sdpa"):
        raise UnsupportedModelError(
            "memory: where the tokens of a picture see each other, the attention of the language "
            f"model must be eager or sdpa, got {kind!r}"
        )
    masks = {}
    for layers in set(config.layer_types):
        window = config.sliding_window if layers == "sliding_attention" else None
        mask = causal_mask(queries, keys, torch.device("cpu"), window, pictures)
        mask = torch.ones((queries, keys), dtype=torch.bool) if mask is None else mask
        mask = mask.to(like.device)[None, None]
        if kind == "eager":  # which adds it to the logits
            mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(
                ~mask, torch.finfo(like.dtype).min
            )
        masks[layers] = mask
    return masks
