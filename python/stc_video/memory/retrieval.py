# SPDX-License-Identifier: Apache-2.0
"""Retrieval: the choice of the blocks that a question is answered from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["choose", "diverse_order", "similarity"]


def similarity(query: Tensor, vectors: Tensor, *, normalised: bool) -> Tensor:
    """Score blocks by their mean keys.

    Parameters
    ----------
    query
        (W,) float32, the question's mean query, summed over the heads of each group.
    vectors
        (B, W) float32.
    normalised
        Cosine instead of dot product.

    Returns
    -------
    Tensor
        (B,) float32, higher is better.
    """
    if normalised:
        query, vectors = normalize(query, dim=-1), normalize(vectors, dim=-1)
    return vectors @ query


def best_order(scores: Tensor, count: int) -> list[int]:
    """Return the best blocks, best first: as many as are asked for or there are."""
    found: list[int] = scores.topk(min(count, len(scores))).indices.tolist()
    return found


def diverse_order(scores: Tensor, vectors: Tensor, count: int, diversity: float) -> list[int]:
    """Order blocks by maximal marginal relevance.

    Parameters
    ----------
    scores
        (B,) relevance.
    vectors
        (B, W) by which two blocks are compared.
    count
        How many to choose.
    diversity
        Weight of the likeness to the most similar block chosen already.

    Returns
    -------
    list of int
        Blocks, best first.
    """
    units = normalize(vectors, dim=-1)
    likeness = torch.full_like(scores, -1.0)
    left = torch.zeros_like(scores)
    order: list[int] = []
    for _ in range(min(count, len(scores))):
        # The first has nothing to be like, so all are equally unlike it.
        best = int(((1 - diversity) * scores - diversity * likeness + left).argmax())
        order.append(best)
        left[best] = -torch.inf
        likeness = torch.maximum(likeness, units @ units[best])
    return order


def choose(order: Iterable[int], sizes: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Fill a budget of tokens exactly, as far as there are blocks.

    All layers have to get the same number of tokens, so the last block that does not fit whole is
    taken in part.

    Parameters
    ----------
    order
        Blocks, best first.
    sizes
        Tokens of each block.
    budget
        How many tokens to choose.

    Returns
    -------
    list of (int, int)
        Block and how many of its tokens, in temporal order.
    """
    chosen: list[tuple[int, int]] = []
    for block in order:
        if budget <= 0:
            break
        take = min(sizes[block], budget)
        chosen.append((block, take))
        budget -= take
    return sorted(chosen)
