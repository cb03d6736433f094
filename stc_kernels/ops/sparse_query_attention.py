# SPDX-License-Identifier: Apache-2.0
"""Attention of a few queries over all keys."""

from __future__ import annotations

import math

from torch import Tensor

from stc_kernels._checks import check_device, check_float, check_same, check_shape, number
from stc_kernels.ops._register import call, register
from stc_kernels.reference.sparse_query_attention import sparse_query_attention as _reference

#: widest attention head, in channels
MAX_HEAD_WIDTH = 256


def sparse_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention of the re-encoded tokens' queries over the keys of all tokens.

    Parameters
    ----------
    query
        (B, K, H, d), float32, float16 or bfloat16, any strides; d at most 256.
    key, value
        (B, N, G, d) each, dtype and device of query; G heads of keys serve H heads of queries,
        H / G in a row each (G = H without grouping).
    scale
        Factor of the dot products; None for 1 / sqrt(d).
    key_bias
        (B, N) added to every query's logit of that key, in any of the three dtypes: the log of a
        merged token's size, or -inf for a key that nobody may attend to.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, K, H, d) contiguous, in the dtype of query; zeros where there is no key to attend to.
        Logits and sums are float32; the Triton and native GPU backends round the weights to the
        dtype of value before the second product, as every fused attention does.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or a scale that is not finite.
    TypeError
        On an unsupported dtype or different ones.
    """
    op = "sparse_query_attention"
    check_float(op, "query", query, 4)
    width = query.shape[3]
    factor = (width**-0.5 if width else 1.0) if scale is None else number(op, "scale", scale)
    out: Tensor = call(op, query, key, value, factor, key_bias, backend=backend)
    return out


def _check(
    query: Tensor, key: Tensor, value: Tensor, scale: float, key_bias: Tensor | None
) -> None:
    op = "sparse_query_attention"
    check_float(op, "query", query, 4)
    check_float(op, "key", key, 4)
    batch, _, heads, width = query.shape
    tokens, groups = key.shape[1:3]
    check_same(op, "key", key, "query", query)
    check_same(op, "value", value, "query", query)
    check_shape(op, "key", key, (batch, tokens, groups, width))
    check_shape(op, "value", value, tuple(key.shape))
    if groups == 0 or heads % groups:
        raise ValueError(f"`{op}`: key must have a number of heads that divides {heads} (heads of "
                         f"query), got {groups}")  # fmt: skip
    if not 1 <= width <= MAX_HEAD_WIDTH:
        raise ValueError(
            f"`{op}`: query must have heads of 1 to {MAX_HEAD_WIDTH} channels, got {width}"
        )
    if key_bias is not None:
        check_float(op, "key_bias", key_bias, 2)
        check_device(op, "key_bias", key_bias, "query", query)
        check_shape(op, "key_bias", key_bias, (batch, tokens))
    if not math.isfinite(scale):
        raise ValueError(f"`{op}`: scale must be finite, got {scale}")


def _fake(
    query: Tensor, key: Tensor, value: Tensor, scale: float, key_bias: Tensor | None
) -> Tensor:
    return query.new_empty(query.shape)


register("sparse_query_attention", _reference, _fake, _check)
