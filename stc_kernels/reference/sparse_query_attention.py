# SPDX-License-Identifier: Apache-2.0
"""Reference of ``sparse_query_attention``."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_query_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, key_bias: Tensor | None
) -> Tensor:
    """Attention of K queries over N keys, heads in groups, with a bias per key."""
    batch, queries, heads, width = query.shape
    tokens, groups = key.shape[1:3]
    q = query.float().reshape(batch, queries, groups, heads // groups, width)
    logits = torch.einsum("bkghd,bngd->bghkn", q, key.float()) * scale
    if key_bias is not None:
        logits = logits + key_bias.float()[:, None, None, None, :]
    weights = torch.softmax(logits, dim=-1)
    if tokens and key_bias is not None:
        # A query that may attend to nothing gets zeros, not the NaN of 0/0.
        masked = (key_bias == -torch.inf).all(-1)[:, None, None, None, None]
        weights = torch.where(masked, 0.0, weights)
    out = torch.einsum("bghkn,bngd->bkghd", weights, value.float())
    return out.reshape(batch, queries, heads, width).to(query.dtype).contiguous()
