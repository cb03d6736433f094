# SPDX-License-Identifier: Apache-2.0
"""Pictures that lie behind one another in one row (1, M, C): Pixtral, HunYuan-VL, MiniMax.

Attention stays inside a picture: the tower says where each ends (``cu_seqlens``), or hands its
blocks a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stc_video.towers.positions import Tables

#: what a mask adds to the scores of keys that are not seen, at the least
_HIDDEN = -1e4


class Group(NamedTuple):
    """Frames (F, N, C) that are encoded together; all have the same mask, or one each, and places.

    ``tables`` are cosines and sines of the places.
    """

    frames: Tensor
    mask: Tensor | None
    tables: Tables | None


def sizes_in_row(states: Tensor, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes of the pictures of a row, if there are several; none for a batch of frames.

    Parameters
    ----------
    states
        Hidden states, the input of a block.
    arguments
        What else the block gets, by name.
    """
    if states.dim() != 3 or states.shape[0] != 1:
        return ()
    tokens = states.shape[1]
    bounds, mask = arguments.get("cu_seqlens"), arguments.get("attention_mask")
    if isinstance(bounds, Tensor):
        ends = bounds.tolist()
    elif isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2:] == (tokens, tokens):
        # A token sees the one in front of it, unless that ends a picture (or is padding, which
        # does not see itself either).
        seen = mask[0, 0]
        begins = seen.diagonal(-1) != seen.diagonal()[:-1]
        ends = [0, *(begins.nonzero()[:, 0] + 1).tolist(), tokens]
    else:
        return ()
    sizes = tuple(end - start for start, end in pairwise(ends))
    is_whole = len(sizes) > 1 and min(sizes) > 0 and (ends[0], ends[-1]) == (0, tokens)
    return sizes if is_whole else ()


def groups_of(states: Tensor, sizes: Sequence[int], tables: Tables | None) -> list[Group]:
    """Cut a row into its pictures: one group if all have one size and place, else one for each."""
    pictures = states[0].split(list(sizes))
    if tables is None:
        places: list[Tables | None] = [None] * len(sizes)
    else:
        each = zip(tables.cos.split(list(sizes)), tables.sin.split(list(sizes)), strict=True)
        places = [Tables(cos, sin, tables.pairs) for cos, sin in each]
    if all(len(p) == sizes[0] for p in pictures) and all(_alike(p, places[0]) for p in places):
        return [Group(torch.stack(pictures), None, places[0])]
    return [
        Group(picture[None], None, place) for picture, place in zip(pictures, places, strict=True)
    ]


def no_block_mask(mask: Tensor, sizes: Sequence[int]) -> str:
    """Say why a mask is not that of pictures of these sizes of which none sees another."""
    numbers = torch.arange(len(sizes), device=mask.device)
    of_picture = numbers.repeat_interleave(torch.tensor(sizes, device=mask.device))
    inside = of_picture[:, None] == of_picture
    is_open = mask if mask.dtype == torch.bool else mask == 0
    is_shut = ~mask if mask.dtype == torch.bool else mask <= _HIDDEN
    if mask.shape[2:] == inside.shape and bool(torch.where(inside, is_open, is_shut).all()):
        return ""
    return "it gets an attention_mask that is not the same for all queries (a causal one?)"


def first_picture(value: Any, sizes: Sequence[int]) -> Any:
    """Arguments of a block that gets a row, as if the row had its first picture only."""
    if isinstance(value, dict):
        return {name: first_picture(part, sizes) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(first_picture(part, sizes) for part in value)
    if not isinstance(value, Tensor):
        return value
    first, tokens = sizes[0], sum(sizes)
    if value.dim() == 1 and value.tolist() == [0, *accumulate(sizes)]:
        return value[:2]
    for axis in (-1, -2) if value.dim() == 4 or value.shape[-1:] == (tokens,) else (-2,):
        if value.dim() >= -axis and value.shape[axis] == tokens:
            value = value.narrow(axis, 0, first)
    return value


def _alike(one: Tables | None, other: Tables | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.cos, other.cos) and torch.equal(one.sin, other.sin)
