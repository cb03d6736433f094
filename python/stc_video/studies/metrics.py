# SPDX-License-Identifier: Apache-2.0
"""Metrics of a choice of tokens: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

#: Dropped tokens that are compared at once, which bounds memory for large frames.
_ROWS = 2048


def keep_mask(indices: Tensor, tokens: int) -> Tensor:
    """Turn the places of kept tokens, (F, K) padded with -1, into a mask (F, tokens)."""
    mask = torch.zeros((len(indices), tokens + 1), dtype=torch.bool, device=indices.device)
    places = torch.where(indices < 0, tokens, indices).long()
    return mask.scatter_(1, places, True)[:, :tokens]


def explained(features: Tensor, keep: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """Find for each dropped token how well a kept one stands for it.

    Parameters
    ----------
    features
        (F, N, D) tokens of consecutive frames.
    keep
        (F, N) bool, which of them were kept.
    kept
        Per frame (K, D): its kept tokens as the language model gets them, which a pruner may have
        merged.

    Returns
    -------
    Tensor
        (F, N) float32: the largest cosine to a kept token of the same or an earlier frame; NaN at
        kept tokens, -1 where nothing had been kept so far.
    """
    best = torch.full(keep.shape, torch.nan, device=features.device)
    seen = features.new_zeros((0, features.shape[2]), dtype=torch.float32)
    for frame, (mask, tokens) in enumerate(zip(keep, kept, strict=True)):
        seen = torch.cat([seen, normalize(tokens.float(), dim=-1, eps=1e-12)])
        dropped = normalize(features[frame][~mask].float(), dim=-1, eps=1e-12)
        if len(seen) == 0:
            best[frame, ~mask] = -1.0
        elif len(dropped):
            rows = [(part @ seen.T).amax(1) for part in dropped.split(_ROWS)]
            best[frame, ~mask] = torch.cat(rows)
    return best


def share(chosen: Tensor, marked: Tensor) -> float:
    """Return the part of the chosen places that are marked; NaN if none is chosen.

    With the two swapped it is the part of the marked places that are chosen.
    """
    count = int(chosen.sum())
    return int((chosen & marked).sum()) / count if count else float("nan")


def overlap(one: Tensor, other: Tensor) -> float:
    """Return the common places of two masks over the mean of their counts (Dice); 1 if equal."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def iou(one: Tensor, other: Tensor) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Return the numbers of the points to which no other is better, in order of cost.

    A point is left out if another costs at most as much and gains at least as much, and is better
    in one of the two. Points with NaN are left out; of equal points all stay.
    """
    points = [
        (cost, gain, index)
        for index, (cost, gain) in enumerate(zip(costs, gains, strict=True))
        if cost == cost and gain == gain
    ]

    def beaten(cost: float, gain: float) -> bool:
        return any(c <= cost and g >= gain and (c < cost or g > gain) for c, g, _ in points)

    return [index for cost, gain, index in sorted(points) if not beaten(cost, gain)]
