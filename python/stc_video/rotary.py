# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, pairs: bool = False) -> Tensor:
    """Apply rotary embeddings (n, d) to the first d of x (..., n, w), computed in float32.

    A channel turns with the one half of the channels further on, or, in ``pairs``, with the next.
    """
    if cos.shape[-1] < x.shape[-1]:
        turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        return torch.cat([apply_rotary(turned, cos, sin, pairs=pairs), rest], dim=-1)
    wide = x.float()
    if pairs:
        crossed = torch.stack([-wide[..., 1::2], wide[..., ::2]], dim=-1).flatten(-2)
    else:
        half = wide.shape[-1] // 2
        crossed = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
    return (wide * cos + crossed * sin).to(x.dtype)
