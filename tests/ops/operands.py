# SPDX-License-Identifier: Apache-2.0
"""Shapes, dtypes and layouts that the operators are tested with, and indices."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

_FORCED = os.environ.get("STC_KERNELS_BACKEND")
CPU_BACKENDS = (_FORCED,) if _FORCED else ("reference", "native", "triton")


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def offset(x: Tensor) -> Tensor:
    """A view that does not start at the beginning of its storage."""
    padded = torch.full([size + 3 for size in x.shape], 7.0, dtype=x.dtype)
    view = padded[tuple(slice(2, 2 + size) for size in x.shape)]
    return view.copy_(x)


def every_other_row(x: Tensor) -> Tensor:
    """A view whose rows are not next to each other."""
    wide = torch.full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1]), 7.0, dtype=x.dtype)
    wide[..., ::2, :] = x
    return wide[..., ::2, :]


def channels_first(x: Tensor) -> Tensor:
    """A view whose channels are not next to each other."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": contiguous,
    "offset": offset,
    "every-other-row": every_other_row,
    "channels-first": channels_first,
}

SHAPES = [(1, 1, 1), (1, 7, 5), (3, 33, 17), (2, 64, 64), (1, 130, 1153)]
EMPTY_SHAPES = [(0, 5, 8), (2, 0, 8), (2, 4, 0)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_indices(
    batch: int, tokens: int, count: int, generator: torch.Generator, holes: bool = True
) -> Tensor:
    """Different indices per row, ascending, some of them -1."""
    rows = [torch.randperm(tokens, generator=generator)[:count].sort().values for _ in range(batch)]
    indices = torch.stack(rows) if rows else torch.zeros((0, count), dtype=torch.int64)
    if holes and count > 2:
        indices[:, 1] = -1
    return indices.int()
