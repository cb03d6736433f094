# SPDX-License-Identifier: Apache-2.0
"""``select_changed`` and ``select_changed_below``: one pass over the tokens, one selection."""

from __future__ import annotations

from torch import Tensor

from stc_kernels._triton._selection import select_below, select_lowest
from stc_kernels._triton.token_cosine import token_cosine


def select_changed(
    current: Tensor, reference: Tensor, k: int, pinned: int
) -> tuple[Tensor, Tensor]:
    """Indices of the k least similar tokens, ties to the lower index."""
    similarity = token_cosine(current, reference)
    return select_lowest(similarity, k, pinned), similarity


def select_changed_below(
    current: Tensor, reference: Tensor, threshold: float, capacity: int, pinned: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the tokens at or below the threshold, at most ``capacity`` of them."""
    similarity = token_cosine(current, reference)
    indices, counts = select_below(similarity, threshold, capacity, pinned)
    return indices, counts, similarity
