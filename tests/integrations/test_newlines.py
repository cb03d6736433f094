# SPDX-License-Identifier: Apache-2.0
"""Newlines of a grid are paid for out of the same budget as its tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stc_video import PrunedTokens, make_pruner
from stc_video.integrations.newlines import keep_with_newlines

GRID = (5, 4)


def greedy(indices: list[int], scores: list[float], width: int, budget: int) -> set[int]:
    """One token after the other, best first, each with its row's newline if it opens the row."""
    taken, rows = set(), set()
    for token in sorted(indices, key=lambda i: (-scores[i], i)):
        cost = 1 if token // width in rows else 2
        if len(taken) + len(rows) + cost <= budget:
            taken.add(token)
            rows.add(token // width)
            if len(taken) + len(rows) == budget:
                break
    return taken


def pruned(scores: Tensor, kept: int) -> PrunedTokens:
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :kept]
    indices = order.sort(1).values.int()
    counts = torch.full((len(scores),), kept, dtype=torch.int32)
    return PrunedTokens(torch.zeros(len(scores), kept, 1), indices, counts, scores)


@pytest.mark.parametrize("budget", [2, 3, 4, 5, 7, 12, 20])
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_greedy_choice(budget, ties):
    scores = torch.rand((40, 20), generator=torch.Generator().manual_seed(budget))
    if ties:
        scores = (scores * 3).floor()
    kept = pruned(scores, min(20, budget))
    mask = keep_with_newlines(kept, GRID, budget)
    assert mask.shape == (40, 5, 5)
    for frame in range(40):
        expected = greedy(kept.indices[frame].tolist(), scores[frame].tolist(), 4, budget)
        assert set(mask[frame, :, :4].flatten().nonzero()[:, 0].tolist()) == expected
    assert torch.equal(mask[..., 4], mask[..., :4].any(-1))
    spent = mask.sum((1, 2))
    assert int(spent.max()) <= budget
    # One place stays free only if no row that is open has another token.
    assert int(spent.min()) >= budget - 1


def test_without_a_budget_everything_that_was_kept_stays():
    kept = make_pruner("stc", tokens_per_frame=6)(torch.randn(3, 20, 8), grid=GRID)
    mask = keep_with_newlines(kept, GRID)
    for frame in range(3):
        tokens = mask[frame, :, :4].flatten().nonzero()[:, 0]
        assert torch.equal(tokens.int(), kept.indices[frame])


def test_a_frame_that_kept_nothing_has_no_newline():
    empty = PrunedTokens(
        torch.zeros(2, 1, 1), torch.tensor([[3], [-1]], dtype=torch.int32), torch.tensor([1, 0])
    )
    mask = keep_with_newlines(empty, GRID, 8)
    assert mask.sum((1, 2)).tolist() == [2, 0]


def test_nan_counts_as_most_worth_keeping():
    scores = torch.zeros(1, 20)
    scores[0, 13] = float("nan")
    every = torch.arange(20, dtype=torch.int32)[None]
    kept = PrunedTokens(torch.zeros(1, 20, 1), every, torch.tensor([20]), scores)
    assert keep_with_newlines(kept, GRID, 2)[0].nonzero().tolist() == [[3, 1], [3, 4]]


def test_unscored_tokens_are_thinned_evenly():
    kept = make_pruner("uniform", tokens_per_frame=10)(torch.randn(1, 20, 8), grid=GRID)
    mask = keep_with_newlines(kept, GRID, 10)
    assert int(mask.sum()) <= 10
    assert int(mask[0, :, 4].sum()) >= 3


def test_what_cannot_be_done_is_refused():
    features = torch.randn(1, 20, 8)
    with pytest.raises(ValueError, match="merges"):
        keep_with_newlines(make_pruner("tome", tokens_per_frame=8)(features, GRID), GRID, 8)
    with pytest.raises(ValueError, match="at least 2"):
        keep_with_newlines(make_pruner("stc", tokens_per_frame=8)(features, GRID), GRID, 1)
