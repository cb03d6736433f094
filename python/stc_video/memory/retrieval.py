# SPDX-License-Identifier: Apache-2.0
"""Retrieval: the choice of the blocks that a question is answered from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stc_video.memory.config import RekvConfig


def block_order(
    query: Tensor,
    vectors: Tensor,
    sizes: Sequence[int],
    scores: Tensor | None,
    config: RekvConfig,
) -> list[int]:
    """Order the blocks of one layer, best first: as many as the budget can take.

    Parameters
    ----------
    query
        (W,) float32, as for :func:`similarity`.
    vectors
        (B, W) float32, the mean key of each block.
    sizes
        Tokens of each block.
    scores
        (B,) of another scorer instead of the similarity, or None.
    config
        The budget, the newest blocks that come before all others, and how the rest is compared.
    """
    if sum(sizes) <= config.retrieve_tokens:
        return list(range(len(sizes)))
    count = -(-config.retrieve_tokens // min(sizes))
    if scores is None:
        scores = similarity(query, vectors, normalised=config.retrieval != "plain")
    if config.retrieval == "mmr":
        order = diverse_order(scores.to(vectors.device), vectors, count, config.diversity)
    else:
        order = best_order(scores, count)
    recent = range(max(0, len(sizes) - config.recent_frames), len(sizes))
    # The newest first, should they alone pass the budget.
    return [*reversed(recent), *(block for block in order if block not in recent)]


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
    order: list[int] = scores.topk(min(count, len(scores))).indices.tolist()
    return order


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
