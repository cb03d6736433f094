# SPDX-License-Identifier: Apache-2.0
"""Choice of tokens where each row of the grid ends in a newline token that must be paid for."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_video.pruners import PrunedTokens
from stc_video.pruners.budget import spread


def keep_with_newlines(
    kept: PrunedTokens, grid: tuple[int, int], budget: int | None = None
) -> Tensor:
    """Mark the tokens and newlines of each frame that stay.

    The tokens that a pruner kept are taken best first; one that opens a row costs its newline
    too. What no longer fits is left out, and a last single place goes to the best token of a row
    that is open already.

    Parameters
    ----------
    kept
        What a pruner chose of frames of H * W tokens. Without scores, an even spread decides.
    grid
        (H, W).
    budget
        Tokens and newlines of a frame, at least 2; None for all that the pruner kept.

    Returns
    -------
    Tensor
        (F, H, W + 1) bool; the last column has the newlines, of rows that kept a token.

    Raises
    ------
    ValueError
        If the pruner merged tokens, whose indices say nothing, or the budget is too small.
    """
    if kept.source_map is not None:
        raise ValueError(
            "keep_with_newlines: a grid with newlines needs a pruner that keeps tokens as they "
            "are, got one that merges them"
        )
    if budget is not None and budget < 2:
        raise ValueError(
            f"keep_with_newlines: a frame's budget must be at least 2 (a token and its newline), "
            f"got {budget}"
        )
    height, width = grid
    frames, tokens = len(kept.indices), height * width
    mask = torch.zeros((frames, tokens + 1), dtype=torch.bool, device=kept.indices.device)
    indices = torch.where(kept.indices < 0, tokens, kept.indices).long()
    mask = mask.scatter(1, indices, True)[:, :tokens]
    if budget is not None:
        mask = _within(mask, kept.scores, width, budget)
    by_row = mask.view(frames, height, width)
    return torch.cat([by_row, by_row.any(-1, keepdim=True)], dim=-1)


def _within(mask: Tensor, scores: Tensor | None, width: int, budget: int) -> Tensor:
    """Take tokens (F, N) out of the mask until they and their newlines fit the budget."""
    tokens = mask.shape[1]
    if scores is None:
        scores = spread(tokens, mask.device).expand(mask.shape)
    worth = torch.where(scores.isnan(), torch.inf, scores).masked_fill(~mask, -torch.inf)
    # Two sorts, so that a token with a score of -inf stays in front of those not kept.
    order = torch.sort(worth, dim=1, descending=True, stable=True).indices
    order = order.gather(1, torch.sort(~mask.gather(1, order), dim=1, stable=True).indices)
    kept = mask.gather(1, order)
    row = torch.nn.functional.one_hot(order // width, tokens // width).bool()
    seen = row.cumsum(1) - row.long()
    opens = seen.gather(2, (order // width)[..., None])[..., 0] == 0
    cost = (1 + opens.long()).cumsum(1)
    taken = kept & (cost <= budget)
    spent = torch.where(taken, cost, 0).amax(1, keepdim=True)
    is_open = (row & taken[..., None]).any(1, keepdim=True)
    fits = kept & ~taken & (row & is_open).any(-1) & (spent < budget)
    taken |= fits & (fits.cumsum(1) == 1)
    return torch.zeros_like(mask).scatter(1, order, taken)
