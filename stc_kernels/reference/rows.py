# SPDX-License-Identifier: Apache-2.0
"""Reference of ``gather_rows``, ``scatter_rows_``, ``gather_layer_norm``, ``scatter_residual``."""

from __future__ import annotations

import torch
from torch import Tensor


def _gather(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of x at the indices; rows of index -1 are zeros."""
    batch, count = indices.shape
    channels = x.shape[-1]
    if x.shape[1] == 0:
        return x.new_zeros((batch, count, channels))
    # expand() of an empty tensor is fine, and clamp keeps -1 readable until it is masked.
    picked = indices.clamp_min(0).long()[:, :, None].expand(batch, count, channels)
    rows = torch.gather(x, 1, picked)
    return torch.where((indices < 0)[:, :, None], torch.zeros((), dtype=x.dtype), rows)


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of x at the indices."""
    return _gather(x, indices)


def scatter_rows_(x: Tensor, indices: Tensor, rows: Tensor) -> None:
    """Write rows into x in place; index -1 writes nothing."""
    _scatter_(x, indices, rows)


def _scatter_(x: Tensor, indices: Tensor, rows: Tensor) -> None:
    batch, tokens, channels = x.shape
    if tokens == 0 or indices.shape[1] == 0:
        return
    # One spare row takes the writes of index -1: no mask, hence no host synchronisation.
    padded = torch.cat([x, x.new_zeros((batch, 1, channels))], dim=1)
    target = torch.where(indices < 0, tokens, indices).long()
    padded.scatter_(1, target[:, :, None].expand_as(rows), rows)
    x.copy_(padded[:, :tokens])


def gather_layer_norm(
    x: Tensor, indices: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Layer norm of the gathered rows."""
    rows = _gather(x, indices)
    normed = torch.nn.functional.layer_norm(
        rows.float(),
        (x.shape[-1],),
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
        eps,
    )
    return torch.where((indices < 0)[:, :, None], torch.zeros(()), normed).to(x.dtype)


def scatter_residual(base: Tensor, update: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Base plus update, where the listed rows of the update are replaced."""
    replaced = update.float().expand(base.shape).clone()
    _scatter_(replaced, indices, rows.float())
    return (base.float() + replaced).to(base.dtype).contiguous()
