# SPDX-License-Identifier: Apache-2.0
"""Reference of ``select_changed`` and ``select_changed_below``."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels.reference.token_cosine import token_cosine


def _rank_keys(similarity: Tensor, pinned: int) -> Tensor:
    """Sort keys: pinned tokens first, then NaN, then ascending similarity."""
    keys = similarity.nan_to_num(nan=-torch.inf)
    position = torch.arange(keys.shape[-1], device=keys.device)
    # A NaN token is at -inf already; pinned ones must come before it, so NaN moves up a little.
    keys = torch.where(similarity.isnan(), torch.finfo(torch.float32).min, keys)
    return torch.where(position < pinned, -torch.inf, keys)


def select_changed(
    current: Tensor, reference: Tensor, k: int, pinned: int
) -> tuple[Tensor, Tensor]:
    """Indices of the k least similar tokens, ties to the lower index."""
    similarity = token_cosine(current, reference)
    order = torch.sort(_rank_keys(similarity, pinned), dim=-1, stable=True).indices
    return order[:, :k].sort(dim=-1).values.int(), similarity


def select_changed_below(
    current: Tensor, reference: Tensor, threshold: float, capacity: int, pinned: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the tokens at or below the threshold, at most ``capacity`` of them."""
    similarity = token_cosine(current, reference)
    tokens = similarity.shape[-1]
    position = torch.arange(tokens, device=similarity.device)
    # `not above` rather than `below`, so that NaN counts as changed.
    limit = torch.tensor(threshold, dtype=torch.float32, device=similarity.device)
    changed = (position < pinned) | ~(similarity > limit)
    order = torch.sort(_rank_keys(similarity, pinned), dim=-1, stable=True).indices[:, :capacity]
    counts = changed.sum(-1, dtype=torch.int32)
    listed = torch.arange(order.shape[-1], device=order.device) < counts[:, None]
    # Unlisted places sort to the end and then become -1.
    indices = torch.where(listed, order, tokens).sort(dim=-1).values
    indices = torch.where(indices == tokens, -1, indices).int()
    padding = indices.new_full((indices.shape[0], capacity - indices.shape[1]), -1)
    return torch.cat([indices, padding], dim=1), counts, similarity
