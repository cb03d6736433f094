# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings (n, d) to the first d of x (..., n, w), computed in float32."""
    if cos.shape[-1] < x.shape[-1]:
        turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        return torch.cat([apply_rotary(turned, cos, sin), rest], dim=-1)
    wide = x.float()
    half = wide.shape[-1] // 2
    crossed = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
    return (wide * cos + crossed * sin).to(x.dtype)
