# SPDX-License-Identifier: Apache-2.0
"""Mean attention that each token receives, without the attention matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import check_float, check_same, number
from stc_kernels.ops._register import call, register
from stc_kernels.reference.attention_column_mean import attention_column_mean as _reference


def attention_column_mean(
    query: Tensor, key: Tensor, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Attention each key receives, averaged over heads and queries.

    VisionZip (arXiv 2412.04467) ranks tokens by it: over all queries where the tower has no class
    token, or with the class token as the only query. The (K, N) matrix is never held.

    Parameters
    ----------
    query
        (B, K, H, d), K at least 1, float32, float16 or bfloat16, any strides.
    key
        (B, N, H', d) where H is a multiple of H' (grouped queries).
    scale
        Factor of the dot products; None for 1 / sqrt(d).
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, N) float32; each row sums to 1. A NaN in a frame makes all of its values NaN.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or no query.
    TypeError
        On an unsupported dtype or two different ones.
    """
    op = "attention_column_mean"
    check_float(op, "query", query, 4)
    width = query.shape[3]
    factor = (width**-0.5 if width else 1.0) if scale is None else number(op, "scale", scale)
    mean: Tensor = call(op, query, key, factor, backend=backend)
    return mean


def _check(query: Tensor, key: Tensor, scale: float) -> None:
    op = "attention_column_mean"
    check_float(op, "query", query, 4)
    check_float(op, "key", key, 4)
    check_same(op, "key", key, "query", query)
    batch, queries, heads, width = query.shape
    if key.shape[0] != batch or key.shape[3] != width:
        raise ValueError(
            f"`{op}`: key must have shape ({batch}, N, heads, {width}), got {tuple(key.shape)}"
        )
    if key.shape[2] == 0 or heads == 0 or heads % key.shape[2]:
        raise ValueError(
            f"`{op}`: the {heads} heads of query must be a multiple of those of key, "
            f"got {key.shape[2]}"
        )
    if queries == 0:
        raise ValueError(f"`{op}`: query must hold at least one token, got 0")


def _fake(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return query.new_empty(key.shape[:2], dtype=torch.float32)


register("attention_column_mean", _reference, _fake, _check)
