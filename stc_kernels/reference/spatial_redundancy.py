# SPDX-License-Identifier: Apache-2.0
"""Reference of ``spatial_redundancy``."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import truth
from stc_kernels.reference.token_cosine import token_cosine


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two (F, H, W, D) grids, place by place; NaN becomes -inf."""
    similarity = token_cosine(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])
    counted: Tensor = similarity.nan_to_num(nan=-torch.inf)
    return counted


def spatial_redundancy(tokens: Tensor, alive: Tensor | None) -> Tensor:
    """Largest cosine of each token with one of its four neighbours."""
    best = torch.full(tokens.shape[:3], -torch.inf, device=tokens.device)
    if best.numel() == 0:
        return best
    alive = None if alive is None else truth(alive)
    for axis in (1, 2):
        length = tokens.shape[axis]
        similarity = _cosine(tokens.narrow(axis, 0, length - 1), tokens.narrow(axis, 1, length - 1))
        for start, other in ((0, 1), (1, 0)):
            seen = similarity
            if alive is not None:
                seen = torch.where(alive.narrow(axis, other, length - 1), similarity, -torch.inf)
            side = best.narrow(axis, start, length - 1)
            side.copy_(torch.maximum(side, seen))
    return best
