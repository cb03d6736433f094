# SPDX-License-Identifier: Apache-2.0
"""Merging of similar tokens: which goes into which, and the weighted mean."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import (
    check_device,
    check_float,
    check_indices,
    check_range,
    check_shape,
    check_tokens,
    integer,
)
from stc_kernels.ops._register import call, register
from stc_kernels.reference import merging as _reference


def bipartite_match(
    metric: Tensor, r: int, *, protected: int = 0, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose r tokens of each frame to merge, and for each the token to merge it into.

    Bipartite soft matching of ToMe (arXiv 2210.09461): each token at an even place is compared
    with all tokens at odd places; the r whose best cosine is highest merge into that best one.
    Unlike in ToMe the survivors stay in their order, and a zero token has cosine 0, not NaN.

    Parameters
    ----------
    metric
        (B, N, C) what is compared, such as keys averaged over heads; float32, float16 or
        bfloat16, any strides.
    r
        How many tokens to merge away per frame, from 0 to (N - protected) // 2.
    protected
        The first ``protected`` tokens (class token, registers) neither merge nor are merged into.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    source_map : Tensor
        (B, N) int32, the row in [0, N - r) of the merged sequence that each token becomes part
        of; what :func:`merge_tokens` takes.
    kept : Tensor
        (B, N - r) int32, the places of the survivors, ascending.
    similarity : Tensor
        (B, N) float32, the best cosine of each token that could merge, -inf for all others. Ties
        of two tokens or two partners go to the lower place. NaN counts as -inf: such a token
        merges last, and is merged into last.

    Raises
    ------
    ValueError
        On a wrong shape, or r or protected out of range.
    TypeError
        On an unsupported dtype.
    """
    op = "bipartite_match"
    r, protected = integer(op, "r", r), integer(op, "protected", protected)
    source_map, kept, similarity = call(op, metric, r, protected, backend=backend)
    return source_map, kept, similarity


def merge_tokens(
    tokens: Tensor,
    source_map: Tensor,
    count: int,
    *,
    sizes: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Average the tokens that go into the same row, each weighted by its size.

    Parameters
    ----------
    tokens
        (B, N, C), float32, float16 or bfloat16, any strides.
    source_map
        (B, N) int32 or int64, the row in [0, count) that each token becomes part of; -1 leaves a
        token out. On a CPU an index out of range raises; on a GPU it is an error of the caller.
    count
        Rows of the result, from 0 to N.
    sizes
        (B, N) float32, of how many original tokens each is the mean; None for 1.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    merged : Tensor
        (B, count, C) of the dtype of ``tokens``, summed in float32; zeros where no token goes.
    sizes : Tensor
        (B, count) float32, the sum of the sizes.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, a count out of range, or (on a CPU) an index out of
        range.
    TypeError
        On an unsupported dtype.
    """
    op = "merge_tokens"
    count = integer(op, "count", count)
    merged, total = call(op, tokens, source_map, count, sizes, backend=backend)
    return merged, total


def _check_match(metric: Tensor, r: int, protected: int) -> None:
    op = "bipartite_match"
    check_float(op, "metric", metric, 3)
    tokens = metric.shape[1]
    check_tokens(op, tokens)
    check_range(op, "protected", protected, 0, tokens, "tokens")
    check_range(op, "r", r, 0, (tokens - protected) // 2, "half of the unprotected tokens")


def _check_merge(tokens: Tensor, source_map: Tensor, count: int, sizes: Tensor | None) -> None:
    op = "merge_tokens"
    check_float(op, "tokens", tokens, 3)
    batch, places = tokens.shape[:2]
    check_indices(op, source_map, batch, places)
    check_device(op, "source_map", source_map, "tokens", tokens)
    check_shape(op, "source_map", source_map, (batch, places))
    check_range(op, "count", count, 0, places, "tokens")
    if sizes is not None:
        check_float(op, "sizes", sizes, 2)
        if sizes.dtype != torch.float32:
            raise TypeError(f"`{op}`: sizes must be float32, got {sizes.dtype}")
        check_device(op, "sizes", sizes, "tokens", tokens)
        check_shape(op, "sizes", sizes, (batch, places))


def _fake_match(metric: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens = metric.shape[:2]
    return (
        metric.new_empty((batch, tokens), dtype=torch.int32),
        metric.new_empty((batch, tokens - r), dtype=torch.int32),
        metric.new_empty((batch, tokens), dtype=torch.float32),
    )


def _fake_merge(
    tokens: Tensor, source_map: Tensor, count: int, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, _, channels = tokens.shape
    return (
        tokens.new_empty((batch, count, channels)),
        tokens.new_empty((batch, count), dtype=torch.float32),
    )


register("bipartite_match", _reference.bipartite_match, _fake_match, _check_match)
register(
    "merge_tokens",
    _reference.merge_tokens,
    _fake_merge,
    _check_merge,
    indices="source_map",
    limit=lambda tokens, source_map, count, sizes: count,
)
