# SPDX-License-Identifier: Apache-2.0
"""Attention of some of a frame's queries to all of its keys, and the masks that it takes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from stc_kernels import sparse_query_attention

# In float32, torch's CPU attention takes 64 queries at a time from 192 on, and 32 below: so much
# slower that a number just below, such as a quarter of 729 tokens, gains by padding with zeros.
_CPU_QUERIES = 192
_PADDED_FROM = 168


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Attention of queries (B, K, C) to keys and values (B, N, C), in front of its projection.

    ``mask`` is None or broadcastable to (B, heads, K, N).
    """
    if _has_sparse_kernel(query, key):
        return _sparse_attention(query, key, value, heads, mask)
    if query.device.type == "cpu" and query.dtype == torch.float16:
        # torch's CPU attention has no fast kernel for it.
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        return attention(query.float(), key.float(), value.float(), heads, mask).half()
    batch, rows, channels = query.shape
    q, k, v = _split_heads(query, heads), _split_heads(key, heads), _split_heads(value, heads)
    is_key_mask = mask is None or mask.shape[-2] == 1
    if is_key_mask and _is_float32_on_cpu(q) and _PADDED_FROM <= rows < _CPU_QUERIES:
        q = pad(q, (0, 0, 0, _CPU_QUERIES - rows))
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    mixed = mixed if mixed.shape[2] == rows else mixed[:, :, :rows]
    return mixed.transpose(1, 2).reshape(batch, rows, channels)


def _is_float32_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _has_sparse_kernel(query: Tensor, key: Tensor) -> bool:
    """Whether our kernel attends: on a GPU, for fewer queries than keys."""
    return query.is_cuda and query.shape[1] < key.shape[1]


def _sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None
) -> Tensor:
    """Attention of rows (B, K, C) to (B, N, C); ``mask`` is None or (B, 1, 1, N)."""
    q, k, v = (part.unflatten(2, (heads, -1)) for part in (query, key, value))
    bias = None if mask is None else mask[:, 0, 0, :]
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.where(bias, 0.0, -torch.inf).to(query.dtype)
    return sparse_query_attention(q, k, v, key_bias=bias).flatten(2)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, K, C) -> (B, heads, K, C / heads), a view."""
    batch, rows, channels = x.shape
    return x.view(batch, rows, heads, channels // heads).transpose(1, 2)


def key_mask(mask: object) -> Tensor | None:
    """Mask over the keys of each frame, for any subset of its queries.

    SigLIP2 masks padding keys, (B, 1, N, N) with equal rows, so that one row serves all queries.

    Parameters
    ----------
    mask
        What the tower passed to its layers: None or a tensor.

    Returns
    -------
    Tensor or None
        (B, 1, 1, N), bool or additive.
    """
    return mask[:, :, :1, :] if isinstance(mask, torch.Tensor) else None
