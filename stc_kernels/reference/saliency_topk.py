# SPDX-License-Identifier: Apache-2.0
"""Reference of ``saliency_topk``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stc_kernels._checks import truth

#: Widths of the sum of Gaussians of the "gaussian" method.
GAUSSIAN_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def _gaussian(z: Tensor, anchor: Tensor) -> Tensor:
    """Similarity of unit tokens to an anchor: a sum of Gaussians, in (0, 5]."""
    squared = (z - anchor).square().sum(-1)
    return sum(
        (torch.exp(-squared / (2.0 * scale)) for scale in GAUSSIAN_SCALES),
        start=torch.zeros_like(squared),
    )


def _cosine(z: Tensor, anchor: Tensor) -> Tensor:
    """Cosine of unit tokens with an anchor."""
    return (z * normalize(anchor, dim=-1, eps=1e-12)).sum(-1)


def saliency_topk(
    tokens: Tensor,
    memory: Tensor | None,
    k: int,
    method: str,
    alpha: float,
    channels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Indices of the k tokens of each frame that differ most from the frame and the past."""
    used = tokens.float()
    past = None if memory is None else memory.float()
    if channels is not None:
        channels = truth(channels)
        # Masking instead of indexing keeps the shapes known; zeroed channels change no product.
        used = torch.where(channels, used, 0.0)
        past = None if past is None else torch.where(channels, past, 0.0)
    z = normalize(used, dim=-1, eps=1e-12)
    frame_anchor = z.mean(1, keepdim=True)
    if method == "gaussian":
        spatial = -2.0 * _gaussian(z, frame_anchor)
        temporal = None if past is None else -2.0 * _gaussian(z, normalize(past, dim=-1, eps=1e-12))
    else:
        spatial = 1.0 - _cosine(z, frame_anchor)
        temporal = None if past is None else 1.0 - _cosine(z, past)
    scores = spatial if temporal is None else alpha * temporal + (1.0 - alpha) * spatial
    keys = scores.nan_to_num(nan=-torch.inf)
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=-1).values.int(), scores
