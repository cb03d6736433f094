# SPDX-License-Identifier: Apache-2.0
"""Reference of ``attention_column_mean``."""

from __future__ import annotations

import torch
from torch import Tensor

#: Queries whose attention rows are held at a time.
BLOCK = 256


def attention_column_mean(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean over heads and queries of softmax(scale * query key^T)."""
    queries, heads = query.shape[1:3]
    received = torch.zeros(key.shape[:2], device=query.device)
    if received.numel() == 0:
        return received
    keys = key.float().repeat_interleave(heads // key.shape[2], dim=2).permute(0, 2, 3, 1)
    for rows in query.split(BLOCK, dim=1):
        logits = scale * (rows.float().transpose(1, 2) @ keys)
        received += logits.softmax(-1).sum((1, 2))
    return received / (heads * queries)
