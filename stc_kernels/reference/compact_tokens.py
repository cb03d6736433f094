# SPDX-License-Identifier: Apache-2.0
"""Reference of ``compact_tokens``."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import truth
from stc_kernels.reference.rows import _gather


def compact_tokens(tokens: Tensor, keep: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Marked tokens of all frames in one row, where they came from, and how many per frame."""
    flat = truth(keep).flatten()
    place = flat.cumsum(0) - 1
    # One spare entry takes what is not kept or does not fit: no mask, no host synchronisation.
    place = torch.where(flat & (place < capacity), place, capacity)
    source = torch.arange(len(flat), dtype=torch.int32, device=tokens.device)
    indices = source.new_full((capacity + 1,), -1).scatter_(0, place, source)[:capacity]
    packed = _gather(tokens.flatten(0, 1)[None], indices[None])[0]
    return packed, indices.clone(), flat.view(keep.shape).sum(1, dtype=torch.int32)
